"""Discovery: from a model to the group of its permutations and signs, by type inference over axes."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.distributions.constraints import Constraint
from torch.utils import _pytree as pytree

from pyro_align.discovery.activations import ActivationProbe
from pyro_align.discovery.axes.assemble import assemble, infer
from pyro_align.discovery.axes.checking import check_rule
from pyro_align.discovery.certify import GraphFunction, ModelFunction, certify_function
from pyro_align.discovery.count import count_linear
from pyro_align.discovery.density import find_symmetry_of_density
from pyro_align.discovery.ops import contraction
from pyro_align.discovery.preactivations import PreactivationProbe
from pyro_align.discovery.registry import rotation_rule, rule, sign_rule
from pyro_align.discovery.resting import find_resting, names_of
from pyro_align.discovery.rotations import add_rotations
from pyro_align.discovery.rotations.checking import check_rotation_rule
from pyro_align.discovery.rotations.planes import add_planes
from pyro_align.discovery.scalings import add_scalings
from pyro_align.discovery.signs import SignAnalysis, add_signs
from pyro_align.discovery.signs.checking import check_sign_rule
from pyro_align.discovery.signs.loose import add_loose_signs
from pyro_align.discovery.tracing import TracedGraph, trace_density, trace_module
from pyro_align.discovery.whole_sites import infer_stacked, stack_sites
from pyro_align.errors import DiagnosticWarning, PyroAlignError, SymmetryError, TraceError, first_line
from pyro_align.model.density import Density
from pyro_align.model.guards import gradless, uncollected, uncompiled, untouched
from pyro_align.model.keywords import options_apart
from pyro_align.model.learnables import module_tensors
from pyro_align.model.reached import reached_modules
from pyro_align.model.supports import is_cone, is_elementwise
from pyro_align.symmetry.group import Resting, Symmetry
from pyro_align.symmetry.spec import SymmetrySpec, bound, check_symmetry
from pyro_align.symmetry.stacks import Stacks, stack_tensors, stacked, unstacked

__all__ = [
    "ActivationProbe",
    "PreactivationProbe",
    "analyze_signs",
    "certify",
    "check_rotation_rule",
    "check_rule",
    "check_sign_rule",
    "contraction",
    "find_symmetry",
    "find_symmetry_of_density",
    "probe_activations",
    "probe_preactivations",
    "rotation_rule",
    "rule",
    "sign_rule",
]


@options_apart
def find_symmetry(
    model: Any,
    *args: Any,
    scope: str = "joint",
    parameters: bool = False,
    signs: bool = False,
    rotations: bool = False,
    scalings: bool = False,
    whole_sites: bool = False,
    count: bool = False,
    trials: int = 3,
    seed: int = 0,
    **kwargs: Any,
) -> Symmetry:
    """Finds the relabelings that leave a model's log joint unchanged, from the model itself.

    The log joint is traced to a graph of ATen operations; each operation says how its axes are related; what remains
    free is the group. An operation without a rule fixes its axes and is listed in ``symmetry.opaque``: the answer may
    miss a symmetry, it never invents one, and it ends with a numerical certificate in float64.

    Args:
        model: A Pyro model, or a plain ``torch.nn.Module``: then every parameter is a site, and every floating-point
            buffer that ``state_dict`` saves, and its output is what must not change.
        args: The model's arguments; a small batch is enough, the axes of data keep their order anyway.
        scope: ``"joint"``, or ``"likelihood"`` to leave the priors out (then use
            :func:`~pyro_align.permute_model` beside :func:`~pyro_align.permute_guide`).
        parameters: Whether learnable ``pyro.param`` and module parameters and buffers are sites too; otherwise they
            are constants, and fix what they tell apart.
        signs: Whether to look for units that may change sign too (of an odd activation, of a factor): their atoms are
            then odd (:func:`~pyro_align.axes.Odd`) at the axes along which values change sign with them. Signs that no
            unit carries, of single indices on axes that keep their order and of whole sites, are atoms of size one;
            they are looked for in models of up to 100,000 entries.
        rotations: Whether to look for atoms that may be rotated as a whole (factors with spherical priors, the
            dimensions inside attention heads): an orthogonal matrix then acts on them, and they are
            :func:`~pyro_align.axes.Rotated` wherever sites carry them. Pairs of a rotary embedding are rotated by an
            angle each; they are found by some gradients at random points, where parts of fixed order may be such.
        scalings: Whether to look for units that may be multiplied by any positive number before a ReLU, a norm or a
            linear map and divided by it behind: ``symmetry.scalings``. Under the usual priors they are no symmetry of
            the joint, so ask with ``scope="likelihood"``; :func:`~pyro_align.canonical` then fixes their scale.
        whole_sites: Whether to look for sites that may change places as wholes (``mu_1`` and ``mu_2``, the experts of a
            ``ModuleList``): they are then one site of ``symmetry.sites``, stacked along a first axis, and an atom
            permutes that axis; ``symmetry.stacks`` says which. Values, draws and guides keep their own names.
        count: Whether to count all linear symmetries of the model, by as many gradients as the matrices along its axes
            have entries (up to 1,500, longer axes are left out): ``symmetry.certificate.completeness`` then says
            whether rotations or scalings are missing, and where. A small copy of the model is enough.
        trials: Random relabelings, with random signs and rotations, in the certificate.
        seed: Seed of the certificate's draw and relabelings.
        kwargs: The model's keyword arguments.

    Returns:
        The symmetry, with its certificate.

    Raises:
        TraceError: The model cannot be run with these arguments or cannot be traced (data-dependent control flow,
            random numbers outside sample sites, a structure that changes from run to run).
        SymmetryError: The certificate failed, with the atom at fault.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x, y):
        ...     w1 = pyro.sample("w1", dist.Normal(0.0, 1.0).expand([8, 3]).to_event(2))
        ...     w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([2, 8]).to_event(2))
        ...     pyro.sample("y", dist.Normal(torch.tanh(x @ w1.T) @ w2.T, 1.0).to_event(2), obs=y)
        >>> data = torch.randn(5, 3), torch.randn(5, 2)
        >>> {name: atom.size for name, atom in find_symmetry(model, *data).atoms.items()}
        {'w1': 8}
        >>> print(*find_symmetry(model, *data, signs=True).sites["w1"])  # tanh is odd
        ±w1 fixed 3
    """
    source = _Source(model, args, kwargs, scope=scope, parameters=parameters, seed=seed)
    source.check_observes()
    _check_trials(trials)
    with _in_one_sentence():
        with uncollected():
            traced = source.trace()
            inference = infer(traced)
            if whole_sites:
                traced, inference, source.stacks = infer_stacked(traced, inference)
            symmetry = replace(assemble(inference, scope=scope), stacks=source.stacks)
            function, real = GraphFunction(traced), source.real_sites(traced)
            if signs:
                symmetry = add_signs(symmetry, inference, real=real)
            if rotations:
                symmetry = add_rotations(symmetry, inference, real=real)
                point = partial(source.random_values, traced)
                symmetry = add_planes(symmetry, function.differentiable, point, real=real)
            if scalings:
                symmetry = add_scalings(symmetry, inference, scalable=source.scalable_sites(traced))
            if signs:
                symmetry = add_loose_signs(symmetry, inference, real=real)
                if numbers := {k: v for k, v in symmetry.stacks.items() if k not in source.stacks}:
                    traced, source.stacks = stack_sites(traced, numbers), symmetry.stacks
                    function = GraphFunction(traced)
            symmetry = replace(symmetry, rests=source.resting(symmetry, traced))
        symmetry = _with_certificate(symmetry, source, function, trials=trials, seed=seed)
        return _counted(symmetry, source, function, seed) if count else symmetry


@options_apart
def analyze_signs(
    model: Any, *args: Any, scope: str = "joint", parameters: bool = False, seed: int = 0, **kwargs: Any
) -> SignAnalysis:
    """All ways in which units may change sign, of which :func:`find_symmetry` with ``signs=True`` takes one an atom.

    Args:
        model: As for :func:`find_symmetry`.
        args: The model's arguments.
        scope: As for :func:`find_symmetry`.
        parameters: As for :func:`find_symmetry`.
        seed: As for :func:`find_symmetry`.
        kwargs: The model's keyword arguments.

    Returns:
        For each atom its places, and a basis of the sets of places at which a unit may change sign.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(3, 8, bias=False), nn.Tanh(), nn.Linear(8, 2))
        >>> analysis = analyze_signs(net, torch.randn(5, 3))
        >>> [(place.site, place.axis) for place in analysis.places["0"]]
        [('0.weight', 0), ('2.weight', 1)]
        >>> [f"{flips:02b}" for flips in analysis.solutions("0")]  # one way: both
        ['11']
    """
    source = _Source(model, args, kwargs, scope=scope, parameters=parameters, seed=seed)
    traced = source.trace()
    inference = infer(traced)
    return SignAnalysis(inference, assemble(inference, scope=scope), source.real_sites(traced))


@options_apart
def certify(
    model: Any,
    symmetry: Symmetry | SymmetrySpec,
    *args: Any,
    parameters: bool = False,
    trials: int = 3,
    seed: int = 0,
    **kwargs: Any,
) -> Symmetry:
    """Binds a hand-written symmetry to a model and checks it: the same certificate that discovery ends with.

    Args:
        model: A Pyro model or a plain ``torch.nn.Module``.
        symmetry: The symmetry, with or without sizes; sites that it does not name are not relabeled.
        args: The model's arguments.
        parameters: As for :func:`find_symmetry`.
        trials: Random relabelings to try.
        seed: Seed of the draw and of the relabelings.
        kwargs: The model's keyword arguments.

    Returns:
        The symmetry with its sizes and its certificate.

    Raises:
        SymmetryError: It does not fit the model's sites, or a relabeling changes the log joint.
        TraceError: As for :func:`find_symmetry`.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        ...     pyro.sample("y", dist.Normal(w.square().sum(), 1.0), obs=torch.tensor(1.0))
        >>> certify(model, SymmetrySpec({"w": ("unit",)})).certificate.trials
        3
    """
    check_symmetry(symmetry)
    source = _Source(model, args, kwargs, scope=symmetry.scope, parameters=parameters, seed=seed)
    _check_trials(trials)
    try:
        traced = source.trace()
    except TraceError:
        return _without_graph(symmetry, source, trials=trials, seed=seed)
    if isinstance(symmetry, Symmetry) and symmetry.stacks:
        source.stacks = symmetry.stacks
        traced = stack_sites(traced, symmetry.stacks)
    symmetry = bound(symmetry, {name: v.shape for name, v in traced.values.items()}, of="model")
    return _with_certificate(symmetry, source, GraphFunction(traced), trials=trials, seed=seed)


@options_apart
def probe_activations(model: Any, *args: Any, symmetry: Symmetry, seed: int = 0, **kwargs: Any) -> ActivationProbe:
    """Finds the activations of a model from its trace: which tensors carry which units over the data.

    Args:
        model: A Pyro model or a plain ``torch.nn.Module``.
        args: The model's arguments: the data on which activations are to be compared.
        symmetry: The symmetry that :func:`find_symmetry` found for the same model.
        seed: As for :func:`find_symmetry`.
        kwargs: The model's keyword arguments.

    Raises:
        SymmetryError: The symmetry is not the one that discovery finds: its atoms cannot be told in the graph.
    """
    return ActivationProbe.of(_trace_of(symmetry, model, args, kwargs, seed), symmetry)


@options_apart
def probe_preactivations(
    model: Any, *args: Any, symmetry: Symmetry, seed: int = 0, **kwargs: Any
) -> PreactivationProbe:
    """Finds the affine maps that make a model's hidden units, and the sites that set each; as for activations.

    Args:
        model: A Pyro model or a plain ``torch.nn.Module``.
        args: The model's arguments: the data on which pre-activations are to be measured.
        symmetry: The symmetry that :func:`find_symmetry` found for the same model.
        seed: As for :func:`find_symmetry`.
        kwargs: The model's keyword arguments.

    Raises:
        SymmetryError: The symmetry is not the one that discovery finds: its atoms cannot be told in the graph.
    """
    return PreactivationProbe.of(_trace_of(symmetry, model, args, kwargs, seed), symmetry)


def _trace_of(symmetry: Symmetry, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int) -> TracedGraph:
    """The graph in which the symmetry's atoms are known by name."""
    source = _Source(model, args, kwargs, scope=symmetry.scope, parameters=False, seed=seed)
    traced = source.trace()
    if dict(assemble(infer(traced), scope=symmetry.scope).sites) != dict(symmetry.sites):
        raise SymmetryError(
            "activations are found in the model's graph, so they need the symmetry that find_symmetry finds for this "
            "model; the one given has other sites or axes"
        )
    return traced


