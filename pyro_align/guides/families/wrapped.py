"""Any guide, relabeled exactly by wrapping it.

The wrapper runs a private copy of the guide, lets its sites appear under auxiliary names, with their own densities, and
emits the relabeled values as point masses under the original names. Relabeling keeps volume, so the log density of a
relabeled draw is the old one; ELBOs are equal draw by draw. For matching and for paths such a guide is one
of the posteriors that are known by their draws.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import get_plates
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_align.errors import GuideError
from pyro_align.guides.families.draws import KnownByDraws, relabeled
from pyro_align.guides.posterior import Posterior
from pyro_align.guides.pyro_state.copies import (
    StoredGuide,
    held_modules,
    private_callable,
    private_copy,
    registered_weights,
    runs_model,
    store_parameters,
)
from pyro_align.guides.pyro_state.modules import UNTRAINED, latent_sites, prior_of, site_specs
from pyro_align.guides.registry import read_guide, register_guide, registered_guides
from pyro_align.guides.relabel import Labels, Relabeling, label_moves, move_labels
from pyro_align.guides.sites import Noise, SiteSpec, Values
from pyro_align.model.guards import untouched
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import same_group

AUXILIARY = "_before_relabeling_"
_OWN = f"_pyro_align_{uuid.uuid4().hex[:12]}"  # a name that no guide of the caller has in the param store


class RelabeledGuide(PyroModule):
    """A Pyro guide that draws from another guide and relabels the draws.

    Args:
        posterior: The posterior, whose guide is copied.

    Attributes:
        relabelings: The relabelings, applied one after the other.
    """

    def __init__(self, posterior: Wrapped):
        super().__init__(name=f"RelabeledGuide_{uuid.uuid4().hex[:12]}")
        self.guide = private_copy(posterior.guide)
        self.relabelings = posterior.chain
        self._posterior = replace(posterior, guide=None)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draws once; returns site -> relabeled value."""
        sites = self._posterior.sites
        acts = [Relabeling(p, sites) for p in self.relabelings]
        moves = [label_moves(p, sites, self._posterior.labels) for p in self.relabelings]
        # all sites step aside, also those that stay as they are, so that the guide's order of sites is kept
        anything = any(moves) or any(act.moves(name) for act in acts for name in sites)
        names = set(sites) if anything else set()
        outside = {plate.name for plate in get_plates()}
        with _Aside(names, runs_model(self.guide)) as aside:
            self.guide(*args, **kwargs)
        result = {name: node["value"] for name, node in aside.nodes.items()}
        names = {name for name in names & set(result) if not aside.nodes[name]["infer"].get("enumerate")}
        for act, labels in zip(acts, moves, strict=True):
            result = act.renamed(result)
            for name in names:
                batch_dims = result[name].dim() - len(sites[name].shape)
                result[name] = act.constrained(name, result[name], batch_dims=batch_dims)
                if name in labels:
                    result[name] = move_labels(sites[name], labels[name], result[name])
        for name, node in aside.nodes.items():
            if name in names:
                with ExitStack() as stack:
                    for frame in node["cond_indep_stack"]:
                        if frame.vectorized and frame.name not in outside:
                            stack.enter_context(aside.plate(frame))
                    result[name] = pyro.sample(name, dist.Delta(result[name], event_dim=node["fn"].event_dim))
        return result


class _Aside(Messenger):
    """Lets named sites appear to the outside under auxiliary names; the handlers inside see their own names.

    Attributes:
        nodes: The latent sites of the run, by their own names.
    """

    def __init__(self, names: set[str], is_messenger: bool):
        super().__init__()
        self.names, self.is_messenger = names, is_messenger
        self.nodes: dict[str, dict] = {}
        self._subsamples: dict[str, Tensor] = {}

    def _pyro_sample(self, msg):
        if site_is_subsample(msg):
            return
        if msg["is_observed"]:
            # a messenger guide runs the model, whose data is not the guide's to score
            msg["stop"] = msg["stop"] or self.is_messenger
        elif msg["name"] in self.names and not msg["infer"].get("enumerate"):
            msg["infer"] = {**msg["infer"], "is_auxiliary": True, "_own_name": msg["name"]}
            msg["name"] = AUXILIARY + msg["name"]

    def _pyro_post_sample(self, msg):
        if site_is_subsample(msg):
            self._subsamples[msg["name"]] = msg["value"]
        elif not msg["is_observed"]:
            own = msg["infer"].get("_own_name")
            if own is not None:
                msg["name"] = own
                msg["infer"] = {k: v for k, v in msg["infer"].items() if k not in ("is_auxiliary", "_own_name")}
            if not msg["infer"].get("is_auxiliary"):
                self.nodes[msg["name"]] = dict(msg)

    def plate(self, frame) -> pyro.plate:
        """The plate of a site of the run, over the same subsample, to be entered once more."""
        size = frame.full_size or frame.size
        subsample = self._subsamples.get(frame.name, torch.arange(size, device="cpu"))
        with poutine.block():  # the plate itself has been seen outside already
            return pyro.plate(frame.name, size, subsample=subsample, dim=frame.dim)


