"""The domain of rotations: how a tensor follows when the dimensions of an atom are rotated.

A tensor in which an atom appears carries it in one of two states. As a *vector*, it is multiplied by the rotation along
every axis that carries the atom. As a *square*, its entries along the axis are products of the entries of two vectors,
and their sum is invariant. A tensor without the atom is invariant. What fits none of these ends the rotation. Where a
vector is summed, or a number added to all of its entries, only the rotations that leave the vector of ones as it is
remain: the rotation is *centered*.

The relabelings are known already: the terms of axes say where an atom appears, so views need no thought here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pyro_align.axes import Kind
from pyro_align.discovery.axes.inference import AxisTensor, Inference
from pyro_align.discovery.axes.terms import Cat, Term, Uniform, Var, resolve, size_of, variables
from pyro_align.discovery.constants import constant_axes
from pyro_align.discovery.registry import Registry, rotation_rule
from pyro_align.discovery.walk import Call, Constants, Domain

VECTOR, SQUARE = "vector", "square"
States = Mapping[Var, str]
Place = tuple[Any, ...]  # the path to a variable inside an axis


@dataclass(frozen=True, eq=False)
class RotationTensor:
    """A tensor in the graph, as a rule of rotations sees it.

    Attributes:
        axes: One term per axis.
        states: Variable that may be rotated -> :data:`VECTOR` or :data:`SQUARE`. No entry: the tensor is invariant.
        zero: Whether all entries are zero: it goes along with any rotation.
        dtype: Its dtype.
        constant: Returns the value of a tensor that depends on neither sites nor data, and None for any other.
    """

    axes: tuple[Term, ...]
    states: States = field(default_factory=dict)
    zero: bool = False
    dtype: torch.dtype = torch.float64
    constant: Callable[[], Tensor | None] = field(default=lambda: None)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.axes)


Operand = RotationTensor | float | int | bool | complex | None


@dataclass(frozen=True)
class Outcome:
    """What a rule says of an output: its states, or that it is zero."""

    states: States = field(default_factory=dict)
    zero: bool = False


class RotationCall(Call):
    """One operation of the graph: what a rule of rotations may ask and say."""

    def __init__(self, domain: RotationDomain, node: Node):
        super().__init__(node)
        self._domain = domain
        found = domain.inference.tensor_of(node)
        self.axes: list[tuple[Term, ...]] = [_terms(t) for t in (found if isinstance(found, list) else [found])]

    def end(self, *operands: Any) -> Outcome:
        """Ends the rotation of whatever the operands carry; returns the output that is then invariant."""
        for x in operands:
            if isinstance(x, RotationTensor):
                self._domain.broken.update(x.states)
        return Outcome()

    def center(self, found: Iterable[Var]) -> None:
        """Keeps only the rotations of some atoms that leave the vector of ones as it is."""
        self._domain.centered.update(found)

    def along(self, x: Operand, *others: Operand) -> Outcome:
        """A linear map of the first operand that leaves its atoms alone; the other operands must be invariant."""
        self.end(*others)
        return Outcome(x.states, x.zero) if isinstance(x, RotationTensor) else Outcome()

    def add(self, *operands: Operand) -> Outcome:
        """A sum, entry by entry: vectors with vectors; squares with squares, and with what is invariant."""
        if not any(self._domain.live(x) for x in operands):
            return Outcome()
        terms = [self._labeled(x) for x in operands if not _is_zero(x)]
        out = {}
        for var in {var for term in terms for var in term.states}:
            having = [(term.states[var], term.places[var]) for term in terms if var in term.states]
            if any(other != having[0] for other in having):
                self._domain.broken.add(var)
                continue
            out[var] = having[0][0]
            if len(having) < len(terms) and out[var] == VECTOR:
                self.center([var])
        return Outcome(out, zero=not terms)

    def multiply(self, *operands: Operand) -> Outcome:
        """A product, entry by entry: two vectors make a square."""
        if not any(self._domain.live(x) for x in operands):
            return Outcome()
        return self._product([self._labeled(x) for x in operands], None)

    def contract(self, left: RotationTensor, first: str, right: RotationTensor, second: str, out: str) -> Outcome:
        """A two-operand einsum: two vectors along a summed axis are an inner product."""
        if not (self._domain.live(left) or self._domain.live(right)):
            return Outcome()
        known = {c: t for x, labels in ((left, first), (right, second)) for c, t in zip(labels, x.axes, strict=True)}
        known.update({c: t for c, t in zip(out, self.axes[0], strict=False) if any(True for _ in variables(t))})
        return self._product([self._labeled(left, first, known), self._labeled(right, second, known)], out)

    def square(self, x: RotationTensor) -> Outcome:
        """The square of every entry."""
        return self.multiply(x, x)

    def total(self, x: RotationTensor, dims: Collection[int]) -> Outcome:
        """A sum along axes: that of squares is invariant, that of a vector to rotations that are centered."""
        self.center(v for v in x.states if x.states[v] == VECTOR and any(places(x.axes[d], v) for d in dims))
        return Outcome(x.states, x.zero)

    def carried(self, x: RotationTensor, dims: Iterable[int]) -> bool:
        """Whether any of some axes carries an atom that may be rotated."""
        return any(places(x.axes[d], var) for d in dims for var in x.states)

    def _product(self, factors: Sequence[_Labeled], out: str | None) -> Outcome:
        states = {}
        for var in {var for factor in factors for var in factor.states}:
            labels = {label for factor in factors for label in factor.places.get(var, ())}
            left = set()
            for label in labels:
                here = [(f.states[var], f.places[var][label]) for f in factors if label in f.places.get(var, ())]
                joint = _joint(here)
                if joint is None:
                    self._domain.broken.add(var)
                elif out is None or label in out:
                    left.add(joint)
                elif joint == VECTOR:
                    self.center([var])
            if len(left) > 1:
                self._domain.broken.add(var)
            elif left:
                states[var] = left.pop()
        return Outcome(states, zero=any(factor.zero for factor in factors))

    def _labeled(
        self, x: Operand, labels: Sequence[Any] | None = None, known: Mapping[Any, Term] | None = None
    ) -> _Labeled:
        """An operand with the places of its variables by label; without labels, axes count from the right."""
        if not isinstance(x, RotationTensor):
            return _Labeled({}, {}, _is_zero(x))
        labels = range(-x.ndim, 0) if labels is None else labels
        if known is None:
            known = dict(zip(range(-len(self.axes[0]), 0), self.axes[0], strict=True))
        axes, states = x.axes, self._domain.live(x)
        matrix = matrix_axes(x)
        if matrix is not None:
            axes, states = self._as_matrix(x, [labels[i] for i in matrix], matrix, known)
        found = {var: {} for var in states}
        for label, term in zip(labels, axes, strict=True):
            for var in states:
                if here := places(term, var):
                    found[var][label] = here
        return _Labeled(states, found, _is_zero(x))

    def _as_matrix(self, x, labels, axes, known) -> tuple[list[Term], dict[Var, str]]:
        """A constant matrix ``a I + b 11'`` follows rotations of both of its axes, centered ones if b is not 0."""
        terms = [resolve(known[label]) for label in labels if label in known]
        met = {v for t in terms for v in variables(t) if v in self._domain.candidates}
        value = x.constant()
        off = value[tuple(slice(None) if i in axes else 0 for i in range(value.dim()))][0, 1]
        if not met:
            return list(x.axes), {}
        if bool(off):
            self.center(met)
        term = next(t for t in terms if not met.isdisjoint(variables(t)))
        return [term if i in axes else t for i, t in enumerate(x.axes)], dict.fromkeys(met, VECTOR)


