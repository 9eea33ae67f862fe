"""Pyro programs, as other people spell them; every file of this folder is imported by the list."""
