"""Reading guides: the traps of the param store, bad input, supports, plates, features."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGaussian,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoStructured,
)
from pyro.nn import PyroModule
from torch.distributions import Normal, kl_divergence

from pyro_align.axes import Odd
from pyro_align.errors import DiagnosticWarning, GuideError
from pyro_align.guides import Wrapped, check_distinct, permute_guide, read_guide, register_guide, wrap_guide
from pyro_align.paths.geodesic import displacement
from pyro_align.symmetry.group import Symmetry


def model(n=3):
    pyro.sample("w", dist.Normal(0, 1).expand([n, 2]).to_event(2))
    pyro.sample("v", dist.Normal(0, 1).expand([n]).to_event(1))


def symmetry(n=3):
    return Symmetry.from_axes({"w": ("h", None), "v": ("h",)}, shapes={"w": (n, 2), "v": (n,)})


def run(guide, *args, seed=None):
    """Runs a guide once and, with a seed, gives it random parameters."""
    guide(*args)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in guide.parameters():
                tensor += torch.randn(tensor.shape, generator=generator)
    return guide


def scoped(make, *args, seed=0):
    with pyro.get_param_store().scope():
        return run(make(), *args, seed=seed)


# -- the param store ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [AutoNormal, AutoDiagonalNormal, AutoDelta, AutoMultivariateNormal])
def test_two_guides_that_are_one_are_refused(make):
    first, second = run(make(model)), run(make(model))
    for look in (check_distinct, displacement):
        with pytest.raises(GuideError, match=r"share .*param store.*scope\(\)"):
            look(first, second)


def test_guides_apart_are_accepted():
    box = PyroModule()
    box.a, box.b = AutoNormal(model), AutoNormal(model)
    run(box.a, seed=0), run(box.b, seed=1)
    assert displacement(box.a, box.b).length > 0.1
    assert displacement(scoped(lambda: AutoNormal(model)), scoped(lambda: AutoNormal(model), seed=1)).length > 0.1
    assert displacement(box.a, box.a).length == 0.0


def test_a_guide_is_read_from_its_own_parameters():
    """Outside its scope, after the store was cleared, and while another guide's values sit under its names."""
    guide = scoped(lambda: AutoNormal(model), seed=1)
    expected = guide.locs.w.detach().clone()
    other = run(AutoNormal(model), seed=2)
    assert not torch.equal(other.locs.w, expected)
    pyro.clear_param_store()
    assert torch.equal(read_guide(guide).marginal("w")[0], expected)
    run(AutoNormal(model), seed=3)
    with pytest.warns(DiagnosticWarning, match="the param store holds other values"):
        q = read_guide(guide)
    assert torch.equal(q.marginal("w")[0], expected)
    assert torch.equal(guide.locs.w.detach(), expected)


def test_two_returned_guides_never_alias():
    guide, p = scoped(lambda: AutoNormal(model)), symmetry().random(1)
    a, b = permute_guide(guide, p), permute_guide(guide, p)
    before = b.locs.w.detach().clone()
    svi = SVI(model, a, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    b(), svi.step()
    assert not torch.equal(a.locs.w, before)
    assert torch.equal(b.locs.w, before)
    check_distinct(a, b)


def test_module_local_parameters():
    with pyro.settings.context(module_local_params=True):
        a, b = run(AutoNormal(model), seed=0), run(AutoNormal(model), seed=1)
        new = displacement(a, b)(0.5)
        new()
        torch.testing.assert_close(new.locs.w.detach(), (a.locs.w + b.locs.w).detach() / 2)
    assert len(pyro.get_param_store()) == 0


def test_a_copied_guide_is_still_read():
    """A deepcopy has lost its model, in Pyro; its parameters are still there."""
    guide = scoped(lambda: AutoNormal(model))
    copied = copy.deepcopy(guide)
    new = permute_guide(copied, symmetry().identity())
    assert torch.equal(new()["w"].detach().isfinite(), torch.ones(3, 2, dtype=torch.bool))


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [AutoNormal, AutoDiagonalNormal, AutoDelta, AutoMultivariateNormal, AutoGaussian, AutoStructured]
)
def test_an_untrained_guide_is_refused(make):
    with pytest.raises(GuideError, match="no parameters yet"):
        read_guide(make(model))