class _Source:
    """What is traced: a Pyro model's density or a module's output."""

    def __init__(self, model, args, kwargs, *, scope: str, parameters: bool, seed: int):
        self.stacks: Stacks = {}  # sites of the graph that stand for several of the model
        if scope not in ("joint", "likelihood"):
            raise ValueError(f"scope must be 'joint' or 'likelihood', got {scope!r}")
        self.model, self.args, self.kwargs, self.scope, self.parameters = model, args, kwargs, scope, parameters
        _check_model(model)
        self.is_module = isinstance(model, nn.Module) and not _has_sample_sites(model, args, kwargs)
        self.density = None if self.is_module else Density(model, args, kwargs, parameters=parameters, seed=seed)

    def trace(self) -> TracedGraph:
        if self.is_module:
            return trace_module(self.model, self.args, self.kwargs)
        return trace_density(self.density, scope=self.scope, parameters=self.parameters)

    def check_observes(self) -> None:
        """Warns about a model that observes nothing: its classes, say, are then as free as its hidden units."""
        if self.is_module or self.density.observes:
            return
        drawn = [*self.density.latents, *self.density.enumerated]
        left_out = list(omitted(self.model, self.args, self.kwargs))
        advice = f"was {' or '.join(f'{n}=' for n in left_out)} left out? " if left_out else ""
        text = (
            f"the model observes nothing with these arguments: it draws all of {drawn}; {advice}Pass the observed "
            "values too, as to SVI.step: what is found without them is the symmetry of the prior"
        )
        if self.scope == "likelihood":
            raise TraceError(f"{text}, and there is no likelihood")
        warnings.warn(text, DiagnosticWarning, stacklevel=3)

    def resting(self, symmetry: Symmetry, traced: TracedGraph) -> tuple[Resting, ...]:
        """Learnable tensors that the symmetry takes for constant."""
        if self.is_module:
            return ()
        return find_resting(symmetry, traced, names_of(self.model, self.density.params))

    def generic_values(self, traced: TracedGraph, seed: int, scale: float) -> dict[str, Tensor]:
        """A draw at which no two units look alike and sums stay moderate, in float64."""
        if self.is_module:
            return _jittered(traced.values, seed, scale)
        values = self.density.initial_values(seed=seed, scale=scale, dtype=torch.float64, fan_in=True)
        values = stack_tensors(values, self.stacks)
        given = {name for name, nodes in traced.nodes.items() if nodes[0].op == "placeholder"}
        return {k: values[k] if k in values and k in given else v.double() for k, v in traced.values.items()}

    def random_values(self, traced: TracedGraph, seed: int) -> dict[str, Tensor]:
        """Another draw, for the completeness count: real values around zero, positive ones positive."""
        if not self.is_module:
            return self.generic_values(traced, seed, 1.0)
        generator, out = torch.Generator().manual_seed(seed), {}
        for name, value in traced.values.items():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64, device="cpu").to(value.device)
            positive = value.numel() > 0 and bool((value >= 0).all()) and bool((value > 0).any())
            out[name] = noise.mul(0.3).exp() if positive else noise / max(1, value.shape[1:].numel()) ** 0.5
        return out

    # -- without a graph -------------------------------------------------------------------------------------------

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Site -> shape, as the model itself says."""
        if self.is_module:
            return {name: tuple(v.shape) for name, v in module_tensors(self.model).items()}
        return {name: site.shape for name, site in self.density.latents.items()}

    def supports(self) -> dict[str, Constraint]:
        """Site -> support."""
        return {} if self.is_module else {name: site.support for name, site in self.density.latents.items()}

    def generic(self, seed: int) -> dict[str, Tensor]:
        """As :meth:`generic_values`, without a graph."""
        if self.is_module:
            return _jittered(module_tensors(self.model), seed, 1.0)
        return self.density.initial_values(seed=seed, dtype=torch.float64, fan_in=True)

    def total(self, values: Mapping[str, Tensor], cast: Callable[[Any], Any]) -> Any:
        """What must not change, at other site values; ``cast`` sets the dtype of all else."""
        args, kwargs = pytree.tree_map(cast, (tuple(self.args), dict(self.kwargs)))
        if self.is_module:
            others = {k: cast(v) for k, v in (*self.model.named_parameters(), *self.model.named_buffers())}
            return torch.func.functional_call(self.model, {**others, **values}, args, kwargs)
        density = self.density.on(args, kwargs, cast)
        return density.log_joint(values) if self.scope == "joint" else density.log_likelihood(values)

    def real_sites(self, traced: TracedGraph) -> list[str]:
        """Sites whose support is all real numbers, so that their values may change sign."""
        known = {} if self.is_module else stacked(self.density.latents, self.stacks, lambda sites: sites[0])
        return [name for name in traced.values if name not in known or known[name].is_real]

    def scalable_sites(self, traced: TracedGraph) -> list[str]:
        """Sites whose values may be multiplied by any positive number: real ones and positive ones."""
        cones = {**dict.fromkeys(traced.values, True), **{k: is_cone(v) for k, v in traced.supports.items()}}
        return [name for name, value in traced.values.items() if cones[name] and value.is_floating_point()]

    def check_reproduces(self, values: dict[str, Tensor], reference: float) -> None:
        """The model itself, run again at new values, must agree with its graph."""
        if self.is_module:
            return
        values = unstacked(values, self.stacks)
        native = {k: values[k].to(site.dtype) for k, site in self.density.latents.items() if k in values}
        total = self.density.log_joint if self.scope == "joint" else self.density.log_likelihood
        with untouched(self.model, seed=1):
            again = float(gradless(total, native).detach())
        low = any(site.dtype != torch.float64 for site in self.density.latents.values())
        if not abs(again - reference) <= (1e-2 if low else 1e-6) * (1.0 + abs(reference)):
            raise TraceError(
                f"the model is not the same function when run again: its log joint is {again:.6g} nats where its trace "
                f"gives {reference:.6g}. A model whose structure or noise changes between runs has no symmetry "
                "to find; fix its randomness, or write the symmetry by hand as a SymmetrySpec."
            )


def _jittered(values: Mapping[str, Tensor], seed: int, scale: float) -> dict[str, Tensor]:
    """Values with noise, in float64, so that no two units look alike."""
    generator = torch.Generator().manual_seed(seed)
    noise = {k: torch.randn(v.shape, generator=generator, dtype=torch.float64, device="cpu") for k, v in values.items()}
    return {k: v.detach().double() + scale * 0.1 * noise[k].to(v.device) for k, v in values.items()}


def omitted(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Parameters of the model that were not given and are None by default: data, as a rule."""
    try:
        signature = inspect.signature(model.forward if isinstance(model, nn.Module) else model)
        given = signature.bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return []
    return [name for name, p in signature.parameters.items() if p.default is None and given.get(name) is None]


