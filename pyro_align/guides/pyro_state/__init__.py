"""Parameters of Pyro modules, read and written without the global param store."""
