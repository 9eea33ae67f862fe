"""Repaired paths: units keep the interpolated mean and spread; exact ends; what cannot be told is left alone."""

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from barrier_problems import make_guide
from pyro.infer.autoguide import AutoDelta
from torch.nn import functional as F

from pyro_align import displacement, evaluate_barrier, find_symmetry, repair
from pyro_align.demo.network import bayesian_mlp
from pyro_align.discovery import probe_preactivations
from pyro_align.errors import GuideError
from pyro_align.guides import read_guide

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(60) % 3
MODEL = bayesian_mlp([4, 9, 8, 7, 3])


def path_of(model, *args, scale=0.05):
    return displacement(*(make_guide(model, *args, seed=s, scale=scale) for s in (1, 2)))


def preactivations(q, num_samples, seed=0):
    """By hand: every layer's pre-activations of MODEL, ``(draws, data, units)``."""
    values = q.push(q.noise(num_samples, generator=seed))
    h, out = X.expand(num_samples, *X.shape), []
    for i in range(3):
        z = h @ values[f"layer{i}.weight"].mT + values[f"layer{i}.bias"][:, None]
        out.append(z)
        h = torch.relu(z)
    return out


def center(z):
    return z.mean((0, 1))


def deviation(z):
    return z.std((0, 1), correction=0)


@pytest.mark.parametrize("tau", [0.2, 0.5])
def test_every_unit_has_the_interpolated_mean_and_spread(tau):
    straight = path_of(MODEL, X, Y)
    path = repair(MODEL, straight, X, Y, num_samples=6)
    assert [layer.weight for layer in path.layers] == [(f"layer{i}.weight", 0) for i in range(3)]
    ends = [preactivations(straight.posterior(t), 6) for t in (0.0, 1.0)]
    before, after = (preactivations(p.posterior(tau), 6) for p in (straight, path))
    for i, (z0, z1) in enumerate(zip(*ends, strict=True)):
        mean, spread = ((1 - tau) * moment(z0) + tau * moment(z1) for moment in (center, deviation))
        assert torch.allclose(center(after[i]), mean), i
        assert torch.allclose(deviation(after[i]), spread), i
        assert deviation(before[i]).mean() < 0.95 * spread.mean(), "what is there to repair"
    mean, spread = path.spreads(tau)["layer2.weight"]
    assert torch.allclose(mean, center(after[2]))
    assert torch.allclose(spread, deviation(after[2]))


def test_the_ends_and_the_output_layer_are_left_alone():
    straight = path_of(MODEL, X, Y)
    path = repair(MODEL, straight, X, Y)
    for tau in (0.0, 1.0):
        assert path.posterior(tau).distance(straight.posterior(tau)) == 0
    for site in ("layer3.weight", "layer3.bias"):
        for a, b in zip(path.posterior(0.5).marginal(site), straight.posterior(0.5).marginal(site), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        path.posterior(1.2)


def test_a_path_from_a_posterior_to_itself_needs_no_repair():
    q = read_guide(make_guide(MODEL, X, Y))
    path = repair(MODEL, displacement(q, read_guide(make_guide(MODEL, X, Y))), X, Y, num_samples=3)
    assert path.posterior(0.5).distance(q) < 1e-6


def test_noise_keeps_its_share():
    """A unit is scaled as a whole: its weights' locations over their standard deviations stay."""
    straight = path_of(MODEL, X, Y)
    a, b = (p.posterior(0.5).marginal("layer1.weight") for p in (straight, repair(MODEL, straight, X, Y)))
    assert torch.allclose(a[0] / a[1], b[0] / b[1])
    factor = b[1] / a[1]
    assert torch.allclose(factor, factor[:, :1].expand_as(factor))


def test_barriers_and_pickles():
    path = repair(MODEL, path_of(MODEL, X, Y), X, Y, num_samples=2)
    barrier = evaluate_barrier(MODEL, path, X, Y, taus=3, num_samples=4)
    assert barrier["negative_elbo"].value.shape == (3,)
    path = repair(convolutional, path_of(convolutional, IMAGES, LABELS), IMAGES, LABELS, num_samples=2)
    again = pickle.loads(pickle.dumps(path))
    assert again.posterior(0.5).distance(path.posterior(0.5)) == 0


# -- other models ------------------------------------------------------------------------------------------------------

IMAGES = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.arange(5) % 3


def convolutional(x, y):
    c = pyro.sample("c", dist.Normal(0.0, 1.0).expand([4, 2, 3, 3]).to_event(4))
    d = pyro.sample("d", dist.Normal(0.0, 1.0).expand([5, 4, 3, 3]).to_event(4))
    bias = pyro.sample("bias", dist.Normal(0.0, 1.0).expand([5, 1, 1]).to_event(3))
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([5, 3]).to_event(2))
    h = F.relu(F.conv2d(F.relu(F.conv2d(x, c)), d) + bias)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=h.mean((-1, -2)) @ w), obs=y)


def recurrent(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 4]).to_event(2))
    u = pyro.sample("u", dist.Normal(0.0, 0.5).expand([4, 4]).to_event(2))
    v = pyro.sample("v", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    h = torch.tanh(x[:, 0] @ w)
    h = torch.tanh(x[:, 1] @ w + h @ u)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(h @ v, 1.0), obs=y)


def shared_bias(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 6]).to_event(2))
    b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([6]).to_event(1))
    u = pyro.sample("u", dist.Normal(0.0, 1.0).expand([6, 6]).to_event(2))
    v = pyro.sample("v", dist.Normal(0.0, 1.0).expand([6]).to_event(1))
    h = torch.relu(torch.relu(x @ w + b) @ u + b)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(h @ v, 1.0), obs=y)


def test_channels_of_convolutions_and_layers_without_bias():
    straight = path_of(convolutional, IMAGES, LABELS)
    path = repair(convolutional, straight, IMAGES, LABELS, num_samples=3)
    assert [(layer.weight, layer.bias) for layer in path.layers] == [(("c", 0), None), (("d", 0), ("bias", 0))]
    for site, i in (("c", 1), ("d", 0), ("d", 1)):  # without a bias, only the spread is repaired
        ends = [path.spreads(t)[site][i] for t in (0.0, 1.0)]
        assert torch.allclose(path.spreads(0.5)[site][i], (ends[0] + ends[1]) / 2)


def test_units_that_cannot_be_told_are_left_alone():
    x = torch.randn(20, 2, 2)
    probe = probe_preactivations(recurrent, x, x[:, 0, 0], symmetry=find_symmetry(recurrent, x, x[:, 0, 0]))
    assert probe.layers == (), "a weight used twice, and one with its units on both axes"
    with pytest.raises(GuideError, match="no layer whose units' pre-activations"):
        repair(recurrent, path_of(recurrent, x, x[:, 0, 0]), x, x[:, 0, 0])
    x = torch.randn(20, 3)
    probe = probe_preactivations(shared_bias, x, x[:, 0], symmetry=find_symmetry(shared_bias, x, x[:, 0]))
    assert probe.layers == (), "a bias that two layers share"


def test_other_families_are_refused():
    points = []
    for _ in range(2):
        with pyro.get_param_store().scope():
            points.append(AutoDelta(MODEL))
            points[-1](X, Y)
    with pytest.raises(GuideError, match="mean-field Gaussians, got Point"):
        repair(MODEL, displacement(*points), X, Y)
    with pytest.raises(ValueError, match="num_samples"):
        repair(MODEL, path_of(MODEL, X, Y), X, Y, num_samples=0)
