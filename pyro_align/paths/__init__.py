"""Paths between posteriors: a path maps tau in [0, 1] to a Pyro guide."""