@pytest.mark.parametrize("make", [AutoNormal, AutoDiagonalNormal, AutoDelta, AutoLowRankMultivariateNormal])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_parameters_that_are_not_finite_are_refused(make, bad):
    guide = scoped(lambda: make(model))
    with torch.no_grad():
        next(iter(guide.parameters())).view(-1)[0] = bad
    with pytest.raises(GuideError, match=r"site 'w': 1 of .* NaN or infinite"):
        read_guide(guide)


def test_a_scale_that_underflowed_is_refused():
    guide = scoped(lambda: AutoNormal(model))
    with torch.no_grad():
        guide.scales.v_unconstrained[0] = -1e4
    with pytest.raises(GuideError, match=r"site 'v': 1 of its scales are not positive"):
        read_guide(guide)


def test_mismatches_are_named():
    a = scoped(lambda: AutoNormal(model))
    with pytest.raises(GuideError, match=r"site 'w': shape \(3, 2\) in the first posterior, \(4, 2\) in the second"):
        displacement(a, scoped(lambda: AutoNormal(model), 4))
    other = scoped(lambda: AutoNormal(lambda: pyro.sample("u", dist.Normal(0, 1))))
    with pytest.raises(GuideError, match=r"different sites.*\['v', 'w'\].*\['u'\]"):
        displacement(a, other)
    with pytest.raises(GuideError, match="two families, MeanFieldNormal and Point"):
        displacement(a, scoped(lambda: AutoDelta(model)))
    torch.set_default_dtype(torch.float32)
    with pytest.raises(GuideError, match=r"site 'w': dtype torch.float64 in the first posterior, torch.float32"):
        displacement(a, scoped(lambda: AutoNormal(model)))


def test_a_missing_site_is_named():
    guide = scoped(lambda: AutoNormal(pyro.poutine.block(model, hide=["v"])))
    with pytest.raises(GuideError, match=r"moves sites that the guide does not have: \['v'\].*parameters=model"):
        permute_guide(guide, symmetry().random(0))


def test_noise_needs_draws_and_a_seed():
    q = read_guide(scoped(lambda: AutoNormal(model)))
    with pytest.raises(ValueError, match="positive int"):
        q.noise(0)
    with pytest.raises(TypeError, match="seed"):
        q.noise(2, generator=0.5)
    assert torch.equal(q.noise(2, generator=7)["w"], q.noise(2, generator=7)["w"])
    with pytest.raises(TypeError, match="callable"):
        read_guide(3)


def test_laplace_before_its_covariance_is_refused():
    guide = scoped(lambda: AutoLaplaceApproximation(model))
    with pytest.raises(GuideError, match="laplace_approximation"):
        read_guide(guide)


# -- concrete types ----------------------------------------------------------------------------------------------------


class Shifted(AutoNormal):
    """Stores what AutoNormal stores, and means something else."""

    def _get_loc_and_scale(self, name):
        loc, scale = super()._get_loc_and_scale(name)
        return loc + 100, scale


def test_an_unregistered_subclass_does_not_inherit_the_rule():
    guide = scoped(lambda: Shifted(model))
    q = read_guide(guide)
    assert isinstance(q, Wrapped)
    assert bool((q.push(q.noise(3))["w"] > 50).all())
    assert bool((permute_guide(guide, symmetry().random(0))()["w"] > 50).all())


def test_a_registration_is_for_its_type_alone():
    class Parent:
        pass

    class Child(Parent):
        pass

    name = f"{Child.__module__}.{Child.__qualname__}"  # as of a package that is not imported
    marker = read_guide(scoped(lambda: AutoNormal(model)))
    register_guide(Parent)(lambda guide: marker)
    from pyro_align.guides import registry

    try:
        assert read_guide(Parent()) is marker
        with pytest.raises(TypeError, match="callable"):
            read_guide(Child())
        register_guide(name)(lambda guide: marker)
        assert read_guide(Child()) is marker
    finally:
        del registry._RULES[Parent], registry._RULES[name]


# -- supports, plates, signs -------------------------------------------------------------------------------------------


def positive(low=None):
    low = torch.zeros(3) if low is None else low
    pyro.sample("u", dist.Uniform(low, low + 2).to_event(1))


def test_bounds_that_tell_units_apart_are_refused():
    p = Symmetry.from_axes({"u": ("h",)}, shapes={"u": (3,)}).permutation({"h": [1, 2, 0]})
    alike = scoped(lambda: AutoNormal(positive))
    moved = permute_guide(alike, p)
    torch.testing.assert_close(moved.median()["u"], p.apply(alike.median())["u"])
    uneven = scoped(lambda: AutoNormal(positive), torch.tensor([0.0, 1.0, 5.0]))
    with pytest.raises(GuideError, match=r"site 'u'.*not the same for all interchangeable entries"):
        permute_guide(uneven, p)


