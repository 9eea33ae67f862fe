"""Which axes of which sites change sign with a unit: one walk over the graph, and linear equations."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from pyro_align.action import plan
from pyro_align.axes import Axis, leaves, map_atoms
from pyro_align.discovery.infer import Inference
from pyro_align.discovery.signs.call import SignCall, SignTensor, Unsupported, ids_of_constant
from pyro_align.discovery.signs.parity import EVEN, Equations, Parities
from pyro_align.discovery.signs.registry import find_sign_rule
from pyro_align.symmetry import Symmetry


@dataclass(frozen=True)
class Place:
    """One occurrence of an atom: a leaf of an axis of a site.

    Attributes:
        site: Site name.
        axis: Which axis.
        leaf: Which leaf of the axis's term, from the left.
    """

    site: str
    axis: int
    leaf: int


class SignAnalysis:
    """Walks a traced graph with one unit of every atom turned, at every place that it has.

    Relabellings are symmetries already, so what holds for one unit of an atom holds for all of them. A unit of a nested
    atom is one for each index of the outer atoms; outer atoms that keep their order may treat it differently.

    Attributes:
        places: Free atom -> its places at sites that may change sign.
        equations: What the graph requires of all flips.
    """

    def __init__(self, inference: Inference, symmetry: Symmetry, real: Sequence[str]):
        self.symmetry, self._inference = symmetry, inference
        self._traced = inference.traced
        self.places: dict[str, list[Place]] = {name: [] for name in symmetry.atoms}
        for site in (s for s in symmetry.sites if s in set(real)):
            for axis, term in enumerate(symmetry.sites[site]):
                for k, leaf in enumerate(leaves(term)):
                    if leaf.name in self.places:
                        self.places[leaf.name].append(Place(site, axis, k))
        self.units = {name: list(self._units_of(name)) for name in symmetry.atoms}
        self._flips: dict[tuple[str, tuple[int, ...], Place], int] = {}
        for name, found in self.places.items():
            for unit, place in itertools.product(self.units[name], found):
                self._flips[name, unit, place] = len(self._flips)
        self._parities = Parities()
        self._walk()

    @property
    def equations(self) -> Equations:
        """What the graph requires of all flips."""
        return self._parities.equations

    def solutions(self, atom: str) -> list[int]:
        """A basis of the ways in which a unit of an atom may change sign: one bit for each of its ``places``."""
        found = self.places[atom]
        alone = Equations()
        for unit in self.units[atom]:
            bits = [self._flips[atom, unit, place] for place in found]
            for row in self.equations.rows.values():  # the flips of all other units are none
                alone.require(sum(1 << i for i, bit in enumerate(bits) if row >> bit & 1))
        return alone.solutions(len(found))

    def _units_of(self, atom: str) -> Iterator[tuple[int, ...]]:
        """One index tuple ``(*outer, 0)`` for each choice of the outer atoms that keep their order."""
        outer = [self.symmetry._all_atoms[o] for o in self.symmetry.atoms[atom].within]
        yield from ((*o, 0) for o in itertools.product(*(range(a.size if a.fixed else 1) for a in outer)))

    # -- the graph -------------------------------------------------------------------------------------------------

    def _walk(self) -> None:
        env: dict[Node, object] = {}
        last = _last_uses(self._traced.module.graph)
        for node in self._traced.module.graph.nodes:
            if node.op == "output":
                self._finish(node, env)
                continue
            env[node] = self._visit(node, env)
            for source in last.get(node, ()):
                del env[source]

    def _visit(self, node: Node, env: Mapping[Node, object]):
        site = self._inference.site_of(node)
        if site is not None:
            return SignTensor(self._ids_of_site(site), self._traced.values[site].dtype)
        if self._inference.is_constant(node):
            return self._constant(node)
        meta = node.meta.get("val")
        if node.op == "placeholder":
            return SignCall(self._parities, node).even(self._traced.data[node].shape)
        if node.target is operator.getitem:
            return env[node.args[0]][node.args[1]]
        return self._apply(node, env, meta)

    def _apply(self, node: Node, env: Mapping[Node, object], meta):
        call = SignCall(self._parities, node)
        rule = find_sign_rule(node.target)
        out = None
        if rule is not None:
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
            try:
                out = rule(call, *args, **kwargs)
            except Unsupported:
                out = None
        if out is None:
            call.hold(*pytree.tree_leaves([env[source] for source in node.all_input_nodes]))
            out = [None if s is None else call.even(s) for s in call.shapes]
            out = out if call.several else out[0]
        results = list(out) if call.several else [out]
        for k, (value, like, shape) in enumerate(zip(results, call.outputs, call.shapes, strict=True)):
            if shape is None:
                continue
            assert tuple(value.shape) == shape, f"the rule of signs of {node.target} gave {tuple(value.shape)} for {shape}"
            results[k] = replace(value, dtype=like.dtype)
        return results if call.several else results[0]

    def _constant(self, node: Node):
        meta = node.meta.get("val")
        return _Constant(self._inference, node, meta) if isinstance(meta, Tensor) else meta

    def _ids_of_site(self, site: str) -> Tensor:
        shape = self._traced.values[site].shape
        ids = torch.full((), EVEN, dtype=torch.int32).expand(shape)
        for (atom, unit, place), bit in self._flips.items():
            if place.site == site:
                turned = self.turned(place, atom, unit)
                ids = self._parities.multiply(ids, torch.where(turned, self._parities.number(1 << bit), EVEN).to(torch.int32))
        return ids

    def turned(self, place: Place, atom: str, unit: tuple) -> Tensor:
        """Which entries of a site a unit (or, by slices, several) turns at one place; stretched axes have size one."""
        terms = list(self.symmetry.sites[place.site])
        terms = [marked(t, [axis == place.axis and k == place.leaf for k, _ in enumerate(leaves(t))]) for axis, t in enumerate(terms)]
        signs = torch.ones(*self.symmetry.outer_shape(atom), self.symmetry.atoms[atom].size, dtype=torch.int8)
        signs[unit] = -1
        sign = torch.ones([1] * len(terms), dtype=torch.int8)
        for _, _, factor in plan(terms, {}, {atom: signs}):
            sign = sign if factor is None else sign * factor
        return sign < 0

    def entries(self, place: Place, atom: str) -> float:
        """How many entries of a site one unit turns at one place."""
        turned = self.turned(place, atom, self.units[atom][0])
        return float(turned.double().mean()) * self._traced.values[place.site].numel()

    def _finish(self, node: Node, env: Mapping[Node, object]) -> None:
        outputs = [n for n in pytree.tree_leaves(node.args) if isinstance(n, Node)]
        states = self._traced.states
        for source in outputs[: len(outputs) - len(states)]:
            if isinstance(env[source], SignTensor):
                self._parities.hold(env[source].ids)
        for source, name in zip(outputs[len(outputs) - len(states) :], states, strict=True):
            self._parities.add(env[source].ids, self._ids_of_site(name))


class _Constant(SignTensor):
    """A constant, whose values are looked at only when something that is not constant meets it."""

    def __init__(self, inference: Inference, node: Node, like: Tensor):
        object.__setattr__(self, "_inference", inference)
        object.__setattr__(self, "_node", node)
        object.__setattr__(self, "_like", like)
        object.__setattr__(self, "dtype", like.dtype)

    def constant(self) -> Tensor:  # type: ignore[override]
        return self._inference.fold(self._node)

    @property
    def ids(self) -> Tensor:  # type: ignore[override]
        return ids_of_constant(self.constant())

    @property
    def shape(self) -> torch.Size:
        return self._like.shape

    @property
    def ndim(self) -> int:
        return self._like.dim()


def marked(term: Axis, odd: Sequence[bool]) -> Axis:
    """The term with its leaves made odd or not, from left to right."""
    flags = iter(odd)
    return map_atoms(term, lambda atom: replace(atom, odd=next(flags)))


def _last_uses(graph) -> dict[Node, list[Node]]:
    """Node -> the nodes whose values are not needed after it."""
    last: dict[Node, Node] = {}
    for node in graph.nodes:
        for source in node.all_input_nodes:
            last[source] = node
    out: dict[Node, list[Node]] = {}
    for source, node in last.items():
        if node.op != "output":
            out.setdefault(node, []).append(source)
    return out
