"""Discrete latents summed out exactly: sum-product contraction in log space that ``torch.func`` can transform.

As an ``opt_einsum`` backend this module offers ``einsum``, ``tensordot`` and ``transpose``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import pyro
import torch
from pyro.ops.contract import contract_tensor_tree, contract_to_tensor
from pyro.ops.einsum.util import Tensordot
from pyro.ops.packed import pack
from pyro.ops.rings import LogRing
from torch import Tensor

from pyro_align.errors import TraceError
from pyro_align.model.forward import Message, Records, masked_log_prob


def transpose(a: Tensor, axes: Iterable[int]) -> Tensor:
    """The array with its axes reordered."""
    return a.permute(tuple(axes))


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Log-sum-exp over the symbols that the output lacks, of the broadcast sum of the operands."""
    inputs, output = equation.split("->")
    inputs = inputs.split(",")
    summed = "".join(dict.fromkeys(s for dims in inputs for s in dims if s not in output))
    layout = summed + output
    first, *others = (_laid_out(a, dims, layout) for a, dims in zip(operands, inputs, strict=True))
    total = sum(others, first)
    return total.logsumexp(tuple(range(len(summed)))) if summed else total


tensordot: Tensordot = Tensordot(einsum)


def _laid_out(a: Tensor, dims: str, layout: str) -> Tensor:
    present = [s for s in layout if s in dims]
    sizes = dict(zip(dims, a.shape, strict=True))
    return a.permute([dims.index(s) for s in present]).reshape([sizes.get(s, 1) for s in layout])


class _Ring(LogRing):
    _backend = __name__


@dataclass
class Component:
    """Sites that must be summed over together, as they share discrete latents."""

    latent: list[str]  # latent sites, the discrete ones among them
    data: list[str]
    # names of the plates that all of them share: given the other latents, its cells are independent
    plates: frozenset[str]


