"""Activations and combinations of divergences."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from perceptron import MODEL, X, Y, make_guide
from pyro.infer.autoguide import AutoNormal, init_to_sample

import pyro_align
from pyro_align.discovery import probe_activations
from pyro_align.errors import GuideError, MatchError, SymmetryError
from pyro_align.guides import Divergence, divergences, read_guide, register_divergence
from pyro_align.objectives import Activations, build_objective


@pytest.fixture(scope="module")
def symmetry():
    return pyro_align.find_symmetry(MODEL, X, Y)


def test_the_activations_of_a_network_are_its_hidden_layers(symmetry):
    probe = probe_activations(MODEL, X, Y, symmetry=symmetry)
    posterior = read_guide(make_guide(0))
    values = posterior.push(posterior.noise(3, generator=0))
    draws = [{k: v[s] for k, v in values.items()} for s in range(3)]
    found = probe(draws)
    hidden = [torch.tanh(X @ d["layer0.weight"].T + d["layer0.bias"]) for d in draws]
    deep = [torch.tanh(h @ d["layer1.weight"].T + d["layer1.bias"]) for h, d in zip(hidden, draws, strict=True)]
    assert [tuple(str(t) for t in axes) for axes in probe.axes.values()] == [
        ("fixed 40", "layer0"),
        ("fixed 40", "layer1"),
    ]
    for (mean, square), expected in zip(found.values(), (hidden, deep), strict=True):
        assert torch.allclose(mean, torch.stack(expected).mean(0))
        assert torch.allclose(square, torch.stack(expected).square().mean(0))


def test_the_gain_is_the_correlation_of_units(symmetry):
    a, b = read_guide(make_guide(1)), read_guide(make_guide(2))
    goal = build_objective(a, b, symmetry, Activations(MODEL, X, Y, num_samples=1))
    name = next(iter(goal.symmetry.sites))
    gain = goal.fixed[name][0].T @ goal.moving[name][0]
    hidden = []
    for q in (a, b):
        values = q.push(q.noise(1, generator=0))
        hidden.append(torch.tanh(X @ values["layer0.weight"][0].T + values["layer0.bias"][0]))
    expected = torch.corrcoef(torch.cat(hidden, 1).T)[:7, 7:]
    assert torch.allclose(gain, expected)


def test_activations_recover_a_relabeled_copy(symmetry):
    guide, hidden = make_guide(0), symmetry.random(3)
    moved = pyro_align.permute_guide(guide, hidden)
    for divergence in (Activations(MODEL, X, Y), {"w2": 1.0, Activations(MODEL, X, Y): 0.5}, {"w2": 2, "means": 0.1}):
        alignment = pyro_align.align(guide, moved, symmetry, divergence=divergence)
        assert alignment.permutation == hidden.inverse()
        assert alignment.permutation.symmetry is symmetry
        assert alignment.distance == 0.0


@pytest.mark.parametrize("last", ["mv", "sum", "einsum"])
def test_activations_are_found_before_last_weights_that_are_a_vector(last):
    def model(x):
        inner = pyro.sample("inner", dist.Normal(0.0, 1.0).expand([3, 6]).to_event(2))
        middle = pyro.sample("middle", dist.Normal(0.0, 1.0).expand([6, 5]).to_event(2))
        outer = pyro.sample("outer", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
        hidden = torch.tanh(torch.tanh(x @ inner) @ middle)
        products = {"mv": lambda: hidden @ outer, "sum": lambda: (hidden * outer).sum(-1)}
        mean = products.get(last, lambda: torch.einsum("nh,h->n", hidden, outer))()
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 0.3), obs=x[:, 0])

    x = torch.randn(30, 3)
    guide = AutoNormal(model, init_loc_fn=init_to_sample, init_scale=0.05)
    guide(x)
    symmetry = pyro_align.find_symmetry(model, x)
    planted = symmetry.random(3)
    found = pyro_align.align(
        guide, pyro_align.permute_guide(guide, planted), symmetry, divergence=Activations(model, x)
    )
    assert found.permutation == planted.inverse()
    assert found.match.kept == ()


def test_atoms_without_activations_are_named():
    def model(x):
        weights = pyro.sample("weights", dist.Normal(0.0, 1.0).expand([3, 6]).to_event(2))
        last = pyro.sample("last", dist.Normal(0.0, 1.0).expand([6, 1]).to_event(2))
        other = pyro.sample("other", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample(
                "y", dist.Normal((torch.tanh(x @ weights) @ last)[:, 0] + other.square().sum(), 1.0), obs=x[:, 0]
            )

    x = torch.randn(30, 3)
    with pyro.get_param_store().scope():
        a = AutoNormal(model, init_loc_fn=init_to_sample)
        a(x)
    symmetry = pyro_align.find_symmetry(model, x)
    b = pyro_align.permute_guide(a, symmetry.random(0))
    match = pyro_align.align(a, b, symmetry, divergence=Activations(model, x)).match
    assert match.kept == ("other",)
    assert "nothing compares the units of other" in str(match)


def test_a_combination_is_the_weighted_sum(symmetry):
    a, b = read_guide(make_guide(1)), read_guide(make_guide(2))
    p = symmetry.random(0)

    def value(divergence):
        goal = build_objective(a, b, symmetry, divergence)
        return pyro_align.matching.objective(goal.symmetry, goal.fixed, goal.moving, goal.start(p))

    by_activation = Activations(MODEL, X, Y)
    expected = 2 * value("w2") + 0.5 * value("means") + 3 * value(by_activation)
    assert value({"w2": 2, "means": 0.5, by_activation: 3}) == pytest.approx(expected, rel=1e-12)


def test_constant_units_say_nothing():
    symmetry = pyro_align.find_symmetry(MODEL, X, Y)
    guide = make_guide(0, scale=1e-12)
    with torch.no_grad():
        next(p for n, p in guide.named_parameters() if n.startswith("locs") and "layer0" in n).zero_()
    goal = build_objective(read_guide(guide), read_guide(make_guide(1)), symmetry, Activations(MODEL, X, Y))
    assert all(torch.isfinite(t).all() for features in goal.fixed.values() for t in features)


def test_the_same_seed_gives_the_same_features(symmetry):
    posterior = read_guide(make_guide(0, scale=0.5))
    first, again, other = (Activations(MODEL, X, Y, seed=s).features(posterior, symmetry) for s in (0, 0, 1))
    assert all(torch.equal(first[k][0], again[k][0]) for k in first)
    assert not all(torch.equal(first[k][0], other[k][0]) for k in first)


def test_bad_input_is_refused(symmetry):
    guides = make_guide(0), make_guide(1)
    with pytest.raises(MatchError, match="weight of 'w2'"):
        pyro_align.align(*guides, symmetry, divergence={"w2": 0})
    with pytest.raises(MatchError, match="empty"):
        pyro_align.align(*guides, symmetry, divergence={})
    with pytest.raises(MatchError, match="num_samples"):
        Activations(MODEL, X, Y, num_samples=0)
    by_hand = pyro_align.SymmetrySpec(
        {"layer0.weight": ("h", None), "layer0.bias": ("h",), "layer1.weight": (None, "h")}
    )
    with pytest.raises(SymmetryError, match="find_symmetry"):
        pyro_align.align(*guides, by_hand, divergence=Activations(MODEL, X, Y))


def test_a_divergence_of_ones_own_is_one_registration(symmetry, monkeypatch):
    monkeypatch.setattr(divergences, "_KNOWN", dict(divergences._KNOWN))

    def by_precision(loc, scale):
        return loc / scale**2, 1 / scale**2

    register_divergence(Divergence("precision", by_precision, by_precision, odd=(True, False)))
    a, b = make_guide(1), make_guide(2)
    p = symmetry.random(4)
    found = pyro_align.align(a, pyro_align.permute_guide(a, p), symmetry, divergence="precision")
    assert found.permutation == p.inverse()
    assert "precision" in str(found)
    goal = build_objective(read_guide(a), read_guide(b), symmetry, {"precision": 2.0, "w2": 1.0})
    loc, scale = read_guide(a).marginal("layer0.weight")
    assert torch.equal(goal.fixed["layer0.weight"][0], 2.0 * loc / scale**2)
    assert len(goal.moving["layer0.weight"]) == 4
    with pytest.raises(GuideError, match=r"no divergence 'precise'; it has w2.*precision"):
        pyro_align.align(a, b, symmetry, divergence="precise")
