"""Published networks, as the usual libraries build them, and the group that each of them has.

A network is small but has every part of its original. Its group is written down site by site: a pattern for the sites'
names, and one entry per axis in the notation of ``SymmetrySpec``. ``{0}`` stands for the pattern's first group
(the number of the layer, say), ``"head{0}:2"`` is an atom with its size, and an atom is nested in others as ``within``
says.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from packages import installed
from problems import Problem
from torch import nn

from pyro_align import Symmetry
from pyro_align.axes import Atom

NETWORKS: dict[str, Network] = {}


@dataclass(frozen=True)
class Network:
    """A network, its inputs, and the group it has.

    Attributes:
        name: Name in ``NETWORKS``.
        package: What it comes from.
        make: Given the package, returns ``(module, inputs)``.
        sites: Pattern of site names -> one entry per axis. Sites that no pattern matches keep all their axes fixed.
        within: Pattern of atom names -> names of the atoms around, outermost first, in terms of the pattern's groups.
        missed: A relabeling that the network allows and ``sites`` do not: ``{(site, axis): index}``. None where the
            group is complete.
        opaque: Operations that discovery does not see through.
        slow: Whether it is left out by default.
    """

    name: str
    package: str
    make: Callable[[Any], tuple[nn.Module, tuple]]
    sites: Mapping[str, tuple]
    within: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    missed: Mapping[tuple[str, int], list[int]] | None = None
    opaque: tuple[str, ...] = ()
    slow: bool = False

    def build(self) -> tuple[nn.Module, tuple]:
        """The network in evaluation mode and its inputs, the same at every call; skips where the package is missing."""
        package = installed(self.package)
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            module, inputs = self.make(package)
        return module.eval(), inputs

    def expected(self, shapes: Mapping[str, tuple[int, ...]]) -> Symmetry:
        """The known symmetry, bound to the sites' shapes."""
        axes, atoms = {}, set()
        for pattern, terms in self.sites.items():
            found = [m for name in shapes if (m := re.fullmatch(pattern, name))]
            assert found, f"{self.name}: no site is called {pattern}; there are {list(shapes)}"
            for match in found:
                assert match[0] not in axes, f"{self.name}: {match[0]} is named twice, by {pattern} again"
                axes[match[0]] = tuple(_term(t, match.groups(), atoms) for t in terms)
        within = {}
        for pattern, around in self.within.items():
            for atom in atoms:
                if match := re.fullmatch(pattern, atom):
                    outer = (around,) if isinstance(around, str) else around
                    within[atom] = tuple(match.expand(o) for o in outer)
        return Problem(self.name, lambda: None, axes, within).expected(shapes)


def _term(term, groups: tuple[str, ...], atoms: set[str]):
    if isinstance(term, tuple | list):
        return type(term)(_term(t, groups, atoms) for t in term)
    if not isinstance(term, str):
        return term
    name, _, size = term.format(*groups).partition(":")
    atoms.add(name)
    return Atom(name, int(size)) if size else Atom(name)


def network(package: str, sites: Mapping[str, tuple], *, within=None, **options):
    """Registers the decorated function, which gets the package and returns ``(module, inputs)``."""

    def register(make):
        assert make.__name__ not in NETWORKS, make.__name__
        NETWORKS[make.__name__] = Network(make.__name__, package, make, sites, within or {}, **options)
        return make

    return register


from published import language, vision  # noqa: E402, F401