class Enumerated:
    """A run's log densities with the discrete latents summed out exactly."""

    def __init__(self, records: Records):
        self.records = records  # a run with enumeration
        trace = records.trace
        trace.symbolize_dims()
        self._plates: dict[str, str] = trace.plate_to_symbol
        self._summed = set(trace.symbol_to_dim) - set(self._plates.values())
        messages = {**records.latent, **records.data, **records.factors}
        self._factors = {name: self._packed(m, masked_log_prob(m)) for name, m in messages.items()}
        self._symbols = {name: self._summed.intersection(f._pyro_dims) for name, f in self._factors.items()}
        self._messages = messages
        # sites whose density depends on a discrete latent
        self.depends: frozenset[str] = frozenset(name for name, symbols in self._symbols.items() if symbols)
        # groups of sites that share discrete latents; sites that depend on none are in no group
        self.components: list[Component] = self._components(messages)

    def _packed(self, message: Message, value: Tensor) -> Tensor:
        try:
            # a view, as a tensor that the distribution keeps must not be marked as packed
            return pack(value[...], message["infer"]["_dim_to_symbol"])
        except ValueError as error:
            raise TraceError(
                f"site '{message['name']}': shape {tuple(value.shape)} of its log density has dims that are neither "
                f"plates nor discrete latents, whose states cannot be told apart from data then; declare them with "
                "pyro.plate"
            ) from error

    def _components(self, messages) -> list[Component]:
        groups: list[tuple[set[str], list[str]]] = []
        for name in messages:
            if name not in self.depends:
                continue
            symbols, names = set(self._symbols[name]), [name]
            for other in [g for g in groups if g[0] & symbols]:
                groups.remove(other)
                symbols, names = symbols | other[0], other[1] + names
            groups.append((symbols, names))
        found = []
        for _, names in groups:
            data = [n for n in names if n in self.records.data]
            plates = frozenset.intersection(*(plates_of(messages[n]) for n in names))
            found.append(Component([n for n in names if n not in data], data, plates))
        return found

    def log_prob(self, names: Iterable[str], plates: Collection[str] = ()) -> Tensor:
        """Log of the sum over the discrete latents of the product of the sites' densities, scales left out, in nats.

        The sites are whole components or the latent sites of some; ``plates`` are kept, from left to right.
        """
        layout = "".join(self._plates[p] for p in plates)
        with pyro.validation_enabled(False):
            contracted = contract_tensor_tree(self._tree(names), self._summed, ring=_Ring(cache={}))
        terms = [self._kept(term, layout) for terms in contracted.values() for term in terms]
        frames = {f.name: f.size for m in self._messages.values() for f in m["cond_indep_stack"] if f.vectorized}
        sizes = [frames[p] for p in plates]
        return sum((t.expand(sizes) for t in terms[1:]), terms[0].expand(sizes))

    def _kept(self, term: Tensor, layout: str) -> Tensor:
        drop = [i for i, symbol in enumerate(term._pyro_dims) if symbol not in layout]
        dims = "".join(s for s in term._pyro_dims if s in layout)
        return _laid_out(term.sum(drop) if drop else term, dims, layout)

    def total(self, bumps: dict[str, Tensor] | None = None) -> Tensor:
        """The scaled log joint of all sites, a scalar; ``bumps`` are added to the log densities of the sites named."""
        bumps = bumps or {}
        factors = {}
        for name, message in self._messages.items():
            value = masked_log_prob(message, message["scale"])
            factors[name] = self._packed(message, value + bumps[name] if name in bumps else value)
        with pyro.validation_enabled(False):
            return contract_to_tensor(self._tree(factors, factors), self._summed, ring=_Ring(cache={}))

    def scale(self, component: Component, scales: Iterable[float | Tensor]) -> float | Tensor:
        """The one scale of a component's sites."""
        scales = list(scales)
        first, alike = scales[0], isinstance(scales[0], int | float)
        if any(a is not first and not (alike and isinstance(a, int | float) and a == first) for a in scales):
            raise TraceError(
                f"sites {component.latent + component.data} share a discrete latent, and are scaled differently; put "
                "all of them under one poutine.scale"
            )
        return first

    def mean(self, name: str, value: Tensor, event_dims: int) -> Tensor:
        """The average of what depends on a site's discrete latents, over these latents given all other ones.

        ``(*batch, *event)`` with the site's batch dims becomes ``(*batch, *event)`` without the dims of the latents.
        """
        keep = "".join(sorted(self._symbols[name]))
        if not keep:
            return value
        message = self._messages[name]
        component = next(c for c in self.components if name in c.data or name in c.latent)
        plates = sorted((f for f in message["cond_indep_stack"] if f.vectorized), key=lambda f: f.dim)
        layout = "".join(self._plates[f.name] for f in plates)
        ring = _Ring(cache={}, dim_to_size={self._plates[f.name]: f.size for f in plates})
        with pyro.validation_enabled(False):
            weights = contract_to_tensor(
                self._tree(component.latent), self._summed, frozenset(layout), set(keep), ring=ring
            )
        over = tuple(range(len(keep)))
        weights = _laid_out(weights, weights._pyro_dims, keep + layout)
        weights = (weights - weights.logsumexp(over, keepdim=True)).exp()
        batch, event = value.shape[: value.dim() - event_dims], value.shape[value.dim() - event_dims :]
        entries = [self._packed(message, entry) for entry in value.reshape(*batch, -1).unbind(-1)]
        laid = [_laid_out(entry, entry._pyro_dims, keep + layout) for entry in entries]
        averaged = torch.stack([(weights * entry).sum(over) for entry in laid], -1)
        shape = [1] * -min((f.dim for f in plates), default=0)
        for f in plates:
            shape[f.dim] = f.size
        return averaged.reshape(*shape, *event)

    def _tree(self, names: Iterable[str], factors: Mapping[str, Tensor] | None = None) -> OrderedDict:
        """The sites' log densities by their plates, as Pyro's contractions want them."""
        tree: OrderedDict[frozenset, list[Tensor]] = OrderedDict()
        for name in names:
            ordinal = frozenset(self._plates[p] for p in plates_of(self._messages[name]))
            tree.setdefault(ordinal, []).append((self._factors if factors is None else factors)[name])
        return tree


def plates_of(message: Message) -> frozenset[str]:
    return frozenset(f.name for f in message["cond_indep_stack"] if f.vectorized)
