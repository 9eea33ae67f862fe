"""Gaussians stored by their factors: blocks in plates, signs, what has no such form, alignment and files."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoGaussian, AutoGuideList, AutoMultivariateNormal, AutoNormal, AutoStructured
from test_guides_laws import GUIDES, SYMMETRY, model, moments, scatter, state_of

from pyro_align import Symmetry, align, align_many, displacement, load, permute_guide, save
from pyro_align.axes import Odd
from pyro_align.errors import GuideError
from pyro_align.guides import DenseNormal, PrecisionFactors, Wrapped, read_guide

UNITS = 4
KINDS = ["AutoGaussian", "AutoStructured", "AutoStructured, normal"]


def in_plates(y=None):
    """Units are a plate: every factor has one block per unit, except those that see all units."""
    spread = pyro.sample("spread", dist.LogNormal(0.0, 1.0))
    with pyro.plate("units", UNITS):
        gain = pyro.sample("gain", dist.Normal(0.0, spread))
        w = pyro.sample("w", dist.Normal(gain.unsqueeze(-1), 1.0).expand([UNITS, 2]).to_event(1))
        pyro.sample("seen", dist.Normal(w.sum(-1), 1.0), obs=torch.zeros(UNITS))
    pyro.sample("y", dist.Normal((gain * w[:, 0]).sum(-1), 1.0), obs=torch.tensor(1.0))


UNIT = Symmetry.from_axes({"gain": ("unit",), "w": ("unit", None)}, shapes={"gain": (UNITS,), "w": (UNITS, 2)})


def fitted(make, seed, *args):
    pyro.set_rng_seed(seed)
    with pyro.get_param_store().scope():
        guide = make()
        guide(*args)
    return scatter(guide, seed)


def covariance(guide, sites):
    """Mean and covariance of a guide's unconstrained coordinates, in the order of `sites`."""
    q = read_guide(guide)
    mean, cov = moments(q)
    places = dict(zip(q.sites, torch.arange(len(mean)).split([s.numel for s in q.sites.values()]), strict=True))
    index = torch.cat([places[k] for k in sites])
    return mean[index], cov[index][:, index]