@dataclass(frozen=True)
class _Labeled:
    states: dict[Var, str]
    places: dict[Var, dict[Any, frozenset[Place]]]
    zero: bool


class RotationDomain(Domain):
    """States of tensors, from those of the sites."""

    candidates: frozenset[Var]  # variables that may be rotated until something ends it
    inference: Inference

    rules: Registry = rotation_rule

    def __init__(
        self,
        inference: Inference,
        candidates: Iterable[Var],
        real: Collection[str] | None = None,
        *,
        keep: bool = False,
    ):
        self.inference, self.candidates = inference, frozenset(candidates)
        self.broken: set[Var] = set()  # those of them whose rotation something ended
        # those of which only the rotations that leave the vector of ones as it is remain
        self.centered: set[Var] = set()
        self._real, self._keep = real, keep
        self.outputs: list[Any] = []

    def kind(self, var: Var) -> Kind:
        """Of the rotations that remain of a variable that is not broken."""
        return "centered rotation" if var in self.centered else "rotation"

    def live(self, x: Operand) -> dict[Var, str]:
        """The states of what an operand carries and still may be rotated."""
        states = x.states if isinstance(x, RotationTensor) else {}
        return {var: state for var, state in states.items() if var not in self.broken}

    def call(self, node: Node) -> RotationCall:
        return RotationCall(self, node)

    def site(self, name: str, value: Tensor) -> RotationTensor:
        axes = tuple(resolve(t) for t in self.inference.sites[name])
        states = {v: VECTOR for t in axes for v in variables(t) if v in self.candidates}
        if (self._real is not None and name not in self._real) or not value.is_floating_point():
            self.broken.update(states)
        return RotationTensor(axes, states, dtype=value.dtype)

    def data(self, value: Tensor) -> RotationTensor:
        return RotationTensor(tuple(Uniform(n) for n in value.shape), dtype=value.dtype)

    def constant(self, constants: Constants, node: Node, like: Tensor) -> RotationTensor:
        axes = tuple(Uniform(n) for n in like.shape)
        return RotationTensor(axes, dtype=like.dtype, constant=lambda: constants.value(node))

    def results(self, call: RotationCall, found: list[Any]) -> list[Any] | None:
        if any(value is None and shape is not None for value, shape in zip(found, call.shapes, strict=True)):
            return None
        out: list[RotationTensor | None] = []
        for outcome, axes, like, shape in zip(found, call.axes, call.outputs, call.shapes, strict=True):
            if shape is None:
                out.append(None)
                continue
            here = {v for t in axes for v in variables(t) if v in self.candidates}
            if not outcome.zero:
                self.broken.update(here - outcome.states.keys())
            states = {v: s for v, s in outcome.states.items() if v in here and v not in self.broken}
            out.append(RotationTensor(axes, states, outcome.zero, like.dtype))
        return out

    def without_rule(self, call: RotationCall, sources: Sequence[Any]) -> list[Any]:
        call.end(*sources)
        return self.results(call, [None if s is None else Outcome() for s in call.shapes])

    def finish(self, outputs: Sequence[Any], states: Mapping[str, Any]) -> None:
        self.outputs = list(outputs)
        for out in outputs:
            if isinstance(out, RotationTensor) and not self._keep:
                self.broken.update(out.states)
        for name, out in states.items():
            own = self.site(name, self.inference.traced.values[name])
            self.broken.update(v for v in own.states if out.states.get(v) != VECTOR)


