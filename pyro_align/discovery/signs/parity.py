"""Parities of tensors: which entries change sign together, as linear algebra over GF(2).

A *flip* is a binary unknown: "this site changes sign along that axis when a unit does". The parity of an entry of a
tensor in the graph is a sum of flips, modulo two: the entry changes sign where the sum is odd. Sums are Python
integers, one bit a flip. A tensor's entries share few parities, so a tensor holds numbers of parities, and an operation
works on the table of those numbers, not on the entries.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

ZERO, EVEN = 0, 1  # numbers of two parities: of an entry that is zero, for which any will do; of one that never flips


def on_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """Parities live on the host, wherever the model's tensors do, and whatever the default device is."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        if torch.empty(0).device.type == "cpu":  # the context below slows every operation in it
            return function(*args, **kwargs)
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return run


class Equations:
    """Linear equations over GF(2) in reduced row echelon form; an equation is the set of flips that sum to zero."""

    none = 0  # the sum of no flips

    def __init__(self):
        self.rows: dict[int, int] = {}

    @staticmethod
    def plus(a: int, b: int) -> int:
        """The sum of two sums."""
        return a ^ b

    minus = plus

    def reduce(self, flips: int) -> int:
        """The same sum, written with free unknowns only."""
        for pivot, row in self.rows.items():
            if flips >> pivot & 1:
                flips ^= row
        return flips

    def require(self, flips: int) -> None:
        """Adds the equation that a sum is even."""
        flips = self.reduce(flips)
        if not flips:
            return
        pivot = flips.bit_length() - 1
        for other, row in self.rows.items():
            if row >> pivot & 1:
                self.rows[other] = row ^ flips
        self.rows[pivot] = flips

    def solutions(self, count: int) -> list[int]:
        """A basis of the assignments of ``count`` unknowns that satisfy every equation."""
        basis = []
        for free in (k for k in range(count) if k not in self.rows):
            vector = 1 << free
            for pivot, row in self.rows.items():
                if row >> free & 1:
                    vector |= 1 << pivot
            basis.append(vector)
        return basis


EXHAUSTIVE = 10  # dimensions of a space of solutions up to which all are compared


def bits_of(turned: Sequence[Tensor]) -> int:
    """Entries that are turned, as the bits of one number: all tensors one after the other."""
    return int.from_bytes(np.packbits(torch.cat([t.flatten() for t in turned]).numpy()).tobytes(), "big")


