"""Find, match, relabel: two posteriors, or many."""
