"""Grades discovery on an entry of the list, by an own evaluation of the model in float64.

Nothing of the library's discovery or certificate is used here: a program's log joint comes from Pyro's own tracing or
`TraceEnum_ELBO`, a network's output from `functional_call`.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, replace

import pyro
import torch
from pyro.infer import TraceEnum_ELBO
from torch import nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

import pyro_align
from pyro_align.axes import as_axis, leaves, map_atoms
from pyro_align.errors import PyroAlignError

TRIALS, TOLERANCE = 3, 1e-8


@dataclass(frozen=True)
class Grade:
    """How discovery did on one entry: exact, more, missed, false, refused (a sentence), error (raw), or bad hand."""

    name: str
    grade: str
    found: float
    by_hand: float
    reason: str
    seconds: float


def grade(entry) -> Grade:
    """Discovery on the model as users have it (float32), held against the group by hand, both checked in float64."""
    try:
        function, values, hand, order = _reference(entry)
        error = _error(function, values, lambda v, g: _moved(hand, entry.moves, v, g))
        problem = "" if error <= TOLERANCE else f"error {error:.1e}"
    except Exception as caught:  # a mistake in the list, not in the library
        order, problem = 0.0, f"{type(caught).__name__}: {caught}"
    if problem:
        return Grade(entry.name, "bad hand", 0.0, order, problem, 0.0)
    start = time.perf_counter()
    try:
        with _dtype(torch.float32):
            pyro.clear_param_store()
            symmetry = pyro_align.find_symmetry(*_flat(_build(entry)), **{"whole_sites": True, **entry.options})
    except Exception as caught:
        kind = "refused" if isinstance(caught, PyroAlignError) else "error"
        line = (str(caught).strip().splitlines() or [""])[0]
        return Grade(entry.name, kind, 0.0, order, f"{type(caught).__name__}: {line}", time.perf_counter() - start)
    seconds = time.perf_counter() - start
    found, error = symmetry.log_order, _error(function, values, lambda v, g: _applied(symmetry, v, g))
    if not error <= TOLERANCE:
        return Grade(entry.name, "false", found, order, f"error {error:.1e}: {_atoms(symmetry)}", seconds)
    if found > order + 1e-6:
        return Grade(entry.name, "more", found, order, _atoms(symmetry), seconds)
    if found < order - 1e-6:
        return Grade(entry.name, "missed", found, order, why(symmetry, hand), seconds)
    return Grade(entry.name, "exact", found, order, "", seconds)


def _reference(entry):
    """The model as a function of its sites in float64, generic values, the group by hand and its log order."""
    pyro.clear_param_store()
    with _dtype(torch.float64):
        model, args = _build(entry)
        function, values = _network(model, args) if isinstance(model, nn.Module) else _program(model, args)

    def sized(term):
        return map_atoms(as_axis(term), lambda a: replace(a, size=entry.sizes.get(a.name, a.size)))

    shapes = {k: tuple(v.shape) for k, v in values.items()}
    if unknown := set(entry.axes) - set(shapes):
        raise KeyError(f"no sites {sorted(unknown)}; there are {sorted(shapes)}")
    axes = {k: tuple(map(sized, entry.axes.get(k, (None,) * len(s)))) for k, s in shapes.items()}
    hand = pyro_align.Symmetry.from_axes(axes, shapes=shapes, within=entry.within)
    return function, values, hand, hand.log_order + sum(math.lgamma(size + 1) for size, _ in entry.moves)


def why(symmetry, hand) -> str:
    """The library's own reason for the first axis that it fixes and the group by hand does not."""
    opaque = "opaque: " + (", ".join(o.operation for o in symmetry.opaque) or "nothing")
    for site, terms in hand.sites.items():
        for axis, term in enumerate(terms):
            theirs = symmetry.sites.get(site, ())
            if axis < len(theirs) and _free(term) > _free(theirs[axis]):
                return f"{site}[{axis}]: " + " ".join(str(symmetry.why(site, axis)).split())
    for (site, axis), reasons in symmetry.reasons.items():
        if not symmetry.opaque and any(reason.kind in ("form", "tied") for reason in reasons):
            return f"{site}[{axis}]: " + " ".join(str(symmetry.why(site, axis)).split())
    return opaque


def _free(term) -> int:
    return sum(not a.fixed and a.size > 1 for a in leaves(term))


def _atoms(symmetry) -> str:
    return ", ".join(f"{name} {a.size} on {symmetry.carriers[name]}" for name, a in symmetry.atoms.items())


def _build(entry):
    torch.manual_seed(0)
    pyro.set_rng_seed(0)
    return entry.make()


def _flat(made):
    model, args = made
    return model, *args


@contextlib.contextmanager
def _dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _network(model, args):
    """Outputs as a function of parameters and saved buffers, and generic values of these."""
    saved = set(model.state_dict())
    tensors = dict(model.named_parameters())
    tensors |= {k: b for k, b in model.named_buffers() if k in saved and b.is_floating_point()}
    if any(True for m in model.modules() if isinstance(m, pyro.nn.PyroModule)):
        return _program(model, args)
    values = {}
    for name, value in tensors.items():
        noise = torch.randn_like(value)
        positive = "running_var" in name
        values[name] = (value + 0.3 * noise.abs() if positive else value + 0.3 * noise).detach()

    def function(given):
        with torch.no_grad():
            out = functional_call(model, given, args)
        return torch.cat([t.reshape(-1).double() for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor)])

    return function, values


def _program(model, args):
    """The log joint with enumerated sites summed out, and a draw of the other latents from the prior."""
    pyro.set_rng_seed(1)
    trace = pyro.poutine.trace(model).get_trace(*args)
    latent = {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and not s["is_observed"]}
    latent = {n: s for n, s in latent.items() if type(s["fn"]).__name__ != "_Subsample"}
    enumerated = {n for n, s in latent.items() if s["infer"].get("enumerate")}
    values = {n: s["value"].detach() for n, s in latent.items() if n not in enumerated}
    learned = {n: s["value"].detach() for n, s in trace.nodes.items() if s["type"] == "param"}
    values |= learned

    def function(given):
        conditioned = pyro.poutine.substitute(model, {n: given[n] for n in learned if n in given})
        conditioned = pyro.condition(conditioned, data={n: v for n, v in given.items() if n not in learned})
        with torch.no_grad():
            if enumerated:
                loss = TraceEnum_ELBO(max_plate_nesting=3).loss(conditioned, lambda *a, **k: None, *args)
                return -torch.as_tensor(loss, dtype=torch.float64).reshape(1)
            return torch.as_tensor(pyro.poutine.trace(conditioned).get_trace(*args).log_prob_sum()).reshape(1)

    return function, values


def _moved(hand, moves, values, generator):
    values = _applied(hand, values, generator)
    for size, move in moves:
        values = move(values, torch.randperm(size, generator=generator).tolist())
    return values


def _applied(symmetry, values, generator):
    moved = {member for site in symmetry.sites for member in symmetry.stacks.get(site, (site,))}
    known = {k: v for k, v in values.items() if k in moved}
    return {**values, **symmetry.random(generator).apply(known)}


def _error(function, values, act) -> float:
    """Largest change over random elements, relative to the largest value."""
    generator = torch.Generator().manual_seed(5)
    with _dtype(torch.float64):
        before = function(values)
        scale = 1.0 + float(before.abs().max())
        return max(float((function(act(values, generator)) - before).abs().max()) for _ in range(TRIALS)) / scale
