"""The main job on real data: two Bayesian networks on handwritten digits, aligned, with the barrier between them."""
