"""From a model to the ATen graph of its log joint."""

from __future__ import annotations

import contextlib
import functools
import logging
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions, get_decompositions
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.distributions.constraints import Constraint
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from pyro_align.discovery.concrete import ConcreteData, calling_line, densities_as_operations, is_library
from pyro_align.discovery.graphs import finish
from pyro_align.discovery.hoist import hoist_selections
from pyro_align.discovery.recording import Recording
from pyro_align.discovery.writes import without_writes
from pyro_align.errors import PyroAlignError, TraceError
from pyro_align.model.density import Density
from pyro_align.model.guards import gradless, uncompiled, untouched
from pyro_align.model.learnables import module_tensors, saved_buffers

_ADVICE = (
    "If the model cannot be written without it, write the symmetry by hand with "
    "SymmetrySpec({site: (axis, ...)}) and certify it, which needs no graph."
)

_LARGEST = 1 << 22  # entries of a tensor of one number that is looked at like any other constant
_UNDERSTOOD = ("logaddexp", "logaddexp2", "max_unpool2d", "max_unpool3d")  # as they are, better than decomposed


@dataclass(frozen=True, eq=False)
class TracedGraph:
    """The graph of a function of named values."""

    module: GraphModule  # the graph, with real constants as attributes
    values: Mapping[str, Tensor]  # site name -> the value it was traced at
    # site name -> the nodes that stand for its value: a placeholder, or attributes of the module
    nodes: Mapping[str, tuple[Node, ...]]
    data: Mapping[Node, Tensor]
    # sites whose updated values (running statistics) are the last outputs; they follow their sites
    states: tuple[str, ...] = ()
    # site name -> its support; sites left out may take any real values
    supports: Mapping[str, Constraint] = field(default_factory=dict)

    def placed(self, values: Mapping[str, Tensor], cast: Callable[[Tensor], Tensor]) -> dict[Node, Tensor]:
        """The values, cast, of the nodes that stand for sites, laid out as they were traced."""
        given = {k: values[k].contiguous() if self.values[k].is_contiguous() else values[k] for k in self.nodes}
        return {node: cast(given[name]) for name, nodes in self.nodes.items() for node in nodes}


def trace_density(density: Density, *, scope: str, parameters: bool = False) -> TracedGraph:
    """Traces a Pyro model's log joint (or log likelihood)."""
    values = density.initial_values(seed=density.seed)
    data, arguments = _data_of(density.args, density.kwargs)

    def function(sites: list[Tensor], data: list[Tensor]) -> Tensor:
        conditioned = density.on(*arguments(data))
        named = dict(zip(values, sites, strict=True))
        return conditioned.log_joint(named) if scope == "joint" else conditioned.log_likelihood(named)

    _fill_caches(density, values)
    captured = module_tensors(density.model) if parameters else {}
    module = _trace(function, values, data, density.model, density.seed)
    params = [name for name, site in density.latents.items() if site.is_param]
    traced = _assemble(module, values, data, captured, params=params)
    supports = {name: site.support for name, site in density.latents.items() if name in traced.values}
    return replace(traced, supports=supports)


def _fill_caches(density: Density, values: Mapping[str, Tensor]) -> None:
    """Runs the model for real: tables that code keeps from its first call must not be a trace's stand-ins."""
    with contextlib.suppress(Exception), untouched(density.model, seed=density.seed), uncompiled():
        gradless(density.log_joint, values)


