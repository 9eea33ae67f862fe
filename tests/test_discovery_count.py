"""The completeness count: the dimension of all linear symmetries, on models whose algebra is known from theory."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import normal
from torch import nn

from pyro_align import Symmetry, find_symmetry, load, save
from pyro_align.errors import TraceError

N, P, K = 6, 5, 3
DATA = torch.randn(N, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGET = torch.randn(N, P, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def see(mean, target=TARGET):
    pyro.sample(
        "y", dist.Normal(mean, 1.0).to_event(mean.dim()), obs=target.reshape(-1)[: mean.numel()].view(mean.shape)
    )


def factors(scale=1.0):
    see(normal("z", N, K) @ normal("w", P, K, scale=scale).T)


def factors_in_order():
    factors(torch.tensor([1.0, 0.5, 0.25]))


def factors_by_covariance():
    w, s = normal("w", P, K), pyro.sample("s", dist.HalfNormal(torch.ones(P)).to_event(1))
    y = dist.MultivariateNormal(torch.zeros(P), w @ w.T + torch.diag_embed(s**2))
    pyro.sample("y", y.expand([N]).to_event(1), obs=TARGET)


def two_scales():
    """Three columns of which two have equal scales."""
    factors(torch.tensor([1.0, 1.0, 0.25]))


def inner_products():
    z = normal("z", N, K)
    see((z @ z.T)[:, :P])


def deep_linear():
    see(DATA @ normal("a", K, 4).T @ normal("b", 2, K).T @ normal("c", P, 2).T)


def with_a_gain():
    see((DATA @ normal("a", K, 4).T * normal("gain", K)) @ normal("c", P, K).T)


def relu():
    see(torch.relu(DATA @ normal("a", K, 4).T + normal("bias", K)) @ normal("c", P, K).T)


def leaky_relu_and_tanh():
    hidden = nn.functional.leaky_relu(DATA @ normal("a", K, 4).T)
    see(torch.tanh(hidden @ normal("b", 2, K).T) @ normal("c", P, 2).T)


def before_a_norm():
    """Before the norm all rows may be scaled and moved along the ones; so may the columns behind it; and O(K - 1)."""
    hidden = DATA @ normal("a", K, 4).T
    see(nn.functional.layer_norm(hidden, (K,), eps=0.0) @ normal("c", P, K).T)


def number():
    """A single number, nothing of which may be moved."""
    see(DATA[:, 0] + normal("u"), TARGET[:, 0])


def product():
    see(normal("u", 1)[:, None] * normal("v", 1) * TARGET)


def attention(heads=1, dim=2, turn=None):
    stream = DATA @ normal("embed", 4, 5)
    q, k, v = ((stream @ normal(n, 5, heads * dim)).view(N, heads, dim).transpose(0, 1) for n in "qkv")
    if turn is not None:
        q, k = turn(q), turn(k)
    mixed = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
    see(torch.tanh(mixed.transpose(0, 1).reshape(N, -1) @ normal("o", heads * dim, P)))


def heads():
    attention(heads=2)


def rotary():
    """Two pairs, each turned by an angle that grows with the position: SO(2) twice, and a scale for each pair."""

    def turn(x):
        angle = torch.arange(N)[:, None] * torch.tensor([1.0, 0.3])
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    attention(dim=4, turn=turn)


def residual_stream(norm):
    h = DATA @ normal("embed", 4, K)
    for layer in range(2):
        h = h + torch.tanh(norm(h) @ normal(f"up{layer}", K, 2)) @ normal(f"down{layer}", 2, K)
    see(norm(h) @ normal("head", K, P))


def rms():
    residual_stream(lambda h: h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6))


def layer_norm():
    residual_stream(lambda h: nn.functional.layer_norm(h, (K,)))


def so(n):
    return n * (n - 1) // 2


@pytest.mark.parametrize(
    ("model", "scope", "dimension"),
    [
        (factors, "joint", so(K)),
        (factors, "likelihood", K**2),
        (factors_in_order, "joint", 0),
        (two_scales, "joint", so(2)),
        (factors_by_covariance, "joint", so(K)),
        (inner_products, "likelihood", so(K)),
        (deep_linear, "joint", so(K) + so(2)),
        (deep_linear, "likelihood", K**2 + 2**2),
        (with_a_gain, "likelihood", 2 * K),
        (relu, "joint", 0),
        (relu, "likelihood", K),
        (leaky_relu_and_tanh, "likelihood", K),
        (before_a_norm, "likelihood", 1 + 2 * K + so(K - 1)),
        (product, "likelihood", 1),
        (number, "joint", 0),
        (attention, "joint", so(2) + so(2)),
        (attention, "likelihood", 2 * 2**2 + 5**2),  # and the stream, which is linear
        (heads, "joint", 2 * (so(2) + so(2))),
        (rotary, "joint", 2 + so(4)),
        (rms, "joint", so(K)),
        (layer_norm, "joint", so(K - 1)),
    ],
)
def test_the_count_is_what_theory_says(model, scope, dimension):
    if model in (attention, heads, rotary) and scope == "joint":
        dimension += so(5)  # the stream
    completeness = find_symmetry(model, scope=scope, signs=True, rotations=True, count=True).certificate.completeness
    assert completeness.dimension == dimension
    assert completeness.gap > 1e4
    assert completeness.found + sum(m.dimension for m in completeness.missing) == dimension


def test_a_gradient_that_is_rounding_is_read_as_zero():
    """The keys' bias, which the softmax drops: without a prior its entries may be anything."""

    def network(x, bias):
        q, k, v = (x @ normal(n, 4, 4) for n in "qkv")
        k = k + normal("b", 4) if bias else k
        mixed = torch.softmax(q @ k.mT, -1) @ v
        see(torch.tanh(mixed), TARGET[:, :4])

    plain, free = (
        find_symmetry(network, DATA, bias, scope="likelihood", rotations=True, count=True).certificate.completeness
        for bias in (False, True)
    )
    assert plain.found == free.found == so(4)
    assert (plain.dimension, free.dimension) == (4**2, 4**2 + 4 * 3)  # as many as there are tangents at three points


