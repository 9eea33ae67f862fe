"""Guides that empty their prototype traces: ``AutoGaussian`` and ``AutoStructured`` keep their sites elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from pyro.nn import PyroModule
from torch.distributions import biject_to

from pyro_align.errors import GuideError
from pyro_align.guides.families.multivariate import MultivariateWriter, dense_writer
from pyro_align.guides.pyro_state.modules import UNTRAINED, Prototype, bare_node, read_parameter, trace_of


def prototype_nodes(
    guide: PyroModule, latent: Mapping[str, dict[str, Any]], shapes: Mapping[str, tuple[Any, ...]]
) -> dict[str, dict[str, Any]]:
    """Nodes of a prototype trace for the latent sites: these guides empty theirs.

    Raises:
        GuideError: The guide has not run yet.
    """
    if not latent:
        raise GuideError(f"this {type(guide).__name__} is untrained: {UNTRAINED}")
    nodes = {}
    for name, site in latent.items():
        batch, event = shapes[name]
        like = read_parameter(guide, f"locs.{name}").raw
        shape = biject_to(site["fn"].support).forward_shape(torch.Size((*batch, *event)))
        nodes[name] = bare_node(name, site["fn"], like, shape, site["cond_indep_stack"])
    return nodes


def dense_writer_over(prototype: Prototype, nodes: Mapping[str, dict[str, Any]]) -> MultivariateWriter:
    """Writes an ``AutoMultivariateNormal`` over the same sites."""
    kept = ("_model", "create_plates", "_prototype_frames", "_init_scale")
    shapes = {k: biject_to(n["fn"].support).inverse_shape(n["value"].shape) for k, n in nodes.items()}
    attributes = {
        **{k: prototype.attributes[k] for k in kept if k in prototype.attributes},
        "prototype_trace": trace_of(nodes),
        "_unconstrained_shapes": shapes,
        "_cond_indep_stacks": {k: n["cond_indep_stack"] for k, n in nodes.items()},
        "latent_dim": sum(math.prod(shape) for shape in shapes.values()),
    }
    return dense_writer(replace(prototype, attributes=attributes))