@pytest.mark.parametrize("make", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
def test_a_simplex_axis_leaves_the_family_and_is_wrapped(make):
    def mixture():
        pyro.sample("mix", dist.Dirichlet(torch.ones(3)))

    guide = scoped(lambda: make(mixture))
    p = Symmetry.from_axes({"mix": ("k",)}, shapes={"mix": (3,)}).permutation({"k": [2, 0, 1]})
    with pytest.raises(GuideError, match=r"site 'mix', axis 0.*wrap_guide"):
        read_guide(guide).permute(p)
    assert type(permute_guide(guide, p)).__name__ == "RelabeledGuide"
    wrapped = wrap_guide(guide)
    noise = wrapped.noise(5)
    before, log_prob = wrapped.push_with_log_prob(noise)
    after, moved_log_prob = wrapped.permute(p).push_with_log_prob(noise)
    assert torch.equal(after["mix"], p.apply(before, batch_dims=1)["mix"])
    assert torch.equal(moved_log_prob, log_prob)


def test_point_masses_move_on_the_simplex_and_stop_at_ordered():
    def mixture():
        pyro.sample("mix", dist.Dirichlet(torch.ones(3)))

    guide = scoped(lambda: AutoDelta(mixture))
    p = Symmetry.from_axes({"mix": ("k",)}, shapes={"mix": (3,)}).permutation({"k": [2, 0, 1]})
    torch.testing.assert_close(permute_guide(guide, p).mix.detach(), guide.mix.detach()[[2, 0, 1]])

    def ladder():
        base = dist.Normal(torch.zeros(3), 1).to_event(1)
        pyro.sample("mix", dist.TransformedDistribution(base, dist.transforms.OrderedTransform()))

    with pytest.raises(GuideError, match=r"site 'mix': the relabeled value leaves its support"):
        permute_guide(scoped(lambda: AutoDelta(ladder)), p)


def test_signs_turn_locations_and_not_scales():
    s = Symmetry.from_axes({"w": (Odd("h"), None), "v": (Odd("h"),)}, shapes={"w": (3, 2), "v": (3,)})
    p = s.permutation({"h": [2, 0, 1]}, {"h": [-1, 1, -1]})
    guide = scoped(lambda: AutoNormal(model))
    q, moved = read_guide(guide), read_guide(permute_guide(guide, p))
    torch.testing.assert_close(moved.marginal("v")[0], q.marginal("v")[0][[2, 0, 1]] * torch.tensor([-1.0, 1, -1]))
    assert torch.equal(moved.marginal("v")[1], q.marginal("v")[1][[2, 0, 1]])
    for family in (AutoNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal, AutoDelta):
        q = read_guide(scoped(lambda family=family: family(model)))
        noise = q.noise(4)
        values, log_prob = q.push_with_log_prob(noise)
        new_values, new_log_prob = q.permute(p).push_with_log_prob(q.permute_noise(p, noise))
        expected = p.apply(values, batch_dims=1)
        assert bool((expected["v"] * values["v"][:, [2, 0, 1]] <= 0).any())
        for site in expected:
            torch.testing.assert_close(new_values[site], expected[site])
        torch.testing.assert_close(new_log_prob, log_prob)


def test_signs_need_a_real_support():
    def gains():
        pyro.sample("v", dist.LogNormal(0, 1).expand([3]).to_event(1))

    s = Symmetry.from_axes({"v": (Odd("h"),)}, shapes={"v": (3,)})
    p = s.permutation({"h": [2, 0, 1]}, {"h": [-1, 1, -1]})
    for make in (AutoNormal, AutoDiagonalNormal):
        with pytest.raises(GuideError, match=r"site 'v'.*does not allow a change of sign"):
            permute_guide(scoped(lambda make=make: make(gains)), p)
    with pytest.raises(GuideError, match=r"site 'v'.*leaves its support"):
        permute_guide(scoped(lambda: AutoDelta(gains)), p)


def local_model(x):
    pyro.sample("w", dist.Normal(0, 1).expand([3]).to_event(1))
    with pyro.plate("data", len(x), subsample_size=2) as index:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1), obs=x[index])


