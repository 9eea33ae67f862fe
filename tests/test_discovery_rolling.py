"""Loops over indices are read as what they compute; what tells the indices apart still does."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyro_align import find_symmetry

X = torch.linspace(-1.0, 1.0, 15).reshape(5, 3)


class Net(nn.Module):
    """A forward pass over parameters of given shapes."""

    def __init__(self, forward, **shapes):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)))
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def log_order(forward, x=X, **shapes):
    return find_symmetry(Net(forward, **shapes), x.double()).log_order


UNITS = {"w": (4, 3), "b": (4,), "v": (4,)}
SUMS = {
    "sum": lambda s, x: sum(torch.tanh(x @ s.w[i] + s.b[i]) * s.v[i] for i in range(4)),
    "backwards": lambda s, x: sum(torch.tanh(x @ s.w[i] + s.b[i]) * s.v[i] for i in reversed(range(4))),
    "stack": lambda s, x: torch.stack([torch.tanh(x @ s.w[i] + s.b[i]) for i in range(4)], 1) @ s.v,
    "slices": lambda s, x: torch.cat([torch.tanh(x @ s.w[i : i + 1].T + s.b[i]) for i in range(4)], 1) @ s.v,
    "product": lambda s, x: math.prod(1 + torch.sigmoid(x @ s.w[i] + s.b[i]) * s.v[i] for i in range(4)),
    "unbind": lambda s, x: sum(
        torch.tanh(x @ w + b) * v for w, b, v in zip(s.w.unbind(), s.b.unbind(), s.v.unbind(), strict=True)
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_units_one_by_one(name):
    assert log_order(SUMS[name], **UNITS) == pytest.approx(math.log(24))


def accumulated(s, x):
    total = torch.full((5,), -1e30, dtype=x.dtype)
    for i in range(4):
        total = torch.logaddexp(total, x @ s.w[i] + s.b[i])
    return total


def test_an_accumulated_logarithm():
    assert log_order(accumulated, w=(4, 3), b=(4,)) == pytest.approx(math.log(24))


BROKEN = {  # the same with something that tells the units apart
    "a number of its own": (lambda s, x: sum((i + 1) * torch.tanh(x @ s.w[i]) * s.v[i] for i in range(4)), 0.0),
    "one of another kind": (
        lambda s, x: sum((torch.tanh if i < 3 else torch.relu)(x @ s.w[i]) * s.v[i] for i in range(4)),
        math.log(6),
    ),
    "another order in one place": (
        lambda s, x: sum(torch.tanh(x @ s.w[i] + s.b[(i + 1) % 4]) * s.v[i] * s.b[i] for i in range(4)),
        0.0,
    ),
    "a neighbor": (lambda s, x: sum(torch.tanh(x @ s.w[i]) * torch.tanh(x @ s.w[i - 1]) for i in range(4)), 0.0),
    "a running value": (
        lambda s, x: torch.stack([torch.tanh(x @ s.w[: i + 1].sum(0)) for i in range(4)], 1) @ s.v,
        0.0,
    ),
    "data of its own": (lambda s, x: sum(x[:, i] * torch.tanh(x @ s.w[i]) * s.v[i] for i in range(3)), 0.0),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_tells_the_indices_apart_still_does(name):
    forward, expected = BROKEN[name]
    n = 3 if "data" in name else 4
    symmetry = find_symmetry(Net(forward, w=(n, 3), b=(n,), v=(n,)), X.double())
    moving = [symmetry.atoms[a].size for a, places in symmetry.carriers.items() if ("w", 0) in places]
    assert sum(math.lgamma(size + 1) for size in moving) == pytest.approx(expected)


def test_two_numbers_make_two_sets():
    def forward(s, x):
        return sum((1.0 if i < 2 else 2.0) * torch.tanh(x @ s.w[i]) * s.v[i] for i in range(4))

    assert log_order(forward, w=(4, 3), v=(4,)) == pytest.approx(math.log(4))


def test_loops_inside_loops():
    def forward(s, x):
        edges = ([s.a[h, i] * torch.sin(s.b[h, i] * x[:, i]) for i in range(3)] for h in range(4))
        return sum(s.c[h] * torch.tanh(sum(edge)) for h, edge in enumerate(edges))

    assert log_order(forward, a=(4, 3), b=(4, 3), c=(4,)) == pytest.approx(math.log(24))


def heads(s, x, join):
    def head(h):
        q, k, v = ((x @ w.T)[..., 2 * h : 2 * h + 2] for w in (s.q, s.k, s.v))
        return torch.softmax(q @ k.mT, -1) @ v

    return join([head(h) for h in range(3)])


def test_heads_in_a_loop_are_heads():
    x = torch.linspace(-1, 1, 24).reshape(2, 4, 3)
    shapes = {"q": (6, 3), "k": (6, 3), "v": (6, 3), "o": (3, 6)}
    expected = math.log(6) + 3 * (math.log(2) + math.log(2))
    cat = log_order(lambda s, x: heads(s, x, lambda parts: torch.cat(parts, -1)) @ s.o.T, x, **shapes)
    assert cat == pytest.approx(expected)
    summed = log_order(
        lambda s, x: heads(s, x, lambda p: sum(t @ s.o[:, 2 * h : 2 * h + 2].T for h, t in enumerate(p))), x, **shapes
    )
    assert summed == pytest.approx(expected)
    mixed = log_order(lambda s, x: heads(s, x, lambda p: torch.cat([p[0] + p[1], *p[1:]], -1)) @ s.o.T, x, **shapes)
    assert mixed < expected - 1


def test_two_layers_side_by_side_keep_units_of_their_own():
    """Two equal slices of one parameter that other parameters tell apart: rolled, their units would be tied."""

    def forward(s, x):
        a, b = torch.tanh(x @ s.w.T).chunk(2, 1)
        return a @ s.v1 + (b @ s.v2) * (x[:, :1] + torch.cat([a, b], 1) @ s.v3)

    assert log_order(forward, w=(8, 3), v1=(4, 2), v2=(4, 2), v3=(8, 1)) == pytest.approx(2 * math.log(24))


def test_choices_by_size():
    """Places of extrema are indices of the axis, as long as they are used as such."""
    x = torch.linspace(-1, 1, 18).reshape(6, 3)
    shapes = {"g": (4, 3), "e": (4, 5)}
    chosen = {
        "index": lambda s, x: s.e[(x @ s.g.T).argmax(1)],
        "gather": lambda s, x: (x @ s.g.T @ s.e.sum(1).diag()).gather(1, (x @ s.g.T).argmax(1, keepdim=True)),
        "one_hot": lambda s, x: F.one_hot((x @ s.g.T).argmax(1), 4).double() @ s.e,
        "topk": lambda s, x: s.e[(x @ s.g.T).topk(2).indices].sum(1),
        "scatter": lambda s, x: torch.zeros_like(x @ s.g.T).scatter(1, (x @ s.g.T).topk(2).indices, 1.0) @ s.e,
    }
    for name, forward in chosen.items():
        found = find_symmetry(Net(forward, **shapes), x.double())
        assert any(("g", 0) in places for places in found.carriers.values()), name
    as_numbers = {
        "a number": lambda s, x: (x @ s.g.T).argmax(1).double() @ (x @ s.e[0, :3]),
        "data looked up": lambda s, x: x.T[(x @ s.g.T).argmax(1) % 3] @ x @ s.e[0, :3],
        "an order": lambda s, x: ((x @ s.g.T).argmax(1) > 1).double() @ (x @ s.e[0, :3]),
        "another table": lambda s, x: torch.arange(4.0).double()[(x @ s.g.T).argmax(1)],
        "two numbers": lambda s, x: ((x @ s.g.T).argmax(1) == 2).double(),
    }
    for name, forward in as_numbers.items():
        found = find_symmetry(Net(forward, **shapes), x.double())
        assert not any(("g", 0) in places for places in found.carriers.values()), name


def test_rounds_of_a_constant():
    """Degrees in turn, as in masks of autoregressive networks: units of one degree are alike."""
    degree, of_input = torch.tensor([1, 2, 1, 2, 1, 2]), torch.tensor([1, 2, 3])
    masks = (degree[:, None] >= of_input).double(), (of_input[:, None] > degree).double()
    forward = lambda s, x: torch.relu(x @ (s.w * masks[0]).T + s.b) @ (s.v * masks[1]).T  # noqa: E731
    assert log_order(forward, w=(6, 3), b=(6,), v=(3, 6)) == pytest.approx(2 * math.log(6))
