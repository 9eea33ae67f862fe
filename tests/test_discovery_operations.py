"""An operation is declared in one place: every domain, probe and check then knows it."""

import pytest
import torch
from problems import normal, observe
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_align import find_symmetry
from pyro_align.discovery import (
    check_rotation_rule,
    check_rule,
    check_sign_rule,
    contraction,
    ops,
    probe_activations,
    probe_preactivations,
    rule,
)
from pyro_align.discovery.certify import GraphFunction
from pyro_align.discovery.tracing import TracedGraph, trace_module
from pyro_align.discovery.walk import Constants


@torch.library.custom_op("operations_test::affine", mutates_args=())
def affine(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.einsum("ni,oi->no", x, weight) + bias


@affine.register_fake
def _(x, weight, bias):
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("operations_test::turned", mutates_args=())
def turned(x: torch.Tensor) -> torch.Tensor:
    return x.mT.clone()


@turned.register_fake
def _(x):
    return x.new_empty(*x.shape[:-2], x.shape[-1], x.shape[-2])


def model(x):
    hidden = torch.tanh(affine(x, normal("w1", 4, 3), normal("b1", 4)))
    observe(affine(turned(turned(hidden)), normal("w2", 2, 4), torch.zeros(2)))


@pytest.fixture
def declared():
    """Both operations declared, each by one statement."""
    contraction("operations_test.affine", "ni,oi->no", added=2)
    rule("operations_test.turned", family="view")(lambda call, x: [*x.axes[:-2], x.axes[-1], x.axes[-2]])
    yield
    for name in ("operations_test.affine", "operations_test.turned"):
        ops.withdraw(name)
        rule.rules.pop(name, None)


X = torch.randn(5, 3, dtype=torch.float64)


def test_what_nobody_declared_is_opaque():
    symmetry = find_symmetry(model, X, signs=True)
    assert not symmetry.atoms
    assert {op.operation for op in symmetry.opaque} == {"operations_test.affine.default"}


@pytest.mark.usefixtures("declared")
def test_one_declaration_serves_every_domain():
    symmetry = find_symmetry(model, X, signs=True)
    assert [" | ".join(map(str, axes)) for axes in symmetry.sites.values()] == ["±w1 | fixed 3", "±w1", "fixed 2 | ±w1"]
    assert not symmetry.opaque


@pytest.mark.usefixtures("declared")
def test_one_declaration_serves_rotations():
    def linear(x):
        observe(
            affine(turned(turned(affine(x, normal("w1", 4, 3), normal("b1", 4)))), normal("w2", 2, 4), torch.zeros(2))
        )

    assert find_symmetry(linear, X, rotations=True).rotated == {"w1"}


@pytest.mark.usefixtures("declared")
def test_one_declaration_serves_the_probes():
    symmetry = find_symmetry(model, X)
    (activations,) = probe_activations(model, X, symmetry=symmetry).axes.values()  # seen through the views
    assert [str(term) for term in activations] == ["fixed 5", "w1"]
    (layer,) = probe_preactivations(model, X, symmetry=symmetry).layers
    assert (layer.atom, layer.weight, layer.bias) == ("w1", ("w1", 0), ("b1", 0))


@pytest.mark.usefixtures("declared")
def test_one_declaration_serves_the_checks():
    assert not check_rule(affine, torch.randn(4, 3), torch.randn(2, 3), torch.randn(2)).opaque
    assert check_sign_rule(affine, torch.randn(4, 3), torch.randn(2, 3), torch.zeros(2), constants=(2,)).free == 8
    assert not check_rule(turned, torch.randn(2, 3, 4)).opaque
    assert check_sign_rule(turned, torch.randn(3, 4)).free == 12
    assert check_rotation_rule(turned, torch.randn(3, 4)).rotated
    assert check_rotation_rule(affine, torch.randn(4, 3), torch.randn(2, 3), torch.randn(2)).rotated


def test_constants_made_in_single_precision_are_certified_in_double():
    torch.set_default_dtype(torch.float32)  # put back after every test

    def single(x):
        start = torch.full((3,), 0.1) @ normal("w1", 8, 3).T
        observe(torch.tanh(start + torch.eye(8) @ normal("w2", 8)) @ normal("w3", 2, 8).T, torch.zeros(2))

    assert find_symmetry(single, X.float()).log_order > 0


def test_a_constant_that_repeats_is_computed_once():
    def repeated(s, w):
        prior = torch.log(torch.ones(()).expand(400, 300) * 2.0)
        return (s - prior).sum() + (w * torch.arange(300.0)).sum()

    graph = make_fx(repeated, tracing_mode="fake", _allow_non_fake_inputs=True)(torch.randn(400, 300), torch.randn(300))
    s, w = (node for node in graph.graph.nodes if node.op == "placeholder")
    values = {"s": torch.randn(400, 300), "w": torch.randn(300)}
    traced = TracedGraph(graph, values, {"s": (s,), "w": (w,)}, {})
    (prior,) = (v for v in Constants(traced).used().values() if v is not None and v.dim() == 2)
    assert prior.shape == (400, 300)
    assert prior.stride() == (0, 0)
    assert torch.equal(GraphFunction(traced)(values), repeated(*values.values()).reshape(1))


@pytest.mark.parametrize("affine", [True, False])
def test_group_norm_is_decomposed_into_what_it_is(affine):
    norm = torch.nn.GroupNorm(2, 6, affine=affine)
    net = torch.nn.Sequential(torch.nn.Linear(3, 12, bias=False), torch.nn.Unflatten(1, (6, 2)), norm)
    traced = trace_module(net, (X,), {})
    values = {k: torch.randn_like(v) for k, v in traced.values.items()}
    expected = torch.func.functional_call(net, values, (X,))
    torch.testing.assert_close(GraphFunction(traced)(values), expected.flatten())
