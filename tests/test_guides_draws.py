"""Draws as their makers hand them over, through the entry point: MCMC, Predictive, ensembles of networks."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal
from torch import nn
from torch.func import functional_call

from pyro_align import align, align_many, displacement, find_symmetry
from pyro_align.errors import GuideError
from pyro_align.guides import Ensemble, SampledGuide, permute_guide, read_guide
from pyro_align.io import load, save

X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2)
Y = X.sum(-1).sin()


def model(x, y=None):
    w = pyro.sample("w", dist.Normal(0, 1).expand([2, 4]).to_event(2))
    v = pyro.sample("v", dist.Normal(0, 1).expand([4]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(torch.relu(x @ w) @ v, 0.3), obs=y)


def check_alignment(a, b, symmetry):
    """Planted relabelings are undone; the distance never rises; the path's middle is a guide for Predictive."""
    p = symmetry.random(3)
    planted = permute_guide(a, p)
    back = align(a, planted, symmetry)
    assert back.permutation == p.inverse()
    assert back.distance < 1e-9 < back.distance_before
    alignment = align(a, b, symmetry)
    assert alignment.distance <= alignment.distance_before
    middle = displacement(a, alignment.guide)(0.5)
    assert isinstance(middle, SampledGuide)
    return alignment, middle


def test_mcmc_samples(tmp_path):
    symmetry = find_symmetry(model, X, Y)
    runs = []
    for seed in (0, 1):
        pyro.set_rng_seed(seed)
        mcmc = MCMC(NUTS(model, max_tree_depth=4), num_samples=25, warmup_steps=15, disable_progbar=True)
        mcmc.run(X, Y)
        runs.append(mcmc.get_samples())
    kept = copy.deepcopy(runs)
    alignment, middle = check_alignment(*runs, symmetry)
    assert all(torch.equal(v, kept[i][k]) for i in (0, 1) for k, v in runs[i].items())
    assert Predictive(model, guide=middle, num_samples=3)(X)["y"].shape[-1] == len(X)
    save(tmp_path / "draws.zip", alignment)
    again = load(tmp_path / "draws.zip", like=runs[0])
    assert all(torch.equal(v, alignment.guide.draws[k]) for k, v in again.guide.draws.items())


def test_predictive_samples():
    """The same draws as the guide's own, with what the model predicts beside them."""
    symmetry, p = find_symmetry(model, X, Y), None
    with pyro.get_param_store().scope():
        guide = AutoNormal(model)
        guide(X, Y)
        samples = Predictive(guide, num_samples=5)(X, Y)
    q = read_guide({k: v.detach() for k, v in samples.items()})
    p = symmetry.random(1)
    moved = q.permute(p).to_guide().draws
    assert all(torch.equal(moved[k], p.apply_site(k, samples[k], batch_dims=1)) for k in ("w", "v"))


def test_ensembles_of_networks():
    """State dicts of plain modules, as deep ensembles and SWAG leave them: each member stays the same function."""
    net = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3))
    symmetry = find_symmetry(net, X)
    ensembles = []
    for _ in range(2):
        members = []
        for _ in range(4):
            for layer in (net[0], net[2]):
                layer.reset_parameters()
            members.append(copy.deepcopy(net.state_dict()))
        ensembles.append(members)
    alignment, _ = check_alignment(*ensembles, symmetry)
    assert isinstance(alignment.posterior, Ensemble)
    for i, member in enumerate(ensembles[1]):
        moved = {name: draws[i] for name, draws in alignment.posterior.draws.items()}
        torch.testing.assert_close(functional_call(net, moved, (X,)), functional_call(net, member, (X,)))
    many = align_many(ensembles, symmetry, reference=0)
    assert many.distances[0, 1] <= many.distances_before[0, 1]
    with pytest.raises(GuideError, match="reference=0"):
        align_many(ensembles, symmetry)


def test_parts_of_a_list_without_a_rule_are_refused():
    def two():
        pyro.sample("a", dist.Normal(0, 1).expand([3]).to_event(1))
        pyro.sample("b", dist.Normal(0, 1).expand([3]).to_event(1))

    guide = AutoGuideList(two)
    guide.append(AutoDelta(poutine.block(two, expose=["a"])))
    guide.append(lambda: {"b": pyro.sample("b", dist.Normal(torch.zeros(3), 1).to_event(1))})
    guide()
    with pytest.raises(GuideError, match=r"AutoCallable.*wrap"):
        read_guide(guide)
