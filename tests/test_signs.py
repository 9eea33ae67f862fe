"""Signs that were found, from end to end: guides, draws, barriers, files."""

import functools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import PROBLEMS
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal, init_to_sample

import pyro_align
from pyro_align import align, align_draws, evaluate_barrier, find_symmetry, permute_guide
from pyro_align.guides import read_guide
from pyro_align.io import load, save
from pyro_align.model.density import Density
from pyro_align.model.effects.permute import permute_model

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.sin(X.sum(-1))


def model(x, y):
    """Two layers of tanh, priors of units with scales of their own, a known noise."""

    def normal(name, *shape, scale=1.0):
        return pyro.sample(name, dist.Normal(0.0, scale).expand(shape).to_event(len(shape)))

    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(6), 0.3).to_event(1))
    hidden = torch.tanh(x @ normal("w1", 6, 3, scale=scale[:, None]).T + normal("b1", 6))
    hidden = torch.tanh(hidden @ normal("w2", 4, 6).T)
    mean = hidden @ normal("w3", 4)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mean, 0.2), obs=y)


@functools.cache
def found():
    with torch.random.fork_rng():
        return find_symmetry(model, X, Y, signs=True)


@pytest.fixture
def symmetry():
    """Found once, in the precision that every test has."""
    return found()


def guide_of(cls, seed):
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(seed)
        guide = cls(model, init_loc_fn=init_to_sample)
        guide(X, Y)
        with torch.no_grad():
            for p in guide.parameters():
                p.add_(0.1 * torch.randn(p.shape))
    return guide


def test_both_layers_are_signed(symmetry):
    assert len(symmetry.signed) == 2
    assert symmetry.log_order == pytest.approx(math.log(math.factorial(6) * 2**6 * math.factorial(4) * 2**4))
    assert str(symmetry.sites["w2"][0]) == "±w2"


@pytest.mark.parametrize("cls", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
def test_a_relabeled_and_turned_copy_is_recovered(cls, symmetry):
    guide = guide_of(cls, 1)
    hidden = symmetry.random(7)
    assert hidden.signs
    alignment = align(guide, permute_guide(guide, hidden), symmetry)
    assert alignment.distance < 1e-12 < 1.0 < alignment.distance_before
    assert alignment.permutation == hidden.inverse()
    plain = find_symmetry(model, X, Y)
    assert align(guide, permute_guide(guide, hidden), plain).distance > 1.0  # order alone does not do


def test_the_elbo_of_a_turned_guide_is_the_old_one(symmetry):
    """Draw by draw, under the model itself: it is symmetric."""
    guide, p = guide_of(AutoNormal, 2), symmetry.random(3)
    old, turned = read_guide(guide), read_guide(permute_guide(guide, p))
    noise = old.noise(4, generator=0)
    (before, q_before), (after, q_after) = (
        old.push_with_log_prob(noise),
        turned.push_with_log_prob(old.permute_noise(p, noise)),
    )
    torch.testing.assert_close(q_after, q_before)
    density = Density(model, (X, Y))
    for i in range(4):
        here, there = ({k: v[i] for k, v in values.items()} for values in (before, after))
        for k, v in p.apply(here).items():
            torch.testing.assert_close(there[k], v)
        torch.testing.assert_close(density.log_joint(there), density.log_joint(here))


def test_the_loss_between_turned_copies_stays_what_it_is(symmetry):
    guide = guide_of(AutoNormal, 4)
    turned = permute_guide(guide, symmetry.random(5))
    aligned = align(guide, turned, symmetry).guide
    options = {"taus": 5, "num_samples": 16, "seed": 0}
    before = evaluate_barrier(model, pyro_align.displacement(guide, turned), X, Y, **options)
    after = evaluate_barrier(model, pyro_align.displacement(guide, aligned), X, Y, **options)
    losses = [curve["expected_nll"].draws.mean(-1) for curve in (before, after)]  # along the path, nats per datum
    assert np.ptp(losses[0]) > 1.0
    assert np.ptp(losses[1]) < 1e-8


def test_draws_are_brought_to_one_order_and_sign(symmetry):
    density = Density(model, (X, Y))
    generator = torch.Generator().manual_seed(0)
    point = density.initial_values(seed=3)
    draws = {k: torch.empty(2, 20, *v.shape) for k, v in point.items()}
    for c in range(2):
        for d in range(20):
            for k, v in symmetry.random(generator).apply(point).items():
                draws[k][c, d] = v * (1 + 0.01 * torch.randn(v.shape, generator=generator))
    aligned = align_draws(draws, symmetry, model=model, args=(X, Y))
    for k, v in aligned.draws.items():
        v = torch.as_tensor(v)
        assert float((v - v.mean((0, 1))).abs().max() / v.abs().max()) < 0.1, k
    plain = align_draws(draws, find_symmetry(model, X, Y), model=model, args=(X, Y))
    w3 = torch.as_tensor(plain.draws["w3"])
    assert float((w3 - w3.mean((0, 1))).abs().max() / w3.abs().max()) > 0.5  # order alone leaves the signs


def test_the_relabeled_model_and_the_file(symmetry, tmp_path):
    p = symmetry.random(9)
    density = Density(model, (X, Y))
    values = density.initial_values(seed=1)
    moved = Density(permute_model(model, p), (X, Y))
    torch.testing.assert_close(moved.log_joint(p.apply(values)), density.log_joint(values))
    save(tmp_path / "symmetry", symmetry)
    again = load(tmp_path / "symmetry")
    assert dict(again.sites) == dict(symmetry.sites)
    assert again.signed == symmetry.signed


@pytest.mark.parametrize("name", ["lstm", "gru", "attention_with_packed_projection", "ensemble_averaged"])
def test_guides_of_gates_and_nested_atoms_are_matched(name):
    """Signs of one summand of four, and of dimensions within heads."""
    net, args = PROBLEMS[name].build()
    symmetry = find_symmetry(net, *args, signs=True)
    with pyro.get_param_store().scope():
        guide = AutoNormal(net, init_loc_fn=init_to_sample)
        guide(*args)
    hidden = symmetry.random(3)
    assert hidden.signs
    alignment = align(guide, permute_guide(guide, hidden), symmetry, restarts=8)
    assert alignment.distance < 1e-12 < alignment.distance_before


def test_a_plain_ensemble_of_state_dicts():
    """Point posteriors of a module: the output does not change."""
    net, args = PROBLEMS["plain_tanh_module"].build()
    symmetry = find_symmetry(net, *args, signs=True)
    state = dict(net.state_dict())
    hidden = symmetry.random(2)
    moved = hidden.apply(state)
    torch.testing.assert_close(torch.func.functional_call(net, moved, args), net(*args))
    aligned = align_draws([state, moved], symmetry)
    for value in aligned.draws.values():
        assert torch.equal(*torch.as_tensor(value).flatten(0, 1))
