"""Positive scalings of units: found over the rationals, certified, and brought to one gauge."""

import pyro
import pytest
import torch
from problems import normal, observe
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal, init_to_sample
from torch import nn

from pyro_align import align, align_many, canonical, find_symmetry, load, permute_guide, save
from pyro_align.errors import GuideError
from pyro_align.guides import read_guide

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def mlp(activation):
    hidden = activation(X @ normal("w1", 4, 3).T + normal("b1", 4))
    observe(activation(hidden @ normal("w2", 6, 4).T) @ normal("w3", 2, 6).T)


def relu():
    mlp(torch.relu)


def leaky():
    mlp(nn.functional.leaky_relu)


def clamped():
    mlp(lambda h: h.clamp(min=0))


def chosen():
    mlp(lambda h: torch.where(h > 0, h, 0.2 * h))


def tanh():
    mlp(torch.tanh)


def gelu():
    mlp(nn.functional.gelu)


def squared():
    mlp(lambda h: torch.relu(h).square())


def with_a_gain():
    observe((X @ normal("w1", 4, 3).T * normal("gain", 4)) @ normal("w2", 2, 4).T)


def residual():
    """Two branches into one stream: one scale for both."""
    h = torch.relu(X @ normal("w1", 4, 3).T)
    h = torch.relu(h + X @ normal("skip", 4, 3).T)
    observe(h @ normal("w2", 2, 4).T)


def signature(model, **options):
    symmetry = find_symmetry(model, scalings=True, **{"scope": "likelihood", **options})
    assert symmetry.certificate.error <= symmetry.certificate.tolerance
    return sorted(str(s) for s in symmetry.scalings)


two_layers = ["w1: w1[0], b1[0], w2[1]^-1", "w2: w2[0], w3[1]^-1"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (relu, two_layers),
        (leaky, two_layers),
        (clamped, two_layers),
        (chosen, two_layers),
        (tanh, []),
        (gelu, []),
        (squared, ["w1: w1[0], b1[0], w2[1]^-2", "w2: w2[0], w3[1]^-2"]),
        (with_a_gain, ["w1: gain[0], w2[1]^-1", "w1: w1[0], w2[1]^-1"]),
        (residual, ["w1: w1[0], skip[0], w2[1]^-1"]),
    ],
)
def test_exactly_the_known_scalings(model, expected):
    assert signature(model) == expected


def test_under_normal_priors_there_are_none():
    assert signature(relu, scope="joint") == []


def test_of_a_convolutional_network():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4), nn.ReLU())
    net.append(nn.Linear(4, 2))
    symmetry = find_symmetry(net.double(), torch.randn(2, 1, 6, 6), scalings=True)
    assert [str(s) for s in symmetry.scalings] == [
        "0: 0.weight[0], 0.bias[0], 4.weight[1]^-1",
        "4: 4.weight[0], 4.bias[0], 6.weight[1]^-1",
    ]


def test_they_are_printed_and_saved(tmp_path):
    symmetry = find_symmetry(relu, scope="likelihood", scalings=True)
    assert "positive scalings of units: w1: w1[0], b1[0], w2[1]^-1" in str(symmetry)
    save(tmp_path / "group", symmetry)
    assert load(tmp_path / "group").scalings == symmetry.scalings


# -- one gauge ---------------------------------------------------------------------------------------------------------


def network():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.LeakyReLU(), nn.Linear(5, 2))
    return net.double()


def rescaled(net, symmetry, seed=0):
    """The same function with its units at other scales."""
    g = torch.Generator().manual_seed(seed)
    state = dict(net.state_dict())
    for scaling in symmetry.scalings:
        noise = torch.randn(symmetry.atoms[scaling.atom].size, generator=g, dtype=torch.float64)
        state = scaling.apply(symmetry.sites, state, noise)
    other = network()
    other.load_state_dict(state)
    return other


def test_a_planted_rescaling_is_undone_exactly():
    net = network()
    symmetry = find_symmetry(net, X, scalings=True)
    other = rescaled(net, symmetry)
    a, b = canonical(net, symmetry), canonical(other, symmetry)
    torch.testing.assert_close(b(X), net(X), rtol=1e-12, atol=1e-12)
    for one, two in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)
    before, after = (sum(float(p.detach().square().sum()) for p in n.parameters()) for n in (other, b))
    assert after < before


def test_align_undoes_a_planted_rescaling_and_relabeling(tmp_path):
    """By itself: both networks are brought to one scale first, and the result says by how much."""
    net = network()
    symmetry = find_symmetry(net, X, scalings=True)
    element = symmetry.random(1)
    other = rescaled(element.apply(net), symmetry)
    found = align(net, other, symmetry)
    assert found.permutation @ element == symmetry.identity()
    assert found.distance < 1e-8 < 0.1 < found.distance_before
    torch.testing.assert_close(found.guide(X), net(X), rtol=1e-12, atol=1e-12)
    assert "brought to one scale first, by factors up to" in str(found)
    least = canonical(other, symmetry).state_dict()
    for scaling, factor in zip(symmetry.scalings, found.scales[1].values(), strict=True):
        other.load_state_dict(scaling.apply(symmetry.sites, other.state_dict(), factor.log()))
    for name, value in other.state_dict().items():
        torch.testing.assert_close(value, least[name], rtol=1e-9, atol=1e-12)
    save(tmp_path / "found", found)
    again = load(tmp_path / "found", like=net)
    assert [list(side) for side in again.scales] == [list(side) for side in found.scales]
    assert all(torch.equal(v, found.scales[1][k]) for k, v in again.scales[1].items())


