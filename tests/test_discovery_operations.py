"""An operation is declared in one place: every domain, probe and check then knows it."""

import pytest
import torch
from problems import normal, observe

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