@pytest.mark.parametrize("make", [AutoNormal, AutoDelta])
def test_subsampled_plates_keep_their_full_parameters(make):
    x = torch.randn(6)
    s = Symmetry.from_axes({"w": ("h",), "z": (None, "h")}, shapes={"w": (3,), "z": (2, 3)})  # shapes of a subsample
    guide = scoped(lambda: make(local_model), x)
    q, p = read_guide(guide), s.permutation({"h": [1, 2, 0]})
    assert q.sites["z"].shape == (6, 3)
    new = permute_guide(guide, p)
    torch.testing.assert_close(read_guide(new).marginal("z")[0], q.marginal("z")[0][:, [1, 2, 0]])
    svi = SVI(local_model, new, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(x)
    assert new(x)["z"].shape == (2, 3)


def test_data_is_not_kept():
    """A returned guide does not carry the training data along."""

    def big(x):
        model()

    guide = scoped(lambda: AutoNormal(big), torch.zeros(100_000))
    new = permute_guide(guide, symmetry().identity())
    assert "_INPUT" in guide.prototype_trace.nodes
    assert set(new.prototype_trace.nodes) == {"w", "v"}
    assert Predictive(big, guide=new, num_samples=2)(torch.zeros(1))["w"].shape[-2:] == (3, 2)


# -- features ----------------------------------------------------------------------------------------------------------

DIVERGENCES = {
    "w2": lambda m0, s0, m1, s1: ((m0 - m1) ** 2 + (s0 - s1) ** 2).sum() / 2,
    "means": lambda m0, s0, m1, s1: ((m0 - m1) ** 2).sum() / 2,
    "snr": lambda m0, s0, m1, s1: ((m0 / s0 - m1 / s1) ** 2).sum() / 2,
    "kl": lambda m0, s0, m1, s1: kl_divergence(Normal(m0, s0), Normal(m1, s1)).sum(),
    "reverse_kl": lambda m0, s0, m1, s1: kl_divergence(Normal(m1, s1), Normal(m0, s0)).sum(),
    "jeffreys": lambda m0, s0, m1, s1: (
        kl_divergence(Normal(m0, s0), Normal(m1, s1)) + kl_divergence(Normal(m1, s1), Normal(m0, s0))
    ).sum(),
}


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("signed", [False, True])
def test_features_are_the_divergence(divergence, signed):
    """Over every relabeling of a small group, features and closed form differ by one constant."""
    axis = Odd("h") if signed else "h"
    s = Symmetry.from_axes({"w": (axis, None), "v": (axis,)}, shapes={"w": (3, 2), "v": (3,)})
    a, b = (read_guide(scoped(lambda: AutoNormal(model), seed=seed)) for seed in (1, 2))
    fixed, moving = a.features(divergence, "fixed"), b.features(divergence, "moving")
    gaps = []
    for seed in range(12):
        p = s.random(seed)
        moved = b.permute(p)
        closed = sum(DIVERGENCES[divergence](*a.marginal(k), *moved.marginal(k)) for k in a.sites)
        inner = sum(
            (f * p.apply_site(k, m, signs=o)).sum()
            for k in a.sites
            for f, m, o in zip(fixed[k], moving[k], fixed.odd[k], strict=True)
        )
        gaps.append(float(closed + inner))
    assert max(gaps) - min(gaps) < 1e-9 * (1 + abs(gaps[0]))


def test_unknown_divergences_are_named():
    q = read_guide(scoped(lambda: AutoDelta(model)))
    with pytest.raises(GuideError, match="no divergence 'kl'; it has w2, means"):
        q.features("kl")
    with pytest.raises(ValueError, match="side"):
        q.features("w2", "left")


def test_simplex_features_have_the_site_shape():
    def mixtures():
        pyro.sample("mix", dist.Dirichlet(torch.ones(3)).expand([4]).to_event(1))

    a, b = (read_guide(scoped(lambda: AutoNormal(mixtures), seed=seed)) for seed in (1, 2))
    fixed, moving = a.features(), b.features(side="moving")
    assert {f.shape for f in fixed["mix"]} == {torch.Size([4, 3])}
    inner = sum(float((f * m).sum()) for f, m in zip(fixed["mix"], moving["mix"], strict=True))
    norms = sum(float((x**2).sum()) for q in (a, b) for x in q.marginal("mix"))
    assert a.distance(b) ** 2 == pytest.approx(norms - 2 * inner)
