"""Results as ArviZ objects, tables and figures."""
