"""Effect handlers, one messenger a file."""
