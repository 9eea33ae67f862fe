"""Which way of reading a graph says more: as it was traced, or with its loops rolled."""

from __future__ import annotations

from pyro_align.discovery.axes.assemble import assemble
from pyro_align.discovery.axes.inference import Inference
from pyro_align.discovery.rolling import rolled
from pyro_align.discovery.tracing import TracedGraph
from pyro_align.errors import SymmetryError


def infer(traced: TracedGraph) -> Inference:
    """The axes of a graph, by the reading that leaves more of them free."""
    plain, found = Inference(traced), rolled(traced)
    plain.kin = found.kin
    if found.traced is None:
        return plain
    other = Inference(found.traced, found.copies)
    other.kin = found.kin
    try:
        return max(plain, other, key=lambda inference: assemble(inference, scope="joint").log_order)
    except SymmetryError:  # the axes of some tensor of the rolled graph depend on each other in a circle
        return plain