class Parities:
    """The table of parities met so far, and what operations require of them."""

    def __init__(self, equations: Any = None):
        # what has been required; it says what a sum of flips is, and how two of them add up
        self.equations: Any = Equations() if equations is None else equations
        none = self.equations.none
        self.sums: list[Any] = [none, none]  # number of a parity -> its sum of flips
        self._numbers: dict[Any, int] = {none: EVEN}

    def number(self, flips: Any) -> int:
        """The number of a sum of flips."""
        flips = self.equations.reduce(flips)
        if flips not in self._numbers:
            self._numbers[flips] = len(self.sums)
            self.sums.append(flips)
        return self._numbers[flips]

    # -- what one or two entries give ------------------------------------------------------------------------------

    def _hold(self, a: int) -> int:
        if a != ZERO:
            self.equations.require(self.sums[a])
        return EVEN

    def _add(self, a: int, b: int) -> int:
        if a == ZERO or b == ZERO:
            return a or b
        self.equations.require(self.equations.minus(self.sums[a], self.sums[b]))
        return a

    def _multiply(self, a: int, b: int) -> int:
        return ZERO if a == ZERO or b == ZERO else self.number(self.equations.plus(self.sums[a], self.sums[b]))

    # -- the same for tensors --------------------------------------------------------------------------------------

    def hold(self, x: Tensor) -> Tensor:
        """Requires that no entry changes sign."""
        return self._unary(x, self._hold)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """Requires that entries that are added change sign together; zeros go along with anything."""
        for one, other in ((a, b), (b, a)):
            if _is_one_number(one) and int(_any(one)) == ZERO:
                return other.expand(torch.broadcast_shapes(a.shape, b.shape))
        return self._binary(a, b, self._add)

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        """Entrywise products."""
        for one, other in ((a, b), (b, a)):
            if _is_one_number(one) and int(_any(one)) == EVEN:
                return other.expand(torch.broadcast_shapes(a.shape, b.shape))
        return self._binary(a, b, self._multiply)

    def alike(self, x: Tensor, dims: Sequence[int]) -> Tensor:
        """Requires that entries along some axes change sign together; the axes keep size one."""
        dims = [d for d in dims if x.shape[d] != 1]
        if not dims:
            return x
        if not x.numel():
            shape = [1 if d in dims else n for d, n in enumerate(x.shape)]
            return torch.full((), ZERO, dtype=x.dtype).expand(shape)
        collapsed = _collapsed(x)
        first = collapsed.amax(dims, keepdim=True)  # a number of one entry that is not zero, if there is one
        if collapsed.shape != first.shape:
            self._binary(collapsed, first, self._add)
        return first.expand([1 if d in dims else n for d, n in enumerate(x.shape)])

    def multiply_along(self, x: Tensor, dims: Sequence[int]) -> Tensor:
        """Products along some axes, which keep size one."""
        for dim in dims:
            parts = x.split(1, dim)
            x = (
                parts[0]
                if parts
                else torch.full((), EVEN, dtype=x.dtype).expand([1 if d == dim else n for d, n in enumerate(x.shape)])
            )
            for part in parts[1:]:
                x = self.multiply(x, part)
        return x

    def contract(self, left: Tensor, left_labels: str, right: Tensor, right_labels: str, out: str) -> Tensor:
        """Sums of products, as an einsum: the terms of every sum must change sign together."""
        inverse: dict[str, Tensor] = {}
        for label in dict.fromkeys(left_labels + right_labels):
            places = [
                (x, labels.index(label))
                for x, labels in ((left, left_labels), (right, right_labels))
                if label in labels
            ]
            chosen, inverse[label] = _classes(places)
            if label in left_labels:
                left = left.index_select(left_labels.index(label), chosen)
            if label in right_labels:
                right = right.index_select(right_labels.index(label), chosen)
        labels = "".join(inverse)
        terms = self.multiply(_lined_up(left, left_labels, labels), _lined_up(right, right_labels, labels))
        total = self.alike(terms, [i for i, label in enumerate(labels) if label not in out])
        total = _lined_up(
            total.squeeze([i for i, label in enumerate(labels) if label not in out]),
            "".join(c for c in labels if c in out),
            out,
        )
        for i, label in enumerate(out):
            if total.shape[i] == 1:
                total = total.expand([len(inverse[label]) if j == i else n for j, n in enumerate(total.shape)])
            else:
                total = total.index_select(i, inverse[label])
        return total

    def _unary(self, x: Tensor, function: Callable[[int], int]) -> Tensor:
        small = _collapsed(x)
        if small.numel() == 1:
            return torch.full((), function(int(small)), dtype=x.dtype).expand(x.shape)
        table = torch.zeros(len(self.sums), dtype=x.dtype)
        for k in torch.bincount(small.flatten(), minlength=len(self.sums)).nonzero().flatten().tolist():
            table[k] = function(k)
        return table[small.long()].expand(x.shape)

    def _binary(self, a: Tensor, b: Tensor, function: Callable[[int, int], int]) -> Tensor:
        a, b = torch.broadcast_tensors(a, b)
        shape = a.shape
        if 0 in shape:
            return torch.full((), EVEN, dtype=a.dtype).expand(shape)
        a, b = _collapsed(a), _collapsed(b)
        count = len(self.sums)
        keys = a.long() * count + b
        if count * count <= 16 * keys.numel():  # a table of all pairs is smaller than the work of sorting
            found, places = torch.bincount(keys.flatten(), minlength=count * count).nonzero().flatten(), keys
        else:
            found, places = keys.unique(return_inverse=True)
        values = torch.tensor([function(k // count, k % count) for k in found.tolist()], dtype=a.dtype)
        if places is keys:
            values = torch.zeros(count * count, dtype=a.dtype).index_put_((found,), values)
        return values[places].expand(shape)


def _any(x: Tensor) -> Tensor:
    return x[(0,) * x.dim()] if x.numel() else torch.tensor(EVEN)


def _is_one_number(x: Tensor) -> bool:
    """Whether a tensor is one number, expanded."""
    return all(s == 0 or n == 1 for s, n in zip(x.stride(), x.shape, strict=True))


def _collapsed(x: Tensor) -> Tensor:
    """The tensor without the copies along expanded axes, which keep size one."""
    for dim, (stride, n) in enumerate(zip(x.stride(), x.shape, strict=True)):
        if stride == 0 and n > 1:
            x = x.narrow(dim, 0, 1)
    return x


def _lined_up(x: Tensor, labels: str, wanted: str) -> Tensor:
    """Axes in the order of ``wanted``; those that are not there have size one."""
    x = x.permute([labels.index(c) for c in wanted if c in labels])
    return x[tuple(slice(None) if c in labels else None for c in wanted)]


def _classes(places: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """``(one index of each class, class of each index)`` of the indices of an axis at which all tensors are equal."""
    n = max(x.shape[dim] for x, dim in places)
    rows = []
    for x, dim in places:
        small = _collapsed(x).movedim(dim, 0)
        if small.shape[0] == n and n > 1:  # an axis along which a tensor is expanded tells nothing apart
            rows.append(small.reshape(n, -1))
    if not rows:
        return torch.zeros(min(n, 1), dtype=torch.long), torch.zeros(n, dtype=torch.long)
    _, inverse = torch.cat(rows, 1).unique(dim=0, return_inverse=True)
    count = int(inverse.max()) + 1
    first = torch.full((count,), n, dtype=torch.long).scatter_reduce(0, inverse, torch.arange(n), "amin")
    return first, inverse