def trace_module(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> TracedGraph:
    """Traces a plain module: every parameter and saved floating-point buffer is a site, the output must not change."""
    named = {n: p.detach() for n, p in module.named_parameters()}
    named.update(saved_buffers(module))
    states = _updated(module, args, kwargs)
    data, arguments = _data_of(tuple(args), dict(kwargs))

    def function(sites: list[Tensor], data: list[Tensor]):
        current = dict(zip(named, sites, strict=True))
        out = torch.func.functional_call(module, current, *arguments(data))
        results = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        return results + [current[name] for name in states]

    graph = _trace(function, named, data, module, 0)
    return _assemble(graph, named, data, {}, states=states)


def _data_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]):
    """The tensors among a model's arguments, and the arguments with others in their places."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    slots = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def arguments(data: list[Tensor]) -> Any:
        filled = list(leaves)
        for i, tensor in zip(slots, data, strict=True):
            filled[i] = tensor
        return pytree.tree_unflatten(filled, spec)

    return [leaves[i] for i in slots], arguments


def _updated(module: nn.Module, args, kwargs) -> tuple[str, ...]:
    """Names of the floating-point buffers that a call of the module writes to."""
    before = {n: b.clone() for n, b in saved_buffers(module).items()}
    with untouched(module, seed=0), warnings.catch_warnings(), uncompiled():
        warnings.simplefilter("ignore")
        try:
            gradless(module, *args, **kwargs)
        except Exception as error:
            text = f"the module could not be run with these inputs: {type(error).__name__}: {error}"
            raise TraceError(text) from error
        after = dict(module.named_buffers())
        return tuple(n for n, value in before.items() if n in after and not torch.equal(after[n], value))


def _trace(
    function: Callable[..., Any], values: Mapping[str, Tensor], data: list[Tensor], model, seed: int
) -> GraphModule:
    with (
        warnings.catch_warnings(),
        untouched(model, seed=seed),
        _decomposed_kernels(),
        _quiet(),
        uncompiled(),
    ):
        try:
            module = gradless(_functional_graph, function, values, data)
        except PyroAlignError as error:  # Pyro appends the shapes of its trace to every message
            raise type(error)(str(error).split("\n")[0]) from None
        except Exception as error:
            raise TraceError(f"the model could not be traced: {_described(error)}. {_ADVICE}") from error
    _free_constants(module)
    finish(module)
    _free_of_strides(module)
    hoist_selections(module)
    finish(module)
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and not all(isinstance(n, int) for n in value.shape):
            raise TraceError(
                f"the shape of a tensor depends on the values of others ({node.target}); write it without boolean "
                f"indexing or nonzero, with torch.where for example. {_ADVICE}"
            )
        if _is_random(node):
            raise TraceError(
                f"the model draws random numbers outside its sample sites ({node.target}); switch dropout off with "
                f".eval(), or make the noise a sample site. {_ADVICE}"
            )
    return module


def _described(error: Exception) -> str:
    """The error's kind and the first line that it says, with the line of the model where it arose."""
    if isinstance(error, GuardOnDataDependentSymNode | DataDependentOutputException | DynamicOutputShapeException):
        text = "a value that depends on the latent sites decides a size or what is done next"
    else:
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message").rstrip(".")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_library(f.filename)]
    where = f" (at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""
    return f"{text}{where}" if text.startswith("a value that") else f"{type(error).__name__}: {text}{where}"


@contextlib.contextmanager
def _quiet():
    """Without what torch logs of errors that are reported here in one sentence."""
    parts = ("_subclasses", "_subclasses.fake_tensor", "_subclasses.meta_utils", "fx.experimental", "_dynamo")
    loggers = [logging.getLogger(f"torch.{part}") for part in parts]
    flags = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, flag in zip(loggers, flags, strict=True):
            logger.disabled = flag


def _functional_graph(function: Callable[..., Any], values: Mapping[str, Tensor], data: list[Tensor]) -> GraphModule:
    """The graph without in-place operations."""
    recording = Recording(_decompositions(), where=calling_line)

    def looking(sites: list[Tensor], given: list[Tensor]) -> Any:
        with ConcreteData(recording, list(values), data):
            return function(sites, given)

    module = recording.run(looking, list(values.values()), data)
    if not without_writes(module, _decompositions()):
        _detach_attributes(module)
        functional = torch.func.functionalize(Interpreter(module).run, remove="mutations")
        module = Recording(_decompositions()).run(functional, *values.values(), *data)
    return module


def _free_of_strides(module: GraphModule) -> None:
    """Views become reshapes: a graph is run again on tensors that may be laid out otherwise than when it was traced."""
    aten = torch.ops.aten
    for node in module.graph.nodes:
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        elif node.target is aten.as_strided.default:
            source, result = node.args[0].meta["val"], node.meta["val"]
            whole = source.numel() == result.numel() and source.storage_offset() == result.storage_offset()
            if whole and source.is_contiguous() and result.is_contiguous():
                node.target, node.args, node.kwargs = aten.reshape.default, (node.args[0], list(result.shape)), {}


def _free_constants(module: GraphModule) -> None:
    """Tensors of one number stand on their own, whatever tensor their shape was taken from.

    Uninitialized memory, which a model fills before it reads it but which may not be looked at, is taken for zeros.
    """
    for node in module.graph.nodes:
        kind = getattr(node.target, "_opname", "") if node.op == "call_function" else ""
        if (number := _number_of(kind, node)) is not None:
            value = node.meta["val"]
            node.target, node.args = torch.ops.aten.full.default, (list(value.shape), number)
            node.kwargs = {"dtype": value.dtype, "device": value.device}


def _number_of(kind: str, node: Node) -> float | None:
    """The number of which a node makes a tensor; None for any other node."""
    if kind in ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"):
        return 0
    if kind in ("zeros_like", "new_zeros", "ones_like", "new_ones") and node.meta["val"].numel() <= _LARGEST:
        return int(kind in ("ones_like", "new_ones"))
    given = node.args[-1] if kind in ("full_like", "new_full") and len(node.args) > 1 else None
    return given if isinstance(given, int | float) and node.meta["val"].numel() <= _LARGEST else None


