"""The open verbs: reading a guide, relabeling a guide, and telling two guides apart.

A reader is registered for one concrete type. A subclass does not inherit it: ``AutoIAFNormal`` is an ``AutoContinuous``
and stores something else.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_align.errors import DiagnosticWarning, GuideError
from pyro_align.guides.posterior import Posterior
from pyro_align.guides.pyro_state.modules import own_tensors
from pyro_align.guides.relabel import mixed_axis
from pyro_align.model.keywords import options_apart
from pyro_align.symmetry.group import Symmetry

Reader = Callable[..., Posterior]


# By exact type, as dispatch that follows inheritance would misread subclasses; by name for packages not imported here.
_RULES: dict[type[Any] | str, Reader] = {}
_RUNNING: set[Reader] = set()  # readers that run the guide, and so take its arguments


def register_guide(*types: type[Any] | str, runs: bool = False) -> Callable[[Reader], Reader]:
    """Registers a reader ``guide -> Posterior`` for concrete guide types; subclasses need a registration of their own.

    Args:
        types: The types, or their names, ``"module.qualname"``, so that their package need not be there. ``object``
            stands for all that have no rule.
        runs: Whether the reader runs the guide: it is then called with the guide's arguments, ``reader(guide, *args)``.

    Example:
        >>> from pyro_align.guides import register_guide, read_guide
        >>> class Mine:
        ...     pass
        >>> @register_guide(Mine)
        ... def read_mine(guide):
        ...     raise NotImplementedError
    """

    def register(reader: Reader) -> Reader:
        _RULES.update(dict.fromkeys(types, reader))
        if runs:
            _RUNNING.add(reader)
        return reader

    return register


def registered_guides() -> tuple[type[Any], ...]:
    """The guide types that have a rule."""
    return tuple(cls for cls in _RULES if isinstance(cls, type) and cls not in (object, nn.Module))


@options_apart
def read_guide(guide: Any, *args: Any, labels: Mapping[str, str | None] | None = None, **kwargs: Any) -> Posterior:
    """A snapshot of a guide that owns its tensors; the guide and the param store stay as they are.

    The values are those of the guide's own parameters, also where the param store has been cleared, scoped or filled by
    another guide since.

    Args:
        guide: A guide of a registered type; or any other, which is wrapped (:func:`~pyro_align.wrap_guide`); or a
            plain network, a point mass at its parameters; or a :class:`Posterior`, which is returned as it is.
        args: Arguments of the guide, for those that can be read only by running them.
        labels: For guides with discrete sites: site -> the atom whose units its values number (a mixture's
            assignments, say), or None where they number none.
        kwargs: Keyword arguments of the guide.

    Raises:
        GuideError: The guide is untrained, its parameters are NaN or infinite, or it does not run with the arguments.

    Example:
        >>> from pyro_align.guides import read_guide
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal, init_to_sample
        >>> def model():
        ...     pyro.sample("w", dist.Normal(0.0, 1.0).expand([6, 2]).to_event(2))
        >>> with pyro.get_param_store().scope():
        ...     guide = AutoNormal(model, init_loc_fn=init_to_sample)
        ...     _ = guide()
        >>> posterior = read_guide(guide)
        >>> {site: tuple(draws.shape) for site, draws in posterior.push(posterior.noise(5)).items()}
        {'w': (5, 6, 2)}
    """
    if isinstance(guide, Posterior):
        return guide.with_labels(labels) if labels else guide
    _warn_if_stale(guide)
    cls = type(guide)
    reader = _RULES.get(cls) or _RULES.get(f"{cls.__module__}.{cls.__qualname__}")
    if reader is None:
        reader = _RULES[nn.Module if isinstance(guide, nn.Module) and not isinstance(guide, PyroModule) else object]
    posterior = reader(guide, *args, **kwargs) if reader in _RUNNING else reader(guide)
    return posterior.with_labels(labels) if labels else posterior


def read_again(posterior: Posterior, guide: Any) -> Posterior:
    """Reads a guide of the same type as this posterior's was read: with the same labels and arguments."""
    args, kwargs = posterior.arguments
    return read_guide(guide, *args, labels=posterior.labels, **kwargs)


