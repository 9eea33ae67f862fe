"""Running a Pyro model at given values: one engine for discovery, barriers, draws and learned paths."""