def _joint(here: list[tuple[str, frozenset[Place]]]) -> str | None:
    """The state along one axis of a product, from those of the factors that carry the variable there."""
    if len(here) == 1:
        return here[0][0]
    alike = all(state == VECTOR and places == here[0][1] for state, places in here)
    return SQUARE if alike and len(here) == 2 else None


def places(term: Term, var: Var) -> frozenset[Place]:
    """Where a variable appears inside an axis."""
    if isinstance(term, Var):
        return frozenset([()]) if term is var else frozenset()
    if isinstance(term, Uniform):
        return frozenset()
    found, kind, at = set(), type(term), 0 if isinstance(term, Cat) else 1
    for part in term.terms if isinstance(term, Cat) else term.factors:
        found |= {((kind, at), *path) for path in places(part, var)}
        at = at + size_of(part) if isinstance(term, Cat) else at * size_of(part)
    return frozenset(found)


def matrix_axes(x: RotationTensor) -> tuple[int, int] | None:
    """The two axes of a constant ``a I + b 11'``, uniform along all others; None for any other tensor."""
    if x.ndim < 2 or (value := x.constant()) is None:
        return None
    shape = [n for n in value.shape if n > 1]
    if len(set(shape)) == len(shape):
        return None
    shared = [i for i, t in enumerate(constant_axes(value)) if isinstance(t, Var) and not t.fixed]
    return (shared[0], shared[1]) if len(shared) == 2 else None


def _is_zero(x: Operand) -> bool:
    if not isinstance(x, RotationTensor):
        return x is None or x == 0
    value = None if x.zero else x.constant()
    return x.zero or (value is not None and not bool(value.any()))


def _terms(tensor: AxisTensor | None) -> tuple[Term, ...]:
    return () if tensor is None else tuple(resolve(t) for t in tensor.axes)