@dataclass(frozen=True, eq=False)
class Wrapped(KnownByDraws):
    """A posterior of which only draws and their densities are known: those of a guide that is run.

    Attributes:
        sites: The sites.
        guide: A private copy of the guide.
        arguments: Arguments and keyword arguments with which the guide is run for draws.
        chain: Relabelings, applied one after the other.
        labels: Discrete site -> the atom whose units its values number, or None.
    """

    sites: Mapping[str, SiteSpec]
    guide: PyroModule = field(repr=False)
    arguments: tuple[tuple[Any, ...], Mapping[str, Any]] = field(default=((), {}), repr=False)
    chain: tuple[Permutation, ...] = ()
    labels: Labels = field(default_factory=dict)

    @cached_property
    def _runner(self) -> RelabeledGuide:
        return RelabeledGuide(self)

    def _permute(self, p: Permutation) -> Wrapped:
        if p.is_identity:
            return self
        for name in label_moves(p, self.sites, self.labels):
            if self.sites[name].enumerated:
                raise GuideError(
                    f"site '{name}' is enumerated, so a wrapped guide cannot change its labels; give an AutoGuideList "
                    f"with an AutoDiscreteParallel part as it is: read_guide(guide, labels={dict(self.labels)})"
                )
        if self.chain and same_group(self.chain[-1].symmetry, p.symmetry):
            moved = replace(self, chain=(*self.chain[:-1], p @ self.chain[-1]))
        else:
            moved = replace(self, chain=(*self.chain, p))
        for seed, values in self._kept.items():  # the same seeds give the relabeled draws: the guide need not run again
            moved._kept[seed] = relabeled(p, self.sites, self.labels, values)
        return moved

    def push_with_log_prob(self, noise: Noise) -> tuple[Values, Tensor]:
        seeds = tuple(noise["_seed"].tolist())
        last = self.__dict__.setdefault("_last", {})  # a path asks for the same draws at every tau
        if last.get("seeds") != seeds:
            last.update(seeds=seeds, result=self._run(seeds))
        values, log_prob = last["result"]
        return dict(values), log_prob

    @cached_property
    def _closed_form(self) -> Posterior | None:
        """The guide's posterior by its own rule, where it has one over these sites: draws then need no run each."""
        if type(self.guide) not in registered_guides():
            return None
        try:
            q = read_guide(self.guide)
        except GuideError:
            return None
        return q if q.in_unconstrained and q.shapes == self.shapes else None

    def _run(self, seeds: Sequence[int]) -> tuple[Values, Tensor]:
        if self._closed_form is not None:
            noise = [self._closed_form.noise(1, generator=seed) for seed in seeds]
            drawn = {name: torch.cat([part[name] for part in noise]) for name in noise[0]}
            found, log_prob = self._closed_form.push_with_log_prob(drawn)
            for p in self.chain:
                found = relabeled(p, self.sites, self.labels, found)
            return {name: found[name] for name in self.sites}, log_prob
        args, kwargs = self.arguments
        values: dict[str, list[Tensor]] = {name: [] for name in self.sites}
        log_probs = []
        for seed in seeds:
            with poutine.block(), untouched(seed=seed), torch.no_grad():  # also inside of another guide
                trace = poutine.trace(self._runner).get_trace(*args, **kwargs)
            for name, drawn in values.items():
                drawn.append(trace.nodes[name]["value"].detach())
            log_probs.append(trace.log_prob_sum(_is_the_guides).detach())
        return {name: torch.stack(drawn) for name, drawn in values.items()}, torch.stack(log_probs)

    def to_guide(self) -> RelabeledGuide:
        return RelabeledGuide(self)