def _is_random(node: Node) -> bool:
    return node.op == "call_function" and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _detach_attributes(module: GraphModule) -> None:
    """Lets in-place operations write to copies of the graph's constants (running statistics, say)."""
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and isinstance(attribute(module, node.target), Tensor):
            with module.graph.inserting_after(node):
                # lifted, so that functionalization takes the copy for one of its own tensors
                copy_node = module.graph.call_function(torch.ops.aten.lift_fresh_copy.default, (node,))
            node.replace_all_uses_with(copy_node, delete_user_cb=lambda user, own=copy_node: user is not own)
    module.recompile()


@contextlib.contextmanager
def _decomposed_kernels():
    """Attention and recurrent layers as matrix products, not as fused kernels; some log densities as operations."""
    warnings.simplefilter("ignore")
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.backends.mkldnn.flags(enabled=False),
            torch.backends.cudnn.flags(enabled=False),
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
            densities_as_operations(),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@functools.cache
def _decompositions() -> dict[str, Any]:
    aten = torch.ops.aten
    table = {op: f for op, f in core_aten_decompositions().items() if op._opname not in _UNDERSTOOD}
    table.update(
        get_decompositions(
            [
                aten.native_layer_norm,
                aten.native_batch_norm,
                aten._native_batch_norm_legit,
                aten._native_batch_norm_legit_no_training,
                aten._softmax,
                aten._log_softmax,
            ]
        )
    )
    table[aten.native_group_norm.default] = _group_norm
    table[aten._thnn_fused_lstm_cell.default] = _lstm_cell
    table[aten._thnn_fused_gru_cell.default] = _gru_cell
    return table


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, channels: int, _: int, groups: int, eps: float
):
    """In half as many operations, and a fifth of the time, as PyTorch's own decomposition."""
    grouped = x.reshape(n, groups, -1)
    variance, mean = torch.var_mean(grouped, -1, correction=0, keepdim=True)
    scale = (variance + eps).rsqrt()
    out = ((grouped - mean) * scale).reshape(x.shape)
    along_channels = [channels] + [1] * (x.dim() - 2)
    out = out if weight is None else out * weight.reshape(along_channels)
    out = out if bias is None else out + bias.reshape(along_channels)
    return out, mean.squeeze(-1), scale.squeeze(-1)


def _lstm_cell(from_input: Tensor, from_hidden: Tensor, cell: Tensor, *biases: Tensor | None):
    """What an accelerator computes in one kernel, in the order of its gates: input, forget, cell, output."""
    gates = from_input + from_hidden + sum(b for b in biases if b is not None)
    i, f, g, o = gates.chunk(4, -1)
    new = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * new.tanh(), new, gates


def _gru_cell(from_input: Tensor, from_hidden: Tensor, hidden: Tensor, *biases: Tensor | None):
    """As :func:`_lstm_cell`; gates reset, update, new."""
    pair = zip((from_input, from_hidden), biases or (None, None), strict=True)
    (ir, iz, i_new), (hr, hz, h_new) = ((g if b is None else g + b).chunk(3, -1) for g, b in pair)
    new = (i_new + (ir + hr).sigmoid() * h_new).tanh()
    return new + (iz + hz).sigmoid() * (hidden - new), from_input


def _assemble(
    module: GraphModule,
    values,
    data,
    captured: Mapping[str, Tensor],
    states: tuple[str, ...] = (),
    params: Iterable[str] = (),
) -> TracedGraph:
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    names = list(values)
    nodes: dict[str, tuple[Node, ...]] = {name: (placeholders[i],) for i, name in enumerate(names)}
    data_nodes = dict(zip(placeholders[len(names) :], data, strict=True))
    values = dict(values)
    for name in params:
        # `pyro.module`, and a PyroModule's own `nn.Parameter`s, announce a parameter and then go on with the module's
        # tensor: nothing depends on the value announced, which must not be mistaken for a site that is free to move.
        if not nodes[name][0].users:
            module.graph.erase_node(nodes[name][0])
            del values[name], nodes[name]
    if captured:
        by_id = {id(t): name for name, t in captured.items()}
        for node in module.graph.nodes:
            if node.op == "get_attr":
                name = by_id.get(id(attribute(module, node.target)))
                if name is not None and name not in values:
                    nodes[name] = (*nodes.get(name, ()), node)
        values.update({name: captured[name].detach() for name in nodes if name in captured})
    return TracedGraph(module, values, nodes, data_nodes, states)


def attribute(module: GraphModule, target: str) -> Any:
    """What an attribute node of a graph stands for."""
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value
