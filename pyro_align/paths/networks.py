"""Paths between plain networks: their loss on the way, and the batch normalization of a merged network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def evaluate_networks(
    path: Callable[[float], nn.Module],
    loss: Callable[[nn.Module], Any],
    *,
    taus: int | Sequence[float] = 25,
    batches: Iterable[Any] | None = None,
) -> pd.DataFrame:
    """A loss of the networks along a path, and how far it rises above the straight line between the endpoints.

    Args:
        path: The path between two networks, ``align(a, b, symmetry).path``: ``path(tau)`` is a network.
        loss: Network -> loss, lower is better.
        taus: How many equally spaced points, or where.
        batches: Inputs by which the statistics of batch normalization are reset between the ends, where they are given;
            see :func:`reset_batch_norm`.

    Returns:
        One row per tau: ``tau``, ``loss`` and ``excess``. The barrier is the largest excess.

    Example:
        >>> import torch
        >>> from pyro_align import align, find_symmetry
        >>> from pyro_align.paths import evaluate_networks
        >>> def network():
        ...     return torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> a, b, x = network(), network(), torch.randn(10, 2)
        >>> alignment = align(a, b, find_symmetry(a, x))
        >>> frame = evaluate_networks(alignment.path, lambda net: net(x).square().mean(), taus=5)
        >>> list(frame.columns), len(frame)
        (['tau', 'loss', 'excess'], 5)
    """
    grid = np.linspace(0.0, 1.0, taus) if isinstance(taus, int) else np.asarray(taus, float)
    data, values = None if batches is None else list(batches), []
    for tau in grid:
        network = path(float(tau))
        if data is not None and 0.0 < tau < 1.0:
            network = reset_batch_norm(network, data)
        with torch.no_grad():
            values.append(float(loss(network)))
    losses = np.array(values)
    chord = np.interp(grid, grid[[0, -1]], losses[[0, -1]])
    return pd.DataFrame({"tau": grid, "loss": losses, "excess": losses - chord})


def reset_batch_norm(module: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """A copy of a network with the running statistics of its batch normalization measured again.

    Between two networks the averaged statistics are those of neither (Jordan et al. 2023); measured on data, they are
    those of the network that it is.

    Args:
        module: The network; it stays as it is.
        batches: Inputs: a tensor, or a tuple of the network's arguments, each.

    Returns:
        The copy; its statistics are means over the batches.
    """
    made = copy.deepcopy(module)
    layers = [layer for layer in made.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    modes, momenta = {m: m.training for m in made.modules()}, [layer.momentum for layer in layers]
    made.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over all batches
        layer.train()
    with torch.no_grad():
        for batch in batches:
            made(*batch) if isinstance(batch, tuple | list) else made(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    for part, training in modes.items():
        part.training = training
    return made
