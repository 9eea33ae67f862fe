"""Losses of a posterior, per datum, in nats, lower is better; their estimates and bands."""
