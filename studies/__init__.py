"""Measured evidence: barriers between Bayesian solutions, before and after alignment.

Each study is a program, ``python -m studies.NAME --out FOLDER``, run from the repository's root. It is resumable (a
cell that its table holds already is skipped, a fit that its folder holds already is loaded), and writes a tidy table,
figures and the text of its page's table.
"""