def _has_sample_sites(model, args, kwargs) -> bool:
    """Whether running a module meets a Pyro primitive."""
    with untouched(model, seed=0), uncompiled(), pyro.poutine.trace() as tracer:
        try:
            gradless(model, *args, **kwargs)
        except Exception:
            return isinstance(model, pyro.nn.PyroModule)  # the density reports the error with its advice
    return any(n["type"] == "sample" for n in tracer.trace.nodes.values() if "fn" in n and n["type"] == "sample")


@contextlib.contextmanager
def _in_one_sentence() -> Iterator[None]:
    """What torch cannot run again from its graph (sparse tensors, say) is refused like what it cannot trace."""
    try:
        yield
    except PyroAlignError:
        raise
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise TraceError(
            f"the graph of the model cannot be analyzed: {type(error).__name__}: {first_line(error)}. If the model "
            "cannot be written without it, write the symmetry by hand as a SymmetrySpec and certify it, which runs the "
            "model itself"
        ) from error


def _check_model(model: Any) -> None:
    """Refuses what is not a model, or hides what it does."""
    if any(c.__name__ in ("AutoGuide", "EasyGuide") for c in type(model).__mro__):
        raise TraceError(
            f"expected the model, got a guide ({type(model).__name__}): a symmetry is one of the model's log joint. "
            "Pass the model that the guide was made for, with its data"
        )
    for module in reached_modules(model):
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(
                f"{type(module).__name__} was made by torch.jit, which hides its operations; pass the nn.Module that "
                "it was scripted or traced from"
            )


