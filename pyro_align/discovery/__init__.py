"""Discovery: from a model to the group of its permutations and signs, by type inference over axes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from pyro_align.discovery.activations import ActivationProbe
from pyro_align.discovery.axes.assemble import assemble, infer
from pyro_align.discovery.axes.checking import check_rule
from pyro_align.discovery.certify import GraphFunction, ModelFunction, certify_function
from pyro_align.discovery.count import count_linear
from pyro_align.discovery.density import find_symmetry_of_density
from pyro_align.discovery.ops import contraction
from pyro_align.discovery.preactivations import PreactivationProbe
from pyro_align.discovery.registry import rotation_rule, rule, sign_rule
from pyro_align.discovery.rotations import add_rotations
from pyro_align.discovery.rotations.checking import check_rotation_rule
from pyro_align.discovery.rotations.planes import add_planes
from pyro_align.discovery.scalings import add_scalings
from pyro_align.discovery.signs import SignAnalysis, add_signs
from pyro_align.discovery.signs.checking import check_sign_rule
from pyro_align.discovery.signs.loose import add_loose_signs
from pyro_align.discovery.source import Source
from pyro_align.discovery.tracing import TracedGraph
from pyro_align.discovery.whole_sites import infer_stacked, stack_sites
from pyro_align.errors import PyroAlignError, SymmetryError, TraceError, first_line
from pyro_align.model.guards import uncollected
from pyro_align.model.keywords import options_apart
from pyro_align.model.supports import is_elementwise
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.spec import SymmetrySpec, bound, check_symmetry

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
    source = Source(model, args, kwargs, scope=scope, parameters=parameters, seed=seed)
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

    Arguments are those of :func:`find_symmetry`.

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
    source = Source(model, args, kwargs, scope=scope, parameters=parameters, seed=seed)
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
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model():
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        ...     pyro.sample("y", dist.Normal(w.square().sum(), 1.0), obs=torch.tensor(1.0))
        >>> certify(model, SymmetrySpec({"w": ("unit",)})).certificate.trials
        3
    """
    check_symmetry(symmetry)
    source = Source(model, args, kwargs, scope=symmetry.scope, parameters=parameters, seed=seed)
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

    The model and its arguments are as for :func:`find_symmetry`, whose answer for the same model is ``symmetry``;
    ``args`` hold the data on which activations are to be compared.

    Raises:
        SymmetryError: The symmetry is not the one that discovery finds: its atoms cannot be told in the graph.
    """
    return ActivationProbe.of(_trace_of(symmetry, model, args, kwargs, seed), symmetry)


@options_apart
def probe_preactivations(
    model: Any, *args: Any, symmetry: Symmetry, seed: int = 0, **kwargs: Any
) -> PreactivationProbe:
    """Finds the affine maps that make a model's hidden units, and the sites that set each; as for activations.

    The model and its arguments are as for :func:`find_symmetry`, whose answer for the same model is ``symmetry``;
    ``args`` hold the data on which pre-activations are to be measured.

    Raises:
        SymmetryError: The symmetry is not the one that discovery finds: its atoms cannot be told in the graph.
    """
    return PreactivationProbe.of(_trace_of(symmetry, model, args, kwargs, seed), symmetry)


def _trace_of(symmetry: Symmetry, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int) -> TracedGraph:
    """The graph in which the symmetry's atoms are known by name."""
    source = Source(model, args, kwargs, scope=symmetry.scope, parameters=False, seed=seed)
    traced = source.trace()
    if dict(assemble(infer(traced), scope=symmetry.scope).sites) != dict(symmetry.sites):
        raise SymmetryError(
            "activations are found in the model's graph, so they need the symmetry that find_symmetry finds for this "
            "model; the one given has other sites or axes"
        )
    return traced


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


def _check_trials(trials: int) -> None:
    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}: without a relabeling tried nothing is certified")


def _without_graph(symmetry: Symmetry | SymmetrySpec, source: Source, *, trials: int, seed: int) -> Symmetry:
    """The certificate of a model that cannot be traced: it is run itself before and after each relabeling."""
    shapes, supports = source.described()
    symmetry = bound(symmetry, shapes, of="model")
    values = source.generic_values(None, seed, 1.0)
    function = ModelFunction(source.total, supports, source.model, values)
    return replace(symmetry, certificate=certify_function(symmetry, function, values, trials=trials, seed=seed))


def _counted(symmetry: Symmetry, source: Source, function: GraphFunction, seed: int) -> Symmetry:
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
    symmetry: Symmetry, source: Source, function: GraphFunction, *, trials: int, seed: int
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
