"""Rules of axes, by kind of operation.

A rule returns one term per axis of the output (a list of these for several outputs). What it must guarantee: if every
input is relabeled as its terms say, then the output is relabeled as the returned terms say.
"""

from pyro_align.discovery.axes.rules import elementwise, indexing, linalg, spatial, views  # noqa: F401