def _is_the_guides(name: str, site: Mapping[str, Any]) -> bool:
    return not site["is_observed"] and not site_is_subsample(site)


@register_guide(object, runs=True)
def wrap_guide(guide: Any, *args: Any, **kwargs: Any) -> Wrapped:
    """Any guide, known only by its draws and their log densities; every relabeling of it is exact.

    Args:
        guide: A guide of any kind: an autoguide, a PyroModule, a function with ``pyro.param`` and ``pyro.module``
            statements, a method of a module, which is then copied.
        args: Arguments to run it with; autoguides that have run once do not need any.
        kwargs: Keyword arguments to run it with.

    Raises:
        GuideError: The guide does not run with these arguments, or cannot be copied.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro_align import Symmetry, permute_guide, wrap_guide
        >>> def guide():
        ...     pyro.sample("w", dist.Gamma(torch.tensor([1.0, 20.0, 400.0]), 1.0).to_event(1))
        >>> p = Symmetry.from_axes({"w": ("unit",)}, shapes={"w": (3,)}).permutation({"unit": [2, 0, 1]})
        >>> moved = permute_guide(wrap_guide(guide), p)
        >>> pyro.poutine.trace(moved).get_trace().nodes["w"]["value"].argsort()
        tensor([1, 2, 0])
    """
    return wrapped_run(guide, trace_guide(guide, args, kwargs), args, kwargs)


def wrapped_run(guide: Any, trace: poutine.Trace, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Wrapped:
    """:func:`wrap_guide` of a guide that has been run."""
    nodes = latent_sites(trace)
    if not nodes:
        raise GuideError(f"this {type(guide).__name__} has no latent sites")
    sites = site_specs(_with_supports(guide, nodes), full_plates=False)
    inner = private_callable(guide)
    modules = [] if isinstance(guide, PyroModule) else held_modules(inner)
    weights = {} if modules or isinstance(guide, PyroModule) else registered_weights(trace, guide)
    stored = store_parameters(trace, own_name=_OWN, owns_modules=bool(modules or weights))
    if stored or not isinstance(guide, PyroModule):
        inner = StoredGuide(inner, stored, modules, weights)
    return Wrapped(sites, inner, (args, dict(kwargs)))


@register_guide(RelabeledGuide)
def read_relabeled_guide(guide: RelabeledGuide) -> Wrapped:
    """Reads the guide inside and the relabelings."""
    return replace(guide._posterior, guide=private_copy(guide.guide), chain=guide.relabelings)


def trace_guide(guide: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, seed: int = 0) -> poutine.Trace:
    """One run of a guide, which leaves the guide, the param store and the global random state as they are."""
    if not callable(guide):
        raise TypeError(f"expected a guide (a callable), got {type(guide).__name__}")
    prototype = guide.__dict__.get("prototype_trace", ...) if isinstance(guide, PyroModule) else ...
    if prototype is None:
        raise GuideError(f"this {type(guide).__name__} is untrained: {UNTRAINED}")
    runner = guide
    if isinstance(guide, PyroModule):  # a copy under a name of its own, so that the store's values stay out of it
        runner = private_copy(guide)
        runner._pyro_set_supermodule(_OWN, runner._pyro_context)
    try:
        with untouched(guide, seed=seed), torch.no_grad():
            return poutine.trace(runner).get_trace(*args, **kwargs)
    except Exception as error:
        raise GuideError(
            f"this {type(guide).__name__} does not run with the arguments given ({type(error).__name__}: {error}); "
            "pass the guide's own arguments: wrap_guide(guide, *args)"
            + (", or messenger_guide(guide, *args)" if isinstance(guide, GuideMessenger) else "")
        ) from error


def _with_supports(guide: Any, nodes: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The guide's sites with their priors' supports, where a prototype trace knows them."""
    if not isinstance(guide, PyroModule):
        return dict(nodes)
    prototype = guide.__dict__.get("prototype_trace")
    known = latent_sites(prototype) if prototype is not None else {}
    known = known or dict(guide.__dict__.get("_sorted_sites", ()))  # AutoStructured keeps its sites here
    return {k: {**n, "fn": known[k]["fn"] if k in known else prior_of(n)} for k, n in nodes.items()}
