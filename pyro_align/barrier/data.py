"""Reading the data of an evaluation: one call's arguments, or a stream of them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, RandomSampler

from pyro_align.errors import BarrierError
from pyro_align.model.guards import LOCK

BATCH = 1000  # data of a map-style `Dataset` at a time; a DataLoader has its own


@dataclass(frozen=True)
class Data:
    """A named data set: the arguments of the model's calls.

    Attributes:
        name: Its name.
        source: A tuple of arguments, a mapping of keyword arguments, or a re-iterable of such.
        kwargs: Keyword arguments of every call.
        streamed: Whether ``source`` is a re-iterable of batches.
    """

    name: str
    source: Any
    kwargs: Mapping[str, Any]
    streamed: bool = False

    def batches(self) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The arguments of each of the model's calls, ``(args, kwargs)``."""
        for item in _steady(self.source) if self.streamed else (self.source,):
            if isinstance(item, Mapping):
                yield (), {**item, **self.kwargs}
            elif isinstance(item, tuple | list):
                yield tuple(item), dict(self.kwargs)
            else:
                yield (item,), dict(self.kwargs)


def read_data(args: tuple[Any, ...], kwargs: Mapping[str, Any], evaluation: Any) -> list[Data]:
    """The data sets to evaluate on.

    Args:
        evaluation: Name -> tuple of arguments, mapping of keyword arguments, one tensor, or a re-iterable of these
            (a ``DataLoader``, a ``Dataset``, a list of tuples); or None.
    """
    if evaluation is None:
        return [Data("data", args, kwargs)]
    if args:
        raise BarrierError(
            "data are given twice, as positional arguments and as evaluation=; "
            "put all of them in evaluation={'train': (x, y), 'test': (xt, yt)}"
        )
    if not isinstance(evaluation, Mapping) or not evaluation:
        raise BarrierError(
            "evaluation= takes a mapping of names to data, such as {'train': (x, y)}; "
            f"got {type(evaluation).__name__}"
        )
    return [_read_one(str(name), source, kwargs) for name, source in evaluation.items()]


def digest(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """By which a batch is known again: the shapes and sums of its tensors."""
    tensors = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
    real = [t for t in tensors if not t.is_complex()]
    return repr([tuple(t.shape) for t in tensors] + [float(t.sum(dtype=torch.float64)) for t in real])


def _steady(source: Iterable[Any]) -> Iterator:
    """One pass over batches, with the same random state in every pass, which leaves that of the process alone.

    Augmentations and samplers draw from it, and so does a DataLoader for its workers; every tau must see the same data.
    """
    samplers = (source, getattr(source, "sampler", None), getattr(source, "batch_sampler", None))
    generators = [g for s in samplers if isinstance(g := getattr(s, "generator", None), torch.Generator)]
    before = [g.get_state() for g in generators]
    state, iterator = None, None
    try:
        while True:
            with LOCK:
                outside = _random_state()
                _set_random_state(state)
                try:
                    iterator = iter(source) if iterator is None else iterator
                    item = next(iterator, _END)
                finally:
                    state = _random_state()
                    _set_random_state(outside)
            if item is _END:
                return
            yield item
    finally:
        for generator, value in zip(generators, before, strict=True):
            generator.set_state(value)


_END = object()


def _random_state() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def _set_random_state(state: tuple[Any, ...] | None) -> None:
    """Sets the state of all three generators; None seeds them."""
    if state is None:
        torch.default_generator.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
    else:
        torch.set_rng_state(state[0])
        np.random.set_state(state[1])  # noqa: NPY002
        random.setstate(state[2])


def _read_one(name: str, source: Any, kwargs: Mapping[str, Any]) -> Data:
    if isinstance(source, Tensor):
        return Data(name, (source,), kwargs)
    if isinstance(source, tuple | Mapping):
        return Data(name, source, kwargs)
    if isinstance(source, Dataset) and not hasattr(source, "__iter__"):
        source = DataLoader(source, batch_size=BATCH)
    if isinstance(getattr(source, "sampler", None), RandomSampler):
        raise BarrierError(
            f"evaluation '{name}': this DataLoader shuffles, and every tau reads the data anew: figures of single data "
            "would not belong together; give DataLoader(dataset, batch_size, shuffle=False)"
        )
    if not hasattr(source, "__iter__"):
        raise BarrierError(
            f"evaluation '{name}': expected a tuple of the model's arguments, a mapping of its keyword arguments or a "
            f"re-iterable of such batches (a DataLoader), got {type(source).__name__}"
        )
    if isinstance(source, Iterator):
        raise BarrierError(
            f"evaluation '{name}': a {type(source).__name__} can be read only once, and every tau reads the data anew; "
            "give a list or a DataLoader"
        )
    return Data(name, source, kwargs, streamed=True)