def _check_trials(trials: int) -> None:
    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}: without a relabeling tried nothing is certified")


def _without_graph(symmetry: Symmetry | SymmetrySpec, source: _Source, *, trials: int, seed: int) -> Symmetry:
    """The certificate of a model that cannot be traced: it is run itself before and after each relabeling."""
    shapes = source.shapes()
    symmetry = bound(symmetry, shapes, of="model")
    values = source.generic(seed)
    function = ModelFunction(source.total, source.supports(), source.model, values)
    return replace(symmetry, certificate=certify_function(symmetry, function, values, trials=trials, seed=seed))


def _counted(symmetry: Symmetry, source: _Source, function: GraphFunction, seed: int) -> Symmetry:
    """The symmetry with the completeness count in its certificate."""
    traced = function.traced
    free = [
        name
        for name, value in traced.values.items()
        if value.is_floating_point() and (name not in traced.supports or is_elementwise(traced.supports[name]))
    ]
    completeness = count_linear(
        function.differentiable,
        symmetry,
        partial(source.random_values, traced),
        sites=[name for name in free if name in symmetry.sites],
        seed=seed,
    )
    assert symmetry.certificate is not None
    return replace(symmetry, certificate=replace(symmetry.certificate, completeness=completeness))


def _with_certificate(
    symmetry: Symmetry, source: _Source, function: GraphFunction, *, trials: int, seed: int
) -> Symmetry:
    failure: TraceError | None = None
    for scale in (1.0, 0.1, 0.01):
        values = source.generic_values(function.traced, seed, scale)
        try:
            certificate = certify_function(symmetry, function, values, trials=trials, seed=seed)
        except TraceError as error:
            failure = error
            continue
        source.check_reproduces(values, certificate.log_joint)
        return replace(symmetry, certificate=certificate)
    raise SymmetryError(str(failure))