def test_align_many_brings_all_to_one_scale():
    net = network()
    symmetry = find_symmetry(net, X, scalings=True)
    others = [rescaled(symmetry.random(k).apply(net), symmetry, seed=k) for k in range(2)]
    for reference in (None, 0):
        found = align_many([net, *others], symmetry, reference=reference)
        assert found.distances.max() < 1e-6 < 0.1 < found.distances_before[0, 1]
        assert len(found.scales) == 3
        assert "brought to one scale first" in str(found)


def test_align_brings_mean_field_posteriors_to_one_scale_where_the_likelihood_alone_counts():
    guide = AutoNormal(relu, init_loc_fn=init_to_sample, init_scale=0.3)
    guide()
    joint, symmetry = (find_symmetry(relu, scope=s, scalings=True) for s in ("joint", "likelihood"))
    q = read_guide(guide)
    locs, scales = ({k: q.marginal(k)[i] for k in symmetry.shapes} for i in (0, 1))
    for scaling in symmetry.scalings:
        log_scale = torch.linspace(-1, 1, symmetry.atoms[scaling.atom].size)
        locs, scales = (scaling.apply(symmetry.sites, values, log_scale) for values in (locs, scales))
    other = q.with_moments({k: (locs[k], s) for k, s in scales.items()}).to_guide()
    found = align(guide, other, symmetry)
    assert found.distance < 1e-5 < 0.1 < found.distance_before
    plain = align(guide, other, joint)
    assert not plain.scales
    assert plain.distance == pytest.approx(found.distance_before)


def test_it_is_the_least_norm():
    """No scale of any unit lowers the norm, prior widths included."""
    net, prior = network(), {"0.weight": 0.5, "2.weight": torch.full((5, 1), 2.0)}
    symmetry = find_symmetry(net, X, scalings=True)
    state = dict(canonical(net, symmetry, prior=prior).state_dict())

    def energy(values):
        return sum((v / prior.get(k, 1.0)).square().sum() for k, v in values.items())

    for scaling in symmetry.scalings:
        for unit in range(symmetry.atoms[scaling.atom].size):
            for step in (-1e-3, 1e-3):
                log_scale = torch.zeros(symmetry.atoms[scaling.atom].size).index_fill(0, torch.tensor(unit), step)
                assert energy(scaling.apply(symmetry.sites, state, log_scale)) > energy(state)


@pytest.mark.parametrize("model", [relu, squared])
def test_mean_field_posteriors_get_the_least_kl(model):
    symmetry = find_symmetry(model, scope="likelihood", scalings=True)
    guide = AutoNormal(model, init_loc_fn=init_to_sample, init_scale=0.3)
    guide()
    parts = {k: read_guide(guide).marginal(k) for k in symmetry.shapes}
    made = canonical(guide, symmetry)

    def kl(q):
        return sum((0.5 * (m**2 + s**2) - s.log()).sum() for m, s in q.values())

    q = read_guide(made)
    found = {k: q.marginal(k) for k in parts}
    assert kl(found) < kl(parts)
    for scaling in symmetry.scalings:
        for step in (-1e-3, 1e-3):
            log_scale = torch.full((symmetry.atoms[scaling.atom].size,), step)
            locs, scales = (
                scaling.apply(symmetry.sites, {k: v[i] for k, v in found.items()}, log_scale) for i in (0, 1)
            )
            assert kl({k: (locs[k], scales[k]) for k in locs}) > kl(found)


def test_what_has_no_gauge_is_refused():
    symmetry = find_symmetry(relu, scope="likelihood", scalings=True)
    guide = AutoMultivariateNormal(relu, init_loc_fn=init_to_sample)
    guide()
    with pytest.raises(GuideError, match="no gauge in closed form"):
        canonical(guide, symmetry)
    assert not align(guide, permute_guide(guide, symmetry.random(0)), symmetry).scales
    pyro.clear_param_store()
    point = AutoDelta(relu, init_loc_fn=init_to_sample)
    point()
    with torch.no_grad():
        point.w3.zero_()
    with pytest.raises(GuideError, match="only zeros on one side"):
        canonical(point, symmetry)


def test_without_scalings_the_guide_comes_back():
    guide = AutoNormal(tanh, init_loc_fn=init_to_sample)
    guide()
    made = canonical(guide, find_symmetry(tanh, scope="likelihood", scalings=True))
    assert torch.equal(made.locs.w1, guide.locs.w1)
