"""Which way of reading a graph says more: as it was traced, or with its loops rolled."""

from __future__ import annotations

from pyro_align.discovery.axes.assemble import assemble
from pyro_align.discovery.axes.inference import Inference
from pyro_align.discovery.rolling import rolled
from pyro_align.discovery.tracing import TracedGraph


def infer(traced: TracedGraph) -> Inference:
    """The axes of a graph, by the reading that leaves more of them free."""
    plain = Inference(traced)
    if (found := rolled(traced)) is None:
        return plain
    other = Inference(*found)
    return max(plain, other, key=lambda inference: assemble(inference, scope="joint").log_order)