def test_sites_on_which_nothing_linear_acts_have_nothing_to_count():
    def model():
        pyro.sample("y", dist.Categorical(pyro.sample("p", dist.Dirichlet(torch.ones(3)))), obs=torch.tensor(1))

    assert find_symmetry(model, count=True).certificate.completeness.complete


def test_what_is_missing_is_named():
    found = find_symmetry(factors, count=True).certificate.completeness
    assert [str(m) for m in found.missing] == ["rotations of dimension 3 on z[1], w[1]"]
    assert not found.complete
    likely = find_symmetry(factors, scope="likelihood", rotations=True, count=True).certificate.completeness
    assert [str(m) for m in likely.missing] == ["linear maps of dimension 6 on z[0], z[1], w[0], w[1]"]
    assert find_symmetry(factors, rotations=True, count=True).certificate.completeness.complete
    scaled = find_symmetry(relu, scope="likelihood", count=True).certificate.completeness
    assert [(m.kind, m.dimension) for m in scaled.missing] == [("scalings", K)]
    assert find_symmetry(relu, scope="likelihood", scalings=True, count=True).certificate.completeness.complete


@pytest.mark.parametrize(
    ("model", "dimension"), [(layer_norm, so(K - 1)), (two_scales, so(2)), (rotary, 2 + so(4) + so(5))]
)
def test_centered_rotations_and_those_of_blocks_and_planes_are_counted_as_found(model, dimension):
    group = find_symmetry(model, rotations=True, count=True)
    assert (group.dimension, group.certificate.completeness.found) == (dimension, dimension)
    assert group.certificate.completeness.complete


def test_networks_are_counted_by_their_outputs():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    count = find_symmetry(net, torch.randn(5, 3), count=True).certificate.completeness
    assert count.dimension == 4


def test_long_axes_are_left_out_and_named(monkeypatch):
    monkeypatch.setattr("pyro_align.discovery.count.GENERATORS", 60)
    count = find_symmetry(factors, rotations=True, count=True).certificate.completeness
    assert count.left_out == (("z", 0),)
    assert (count.dimension, count.found) == (3, 3)
    assert "not covered: z[0]" in str(count)


def test_it_is_saved_with_the_symmetry(tmp_path):
    symmetry = find_symmetry(factors, count=True)
    save(tmp_path / "group", symmetry)
    again = load(tmp_path / "group")
    assert isinstance(again, Symmetry)
    assert again.certificate == symmetry.certificate


def test_a_model_without_derivatives_is_refused():
    def model():
        w = normal("w", 3)
        see(torch.special.zeta(w.square() + 2, torch.ones(())))

    with pytest.raises(TraceError, match="derivatives"):
        find_symmetry(model, count=True)
