"""One family of posteriors a file."""