@pytest.mark.parametrize("make", [AutoGaussian, AutoStructured])
def test_blocks_move_with_their_units(make):
    """Against the moments that Pyro's own guide computes, or draws."""
    guide, p = fitted(lambda: make(in_plates), 0), UNIT.random(3)
    new = permute_guide(guide, p)
    assert type(new) is type(guide)
    assert {k: v.shape for k, v in new.state_dict().items()} == {k: v.shape for k, v in guide.state_dict().items()}
    order = ("spread", "gain", "w")
    units = p.indices["unit"]
    index = torch.cat(
        [torch.zeros(1, dtype=torch.long), 1 + units, 5 + (2 * units[:, None] + torch.arange(2)).flatten()]
    )
    mean, cov = covariance(guide, order)
    for q in (new, read_guide(guide).permute(p)):
        moved_mean, moved_cov = covariance(q, order)
        torch.testing.assert_close(moved_mean, mean[index], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(moved_cov, cov[index][:, index], rtol=1e-10, atol=1e-12)
    assert float((cov - cov[index][:, index]).abs().max()) > 0.01


def test_the_snapshot_is_the_gaussian_that_pyro_draws_from():
    guide = fitted(lambda: AutoGaussian(in_plates), 0)
    assert isinstance(read_guide(guide).stored, PrecisionFactors)
    with torch.no_grad():
        aux = guide._dense_get_mvn()
        scale, loc = (
            torch.cat([getattr(part, k).flatten() for k in ("spread", "gain", "w")])
            for part in (guide.scales, guide.locs)
        )
    mean, cov = covariance(guide, ("spread", "gain", "w"))
    torch.testing.assert_close(mean, loc + scale * aux.mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(cov, scale[:, None] * aux.covariance_matrix * scale, rtol=1e-10, atol=1e-12)


def test_the_precision_stays_sparse():
    """Spread apart, units that share no factor stay independent given the rest."""
    guide = fitted(lambda: AutoGaussian(poutine.block(in_plates, hide=["y"])), 0)
    new = permute_guide(guide, UNIT.random(3))
    zero = []
    for g in (guide, new):
        _, cov = covariance(g, ("spread", "gain", "w"))
        zero.append(torch.linalg.inv(cov).abs() < 1e-10)
    assert int(zero[0].sum()) == int(zero[1].sum()) > 50


def test_a_relabeling_across_blocks_is_refused():
    """It moves the gain of a unit and not its weights, which stand in one block."""
    guide = fitted(lambda: AutoGaussian(in_plates), 0)
    p = Symmetry.from_axes({"gain": ("unit",)}, shapes={"gain": (UNITS,)}).permutation({"unit": [1, 0, 2, 3]})
    with pytest.raises(GuideError, match=r"sparsity of this AutoGaussian.*block of factor 'w'.*wrap_guide"):
        permute_guide(guide, p)


@pytest.mark.parametrize("make", [AutoGaussian, AutoStructured])
def test_signs_turn_rows(make):
    odd = Symmetry.from_axes(
        {"w1": (Odd("unit"), None), "w2": (None, Odd("unit"))}, shapes={"w1": (4, 2), "w2": (3, 4)}
    )
    guide = GUIDES[make.__name__](0)
    p = odd.random(5)
    assert p.signs
    q, new = read_guide(guide), read_guide(permute_guide(guide, p))
    noise = q.noise(5)
    values, log_prob = q.push_with_log_prob(noise)
    moved, moved_log_prob = q.permute(p).push_with_log_prob(noise)
    for site, value in p.apply({k: values[k] for k in odd.sites}, batch_dims=1).items():
        torch.testing.assert_close(moved[site], value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moved_log_prob, log_prob, rtol=1e-10, atol=1e-10)
    for a, b in zip(moments(new), moments(q.permute(p)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_planted_relabelings_are_undone(name, tmp_path):
    guide, planted = GUIDES[name](0), SYMMETRY.random(4)
    found = align(guide, permute_guide(guide, planted), SYMMETRY)
    assert found.permutation == planted.inverse()
    assert found.distance < 1e-6 < found.distance_before
    assert type(found.guide) is type(guide)
    save(tmp_path / "a.zip", found)
    back = load(tmp_path / "a.zip", like=GUIDES[name](1))
    assert type(back.guide) is type(guide)
    assert all(torch.equal(v, state_of(back.guide)[k]) for k, v in state_of(found.guide).items())


@pytest.mark.parametrize("name", KINDS)
def test_alignment_lowers_the_true_w2(name):
    a, b = GUIDES[name](0), GUIDES[name](1)
    found = align(a, b, SYMMETRY)
    assert found.distance <= found.distance_before
    assert read_guide(a).distance(read_guide(found.guide)) == pytest.approx(found.distance, rel=1e-9)


def test_families_of_gaussians_meet():
    """All are Gaussians: a path may lead from one type to another, and each end is written as its own type."""
    a, b, c = GUIDES["AutoGaussian"](0), GUIDES["AutoStructured"](1), GUIDES["AutoMultivariateNormal"](2)
    for start, end in ((a, c), (c, a), (b, a)):
        path = displacement(start, end)
        middle = path(0.5)
        assert type(middle) is AutoMultivariateNormal
        assert path.posterior(0.25).distance(path.posterior(0.0)) == pytest.approx(0.25 * path.length, rel=1e-8)
        assert all(torch.equal(v, state_of(path(0.0))[k]) for k, v in state_of(start).items())
        last = path.posterior(1.0)
        assert last.distance(read_guide(end)) < 1e-6
    many = align_many([a, permute_guide(a, SYMMETRY.random(1)), permute_guide(a, SYMMETRY.random(2))], SYMMETRY)
    assert many.distances.max() < 1e-5
    assert type(many.center_guide) is AutoMultivariateNormal
    assert {type(g) for g in many.guides} == {type(a)}


@pytest.mark.parametrize(
    "options",
    [
        {"conditionals": {"w1": "normal", "layer.gain": "mvn", "mix": "delta", "w2": "normal", "noise": "normal"}},
        {"conditionals": "normal", "dependencies": {"w2": {"w1": lambda w: torch.tanh(w[..., :1])}}},
    ],
)
def test_what_is_not_gaussian_is_wrapped(options):
    """Conditionals or dependencies of the user's own, and point masses, which have no density."""
    if not isinstance(options["conditionals"], dict):
        options = {**options, "conditionals": dict.fromkeys([*SYMMETRY.sites, "noise"], "normal")}
    guide = fitted(lambda: AutoStructured(model, **options), 0, *_data())
    q = read_guide(guide)
    assert isinstance(q, Wrapped)
    p, noise = SYMMETRY.random(1), q.noise(3)
    values, log_prob = q.push_with_log_prob(noise)
    moved, moved_log_prob = q.permute(p).push_with_log_prob(noise)
    assert all(
        torch.equal(moved[k], v) for k, v in p.apply({k: values[k] for k in SYMMETRY.sites}, batch_dims=1).items()
    )
    torch.testing.assert_close(moved_log_prob, log_prob, rtol=1e-12, atol=0)


def _data():
    from test_guides_laws import X, Y

    return X, Y


@pytest.mark.parametrize("make", [AutoGaussian, AutoStructured])
def test_parts_of_a_list(make):
    def parts():
        guide = AutoGuideList(in_plates)
        guide.append(make(poutine.block(in_plates, expose=["w", "gain"])))
        guide.append(AutoNormal(poutine.block(in_plates, expose=["spread"])))
        return guide

    guide = fitted(parts, 0)
    new = permute_guide(guide, UNIT.random(1))
    assert [type(part) for part in new] == [type(part) for part in guide]
    assert isinstance(read_guide(new).parts[0], DenseNormal)
    assert torch.isfinite(torch.tensor(Trace_ELBO().loss(in_plates, new)))


def test_a_part_that_can_only_be_wrapped_is_refused():
    def parts():
        guide = AutoGuideList(in_plates)
        guide.append(AutoStructured(poutine.block(in_plates, expose=["w", "gain"]), conditionals="delta"))
        guide.append(AutoNormal(poutine.block(in_plates, expose=["spread"])))
        return guide

    with pytest.raises(GuideError, match=r"part 0 of the guide list \(AutoStructured\).*wrap the whole list"):
        read_guide(fitted(parts, 0))
