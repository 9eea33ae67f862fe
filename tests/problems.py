"""Models whose permutation symmetry is known: what discovery must find, and what every law is tested on.

``PROBLEMS`` maps a name to a :class:`Problem`; the models live in ``tests/zoo``, one file a family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.func import functional_call

from pyro_align import Symmetry
from pyro_align.axes import Atom, Product, as_axis, axis_size, map_atoms

PROBLEMS: dict[str, Problem] = {}


@dataclass(frozen=True)
class Problem:
    """A model, its arguments, and the group it has.

    Attributes:
        name: Name in ``PROBLEMS``.
        make: Returns ``(model, args)``.
        axes: Site -> one entry per axis, in the notation of ``SymmetrySpec``. Sites left out are all fixed.
        within: Nested atom -> the atoms around it.
        odd: Atoms that change sign at every site that carries them, for ``find_symmetry(signs=True)``.
        signs: Site -> one entry per axis, as in ``axes``, for atoms that change sign at some of their sites only.
        options: Keyword options of ``find_symmetry``.
        oracle: Whether the model is small enough for the exhaustive search.
    """

    name: str
    make: Callable[[], tuple[Any, tuple]]
    axes: Mapping[str, tuple]
    within: Mapping[str, Any] = field(default_factory=dict)
    odd: tuple[str, ...] = ()
    signs: Mapping[str, tuple] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    oracle: bool = True

    @property
    def is_module(self) -> bool:
        """Whether the model is a plain module, without sample sites."""
        return isinstance(self.make()[0], nn.Module) and not isinstance(self.make()[0], pyro.nn.PyroModule)

    def build(self) -> tuple[Any, tuple]:
        """The model and its arguments, the same at every call, in float64 whatever was set before."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return self.make()
        finally:
            torch.set_default_dtype(before)

    def expected(self, shapes: Mapping[str, tuple[int, ...]], *, signs: bool = False) -> Symmetry:
        """The known symmetry, bound to the sites' shapes, with or without its signs."""
        axes = {site: self.axes.get(site, (None,) * len(shape)) for site, shape in shapes.items()}
        missing = (set(self.axes) | set(self.signs)) - set(shapes)
        assert not missing, f"{self.name}: the model has no sites {missing}; it has {list(shapes)}"
        if signs:
            axes |= self.signs
            axes = {site: tuple(map_atoms(as_axis(t), self._turned) for t in terms) for site, terms in axes.items()}
        sites = {site: tuple(map_atoms(as_axis(t), _fixed) for t in terms) for site, terms in axes.items()}
        return Symmetry.from_axes(sites, shapes=shapes, within=self.within)

    def _turned(self, atom: Atom) -> Atom:
        return replace(atom, kind="signed") if atom.name in self.odd else atom


def _fixed(atom: Atom) -> Atom:
    """An atom whose name ends in ``!`` keeps its order, but others may be nested in it."""
    return replace(atom, fixed=True) if atom.name.endswith("!") else atom


def problem(
    axes: Mapping[str, tuple],
    *,
    within=None,
    odd: str | tuple[str, ...] = (),
    signs: Mapping[str, tuple] | None = None,
    oracle: bool = True,
    name: str | None = None,
    **options,
):
    """Registers the decorated function, which returns ``(model, args)``."""

    def register(make):
        turned = (odd,) if isinstance(odd, str) else odd
        entry = Problem(name or make.__name__, make, axes, within or {}, turned, signs or {}, options, oracle)
        assert entry.name not in PROBLEMS, entry.name
        PROBLEMS[entry.name] = entry
        return make

    return register


def normal(name: str, *shape: int, scale=1.0):
    """A latent site with a Gaussian prior."""
    return pyro.sample(name, dist.Normal(0.0, scale).expand(shape).to_event(len(shape)))


def observe(mean: torch.Tensor, name: str = "y") -> None:
    """Gaussian data around a mean, all different, so that no two outputs are interchangeable."""
    data = torch.linspace(-1, 1, mean.numel(), dtype=mean.dtype).view(mean.shape)
    pyro.sample(name, dist.Normal(mean, 1.0).to_event(mean.dim()), obs=data)


def bayesian(net: nn.Module, *, frozen: tuple[str, ...] = ()):
    """A Pyro model in which every parameter of a module is a latent site, and its output the mean of the data."""
    shapes = {k: p.shape for k, p in net.named_parameters() if k not in frozen}

    def model(*inputs):
        values = {k: normal(k, *shape) for k, shape in shapes.items()}
        mean = functional_call(net, values, inputs)
        observe(mean)

    return model


def same_group(found: Symmetry, expected: Symmetry) -> str:
    """Empty where two symmetries are equal up to the names of atoms; otherwise the first difference in words."""
    forward: dict[str, str] = {}
    if set(found.sites) != set(expected.sites):
        return f"sites {sorted(found.sites)} instead of {sorted(expected.sites)}"
    for site in expected.sites:
        left, right = canonical(found.sites[site]), canonical(expected.sites[site])
        why = _differ(left, right, forward)
        if why:
            here, there = (tuple(map(str, s.sites[site])) for s in (found, expected))
            return f"{site}: {here} instead of {there} ({why})"
    if len(set(forward.values())) != len(forward):
        return f"two atoms of the answer are one: {forward}"
    for mine, theirs in forward.items():
        if mine in found.atoms and {forward.get(o, o) for o in found.atoms[mine].within} != set(
            expected.atoms[theirs].within
        ):
            return f"{mine} lies within {found.atoms[mine].within}, expected {expected.atoms[theirs].within}"
    return ""


def canonical(terms):
    """Axis terms as nested tuples of ``(kind, ...)``: atoms without their sizes, neighboring fixed parts joined."""
    return [_shape_of(t) for t in terms]


def _shape_of(term):
    if isinstance(term, Atom):
        if term.size == 1 or (term.fixed and not term.name):
            return ("fixed", axis_size(term))
        return ("atom", term.name, term.size, term.fixed, term.odd and not term.fixed)
    if isinstance(term, Product):
        return ("product", *[_shape_of(f) for f in term.factors])
    return ("sum", *[_shape_of(t) for t in term.terms])


def _differ(a, b, forward) -> str:
    if isinstance(a, list):
        return (
            "another number of axes"
            if len(a) != len(b)
            else next(filter(None, (_differ(x, y, forward) for x, y in zip(a, b, strict=True))), "")
        )
    if a[0] != b[0]:
        if {a[0], b[0]} == {"atom", "fixed"}:  # a fixed axis may carry a name, for what is nested in it
            atom = a if a[0] == "atom" else b
            return "" if atom[3] else f"{a} is not {b}"
        return f"{a} is not {b}"
    if a[0] == "fixed":
        return "" if a[1] == b[1] else f"sizes {a[1]} and {b[1]}"
    if a[0] == "atom":
        if a[2:] != b[2:] or forward.setdefault(a[1], b[1]) != b[1]:
            return f"{a} is not {b} ({forward})"
        return ""
    if len(a) != len(b):
        return f"{a} is not {b}"
    return next(filter(None, (_differ(x, y, forward) for x, y in zip(a[1:], b[1:], strict=True))), "")


from zoo import attention, conv, dense, mixtures, oddness, packed, priors, recurrent  # noqa: E402, F401