def relabelable(posterior: Posterior, symmetry: Symmetry) -> Posterior:
    """The posterior; known by its draws instead where its coordinates mix an axis that the symmetry relabels.

    A mean-field Gaussian over a simplex lives in stick-breaking coordinates: relabeled, it is another law, of which
    draws and densities are known.
    """
    if not _leaves_family(posterior, symmetry):
        return posterior
    if posterior.separate:
        return _with_parts(posterior, [relabelable(part, symmetry) for part in posterior.parts])
    return by_draws(posterior)


def _leaves_family(posterior: Posterior, symmetry: Symmetry) -> bool:
    parts = getattr(posterior, "parts", ())
    specs = [spec for spec in posterior.sites.values() if not spec.is_discrete]
    mixed = posterior.in_unconstrained and any(mixed_axis(symmetry, spec) is not None for spec in specs)
    return mixed or any(_leaves_family(part, symmetry) for part in parts)


def by_draws(posterior: Posterior) -> Posterior:
    """The posterior as one that is known by its draws and their log densities; of one beside a model's, the guide's."""
    if posterior.separate:
        guide, *others = posterior.parts
        return _with_parts(posterior, [by_draws(guide), *others])
    found = _RULES[object](posterior.to_guide())
    return found.with_labels(posterior.labels) if posterior.labels else found


def alike(*posteriors: Posterior) -> tuple[Posterior, ...]:
    """The posteriors; where one is known by its draws, all are, part by part."""
    if all(q.separate for q in posteriors) and len({len(q.parts) for q in posteriors}) == 1:
        columns = [alike(*column) for column in zip(*(q.parts for q in posteriors), strict=True)]
        return tuple(map(_with_parts, posteriors, zip(*columns, strict=True)))
    if len({q.known_by_draws for q in posteriors}) == 1:
        return posteriors
    return tuple(q if q.known_by_draws else by_draws(q) for q in posteriors)


def _with_parts(posterior: Any, parts: Sequence[Posterior]) -> Posterior:
    return replace(posterior, parts=tuple(parts))


def check_distinct(guide_a: Any, guide_b: Any) -> None:
    """Refuses two guides that are one: they share parameters through the global param store.

    Two guides of one class and one model have the same parameter names, and the param store hands the second the
    tensors of the first. Passing one and the same guide object twice is allowed.

    Raises:
        GuideError: The guides share tensors.
    """
    if guide_a is guide_b:
        return
    shared = _shared_tensors(guide_a, guide_b)
    if shared:
        raise GuideError(
            f"the two guides share {len(shared)} parameters through Pyro's param store (first: '{shared[0]}'), so they "
            "are one posterior: guides of one class have the same parameter names. Fit each inside its own "
            "`with pyro.get_param_store().scope():`, or make them children of one module "
            "(box = PyroModule(); box.a = AutoNormal(model); box.b = AutoNormal(model)), and build both again"
        )


def _shared_tensors(first: Any, second: Any) -> list[str]:
    """Names of the first guide's tensors whose memory is also the second's."""
    there = {t.untyped_storage().data_ptr() for t in own_tensors(second).values() if t.numel()}
    return [k for k, t in own_tensors(first).items() if t.numel() and t.untyped_storage().data_ptr() in there]


def _warn_if_stale(guide: Any) -> None:
    """Warns where the param store holds other values under a guide's names: calling the guide would adopt them."""
    if not isinstance(guide, PyroModule) or not guide._pyro_context.used:
        return
    if pyro.settings.get("module_local_params"):
        return
    stored = pyro.get_param_store()._params
    stale = [
        name
        for name, own in _store_names(guide)
        if name in stored and stored[name] is not own and not torch.equal(stored[name].detach(), own.detach())
    ]
    if stale:
        warnings.warn(
            f"the param store holds other values than this {type(guide).__name__} under {len(stale)} of its names "
            f"(first: '{stale[0]}'), from another guide of the same name or from a loaded store. The guide's own "
            "values are read; calling the guide would replace them by the store's. If the store's are meant, call the "
            "guide once first",
            DiagnosticWarning,
            stacklevel=3,
        )


def _store_names(module: PyroModule) -> Iterator[tuple[str, Tensor]]:
    """Full store name and own tensor of each parameter of a module tree."""
    for child in module.modules():
        if not isinstance(child, PyroModule) or not child._pyro_name:
            continue
        for name, tensor in child._parameters.items():
            bare = name.removesuffix("_unconstrained")
            if tensor is not None:
                yield f"{child._pyro_name}.{bare if bare in child._pyro_params else name}", tensor
