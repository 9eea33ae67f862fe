"""Models with known symmetry, one file a family; importing them fills ``problems.PROBLEMS``."""
