"""From a graph's terms, read as says more, to a Symmetry: atoms get names, what is fixed is folded together."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pyro_align.axes import Atom, Axis, Fixed, Product, Sum
from pyro_align.discovery.axes.inference import Inference
from pyro_align.discovery.axes.nesting import nested
from pyro_align.discovery.axes.reasons import opaque_of, reasons_of
from pyro_align.discovery.axes.terms import Cat, Term, Uniform, Var, is_fixed, resolve, size_of, variables
from pyro_align.discovery.rolling import rolled
from pyro_align.discovery.tracing import TracedGraph
from pyro_align.errors import SymmetryError
from pyro_align.symmetry.group import Symmetry

_SUFFIX = re.compile(r"[._](weight|bias|scale|loc)$")


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


def assemble(inference: Inference, *, scope: str) -> Symmetry:
    """Names the free variables that the sites carry and writes every axis as a term over them."""
    atoms, sites = name_atoms(inference)
    axes = {name: write_axes(terms, atoms) for name, terms in sites.items()}
    reasons = reasons_of(sites, atoms, inference.read)
    return Symmetry(axes, scope=scope, opaque=opaque_of(reasons, inference.kin), reasons=reasons)


def write_axes(terms: Sequence[Term], atoms: Mapping[Var, Atom]) -> tuple[Axis, ...]:
    """Inferred terms as axis terms over named atoms; variables without a name keep their order."""
    return tuple(_axis(resolve(t), atoms) for t in terms)


def name_atoms(inference: Inference) -> tuple[dict[Var, Atom], dict[str, list[Term]]]:
    """The atom of each variable that sites carry and that may move, or in which another is nested; and the sites."""
    if inference.named is None:
        inference.named = _named(inference)
    return inference.named


def _named(inference: Inference) -> tuple[dict[Var, Atom], dict[str, list[Term]]]:
    sites = {name: [resolve(t) for t in axes] for name, axes in inference.sites.items()}
    carried = list(dict.fromkeys(v for axes in sites.values() for t in axes for v in variables(t) if v.size > 1))
    rank = {v: i for i, v in enumerate([v for v in carried if v.fixed] + [v for v in carried if not v.fixed])}
    within = nested(inference.tensors, rank)
    outer = {o for around in within.values() for o in around}
    names = _names(sites, {v for v in carried if not v.fixed or v in outer})
    atoms = {
        v: Atom(name, v.size, fixed=v.fixed, within=() if v.fixed else tuple(names[o] for o in within.get(v, ())))
        for v, name in names.items()
    }
    return atoms, sites


def _axis(term: Term, atoms: Mapping[Var, Atom]) -> Axis:
    if is_fixed(term) and not any(v in atoms for v in variables(term)):
        return Fixed(size_of(term))
    if isinstance(term, Var):
        return atoms.get(term) or Fixed(term.size)
    if isinstance(term, Uniform):
        return Fixed(term.size)
    if isinstance(term, Cat):
        return Sum(*_joined([_axis(t, atoms) for t in term.terms], sum))
    factors = _joined([_axis(f, atoms) for f in term.factors], math.prod)
    return factors[0] if len(factors) == 1 else Product(*factors)


def _joined(parts: list[Axis], combine) -> list[Axis]:
    """Neighboring anonymous fixed parts become one."""
    out: list[Axis] = []
    for part in parts:
        anonymous = isinstance(part, Atom) and not part.name
        if anonymous and out and isinstance(out[-1], Atom) and not out[-1].name:
            out[-1] = Fixed(combine([out[-1].size, part.size]))
        else:
            out.append(part)
    return out


def _names(sites: dict[str, list[Term]], wanted: set[Var]) -> dict[Var, str]:
    """A name for each variable: that of the first site whose leading axis it is, alone if there is one."""
    occurrences: dict[Var, list[_Occurrence]] = {}
    for site, axes in sites.items():
        for axis, term in enumerate(axes):
            leaves = list(dict.fromkeys(variables(term)))
            for leaf, var in enumerate(leaves):
                occurrences.setdefault(var, []).append(_Occurrence(site, axis, leaf if len(leaves) > 1 else None))
    names: dict[Var, str] = {}
    for var, found in occurrences.items():
        if var in wanted:
            best = min(found, key=lambda o: (o.axis > 0, o.axis == 0 and o.leaf is not None))
            names[var] = unique_name(best.name, names.values())
    return names


@dataclass(frozen=True)
class _Occurrence:
    """Where a variable appears: which axis of a site, and which variable of the axis if there are several."""

    site: str
    axis: int
    leaf: int | None

    @property
    def name(self) -> str:
        base = _SUFFIX.sub("", self.site)
        axis = f"[{self.axis}]" if self.axis else ""
        return f"{base}{axis}" + ("" if self.leaf is None else f"/{self.leaf}")


def unique_name(name: str, taken: Collection[str]) -> str:
    """The name, or the first of ``name:2``, ``name:3``, ... that is not taken."""
    numbered = (f"{name}:{k}" for k in itertools.count(2))
    return next(candidate for candidate in itertools.chain([name], numbered) if candidate not in taken)
