"""The list: models with the group that they have, written by hand.

An entry's group is a hand-written symmetry, and beside it what axis terms cannot say: `moves`, each of which exchanges
`size` things (experts in modules of their own, components with a site each) by a function of the values and an order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Moves = tuple[tuple[int, Callable[[dict, Any], dict]], ...]
NETWORKS: dict[str, Entry] = {}
PROGRAMS: dict[str, Entry] = {}


@dataclass(frozen=True)
class Entry:
    """One model of somebody else.

    Attributes:
        name: Its name in the table.
        source: Where such a model is found.
        make: Returns the model and its arguments, in the default dtype of the moment.
        axes: Site -> one entry per axis, in the notation of ``Symmetry.from_axes``; sites left out keep their order.
        within: Nested atom -> the atoms around it.
        sizes: Sizes of atoms that the shapes do not tell.
        moves: Further symmetries, as pairs of a size and a function of the values and an order.
        options: Keyword options of ``find_symmetry``.
    """

    name: str
    source: str
    make: Callable[[], tuple[Any, tuple]]
    axes: Mapping[str, tuple]
    within: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    moves: Moves = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def network(name, source, axes, make, *inputs, within=None, sizes=None, moves=()):
    """Lists a network; inputs are shapes of Gaussian tensors, or functions that make an input."""
    assert name not in NETWORKS, name

    def build():
        module = make()
        return module.eval(), tuple(i() if callable(i) else torch.randn(i) for i in inputs)

    NETWORKS[name] = Entry(name, source, build, axes, within or {}, sizes or {}, tuple(moves))


def program(source, axes, *, within=None, sizes=None, moves=(), **options):
    """Lists the decorated function, which returns a Pyro model and its arguments."""

    def register(make):
        assert make.__name__ not in PROGRAMS, make.__name__
        PROGRAMS[make.__name__] = Entry(
            make.__name__, source, make, axes, within or {}, sizes or {}, tuple(moves), options
        )
        return make

    return register


class Function(nn.Module):
    """A module from a function of itself and the inputs; parts are modules, shapes of parameters, or tensors."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, tuple | int):
                part = nn.Parameter(torch.randn(part))
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part, persistent=False)
            else:
                setattr(self, name, part)

    def forward(self, *inputs):
        return self.function(self, *inputs)


net = Function


def layer(name, out, inp, bias=True):
    """Axes of a linear layer."""
    return {f"{name}.weight": (out, inp)} | ({f"{name}.bias": (out,)} if bias else {})


def conv(name, out, inp, dims=2, bias=True):
    """Axes of a convolution."""
    return {f"{name}.weight": (out, inp) + (None,) * dims} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name, atom, statistics=False):
    """Axes of a normalization layer, with its running statistics where it has some."""
    names = ("weight", "bias") + (("running_mean", "running_var") if statistics else ())
    return {f"{name}.{part}": (atom,) for part in names}


def modules(*patterns):
    """A move that exchanges modules (or sites): in each pattern, `{}` stands for the number of the one exchanged."""

    def move(values, order):
        moved = dict(values)
        for site in values:
            for pattern in patterns:
                for new, old in enumerate(order):
                    if site.startswith(pattern.format(new)):
                        moved[site] = values[pattern.format(old) + site[len(pattern.format(new)) :]]
        return moved

    return move


def along(site, axis, start=0, block=None):
    """A move that permutes blocks of an axis of one site: block `k` is `block` entries from `start` on."""

    def move(values, order):
        width = block or 1
        index = torch.arange(values[site].shape[axis])
        for new, old in enumerate(order):
            a, b = start + new * width, start + old * width
            index[a : a + width] = torch.arange(b, b + width)
        return {**values, site: values[site].index_select(axis, index)}

    return move


def together(*moves):
    """Several moves with one order."""

    def move(values, order):
        for one in moves:
            values = one(values, order)
        return values

    return move
