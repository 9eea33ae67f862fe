"""The entry point: recovery of known relabelings, what is left untouched, and what is refused."""

import copy
import io
import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGaussian,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoStructured,
    init_to_sample,
)
from pyro.optim import Adam

import pyro_align
from pyro_align import Symmetry
from pyro_align.demo.network import bayesian_mlp
from pyro_align.errors import GuideError, MatchError, SymmetryError
from pyro_align.matching import elements, match
from pyro_align.symmetry import SymmetrySpec

GUIDES = [AutoNormal, AutoDiagonalNormal, AutoDelta, AutoMultivariateNormal, AutoLowRankMultivariateNormal]
X, Y = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(12) % 2


def model(x, y=None):
    return network(x, y)


network = bayesian_mlp([3, 7, 5, 2], activation="tanh")


def make_guide(cls, seed, fn=model, args=(X, Y)):
    """A guide with parameters of its own, not all of them at their start."""
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(seed)
        guide = cls(fn, init_loc_fn=init_to_sample)
        guide(*args)
        with torch.no_grad():
            for p in guide.parameters():
                p.add_(0.1 * torch.randn(p.shape))
    return guide


def snapshot(guide):
    return {k: v.detach().clone() for k, v in guide.state_dict().items()}


@pytest.fixture(scope="module")
def symmetry():
    return pyro_align.find_symmetry(model, X, Y)


@pytest.mark.parametrize("cls", GUIDES)
@pytest.mark.parametrize("seed", range(3))
def test_a_relabeled_copy_is_recovered_exactly(cls, seed, symmetry):
    guide = make_guide(cls, seed)
    hidden = symmetry.random(seed + 10)
    alignment = pyro_align.align(guide, pyro_align.permute_guide(guide, hidden), symmetry, seed=seed)
    correlated = pyro_align.guides.read_guide(
        guide
    ).is_coupled  # their distance goes through a singular value decomposition
    assert alignment.distance < 1e-13 if correlated else alignment.distance == 0.0
    assert alignment.distance_before > 0.1
    assert alignment.permutation == hidden.inverse()


@pytest.mark.parametrize("cls", GUIDES)
def test_alignment_never_moves_apart(cls, symmetry):
    a, b = make_guide(cls, 1), make_guide(cls, 2)
    alignment = pyro_align.align(a, b, symmetry)
    assert alignment.distance <= alignment.distance_before
    assert alignment.match.objective == max(alignment.match.history)
    posteriors = pyro_align.guides.read_guide(a), pyro_align.guides.read_guide(alignment.guide)
    assert posteriors[0].distance(posteriors[1]) == alignment.distance


CORRELATED = [AutoMultivariateNormal, AutoLowRankMultivariateNormal, AutoGaussian, AutoStructured]


@pytest.mark.parametrize("cls", CORRELATED)
def test_the_true_w2_falls_with_every_renewal_of_the_coupling(cls, symmetry, monkeypatch):
    """Where the coupling is renewed, the true W2 has never risen; in the end no renewal gains anything."""
    a, b = (pyro_align.guides.read_guide(make_guide(cls, seed)) for seed in (1, 2))
    rounds, renew = [], type(a).coupled_features

    def watched(self, other, p):
        rounds.append(self.distance(other.permute(p)))
        return renew(self, other, p)

    with monkeypatch.context() as patch:
        patch.setattr(type(a), "coupled_features", watched)
        alignment = pyro_align.align(a, b, symmetry)
    ascents = sum(later > earlier for earlier, later in itertools.pairwise(rounds))
    assert ascents <= 1  # from the marginals' optimum down, and from the identity down
    assert alignment.distance <= min(rounds)
    assert alignment.distance == pytest.approx(min(rounds), rel=1e-12)
    by_marginals = pyro_align.align(a, b, symmetry, divergence="means")
    assert alignment.distance <= by_marginals.distance
    fixed, moving = a.coupled_features(b, alignment.permutation)
    again = match(symmetry, fixed, moving, odd=fixed.odd, init=alignment.permutation)
    assert a.distance(b.permute(again.permutation)) >= alignment.distance - 1e-12


@pytest.mark.parametrize("cls", [AutoMultivariateNormal, AutoLowRankMultivariateNormal])
@pytest.mark.parametrize("seed", range(3))
def test_of_a_small_group_the_nearest_in_true_w2_is_proven(cls, seed):
    """Few distances are taken, and none of those left out is smaller; where locations say nothing, too."""

    def correlated():
        pyro.sample("w", dist.Normal(0.0, 1.0).expand([4, 3]).to_event(2))
        pyro.sample("v", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    group = Symmetry.from_axes({"w": ("unit", None), "v": (None,)}, shapes={"w": (4, 3), "v": (2,)})
    posteriors = []
    for k in (2 * seed, 2 * seed + 1):
        pyro.set_rng_seed(k)
        with pyro.get_param_store().scope():
            guide = cls(correlated)
            guide()
        with torch.no_grad():
            for name, p in guide.named_parameters():
                p.copy_(torch.zeros_like(p) if name == "loc" and seed else p + torch.randn(p.shape))
        posteriors.append(pyro_align.guides.read_guide(guide))
    a, b = posteriors
    alignment = pyro_align.align(a, b, group)
    assert alignment.status == "optimal"
    least = min(a.distance(b.permute(p)) for p in elements(group))
    assert alignment.distance == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize("divergence", ["w2", "kl", "reverse_kl", "jeffreys", "means", "snr"])
def test_every_divergence_recovers_a_relabeled_copy(divergence, symmetry):
    guide, hidden = make_guide(AutoNormal, 0), symmetry.random(5)
    alignment = pyro_align.align(guide, pyro_align.permute_guide(guide, hidden), symmetry, divergence=divergence)
    assert alignment.permutation == hidden.inverse()


def test_the_aligned_guide_describes_the_same_functions(symmetry):
    a, b = make_guide(AutoDelta, 1), make_guide(AutoDelta, 2)
    alignment = pyro_align.align(a, b, symmetry)
    before, after = (Predictive(model, guide=g, num_samples=1)(X)["y"] for g in (b, alignment.guide))
    density = pyro_align.model.density.Density(model, (X, Y))
    values = [{k: v.detach() for k, v in g(X, Y).items()} for g in (b, alignment.guide)]
    assert torch.allclose(density.log_joint(values[0]), density.log_joint(values[1]), rtol=1e-12)
    assert before.shape == after.shape


@pytest.mark.parametrize("cls", GUIDES)
def test_the_elbo_is_the_old_one_draw_by_draw(cls, symmetry):
    posterior = pyro_align.guides.read_guide(make_guide(cls, 1))
    p, noise = symmetry.random(4), posterior.noise(5)
    moved = posterior.permute(p)
    sides = {}
    for name, q, eps in (("old", posterior, noise), ("new", moved, posterior.permute_noise(p, noise))):
        values, log_q = q.push_with_log_prob(eps)
        sides[name] = [({k: v[s] for k, v in values.items()}, log_q[s]) for s in range(5)]

    def elbo(fn, side):
        density = pyro_align.model.density.Density(fn, (X, Y))
        return torch.stack([density.log_joint(values) - log_q for values, log_q in sides[side]])

    assert torch.allclose(elbo(model, "new"), elbo(model, "old"), rtol=1e-11)
    assert torch.allclose(elbo(pyro_align.permute_model(model, p), "new"), elbo(model, "old"), rtol=1e-11)


@pytest.mark.parametrize("cls", GUIDES)
def test_nothing_is_touched(cls, symmetry):
    a, b = make_guide(cls, 1), make_guide(cls, 2)
    pyro.param("mine", torch.tensor([1.0, 2.0]))
    before = snapshot(a), snapshot(b), pyro.get_param_store().get_state()["params"], torch.get_rng_state()
    alignment = pyro_align.align(a, b, symmetry)
    pyro_align.permute_guide(a, symmetry.random(1))
    alignment.guide  # noqa: B018  (built when asked for)
    assert a.training
    assert a.model is not None
    for guide, state in zip((a, b), before, strict=False):
        assert all(torch.equal(v, state[k]) for k, v in guide.state_dict().items())
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert pyro.get_param_store().get_state()["params"]["mine"] is before[2]["mine"]
    assert torch.equal(torch.get_rng_state(), before[3])


@pytest.mark.parametrize("cls", GUIDES)
def test_the_result_is_a_working_guide(cls, symmetry):
    alignment = pyro_align.align(make_guide(cls, 1), make_guide(cls, 2), symmetry)
    guide = alignment.guide
    assert type(guide) is cls
    expected = snapshot(guide)
    loss = Trace_ELBO().loss(model, guide, X, Y)
    assert torch.isfinite(torch.tensor(loss))
    assert all(torch.equal(v, expected[k]) for k, v in guide.state_dict().items())
    assert Predictive(model, guide=guide, num_samples=3)(X)["y"].shape[0] == 3
    twin = copy.deepcopy(alignment.posterior.to_guide())
    assert all(torch.equal(v, expected[k]) for k, v in twin.state_dict().items())
    stream = io.BytesIO()
    torch.save(alignment.posterior.to_guide().state_dict(), stream)
    SVI(model, guide, Adam({"lr": 0.1}), Trace_ELBO()).step(X, Y)
    assert not all(torch.equal(v, expected[k]) for k, v in guide.state_dict().items())


def test_the_same_seed_gives_the_same_alignment(symmetry):
    a, b = make_guide(AutoNormal, 1), make_guide(AutoNormal, 2)
    first, second = (pyro_align.align(a, b, symmetry, seed=3, restarts=2) for _ in range(2))
    assert first.permutation == second.permutation
    assert first.match.history == second.match.history


def test_the_summary_splits_the_distance_by_site(symmetry):
    alignment = pyro_align.align(make_guide(AutoNormal, 1), make_guide(AutoNormal, 2), symmetry)
    frame = alignment.summary()
    parts, total = frame.iloc[:-1], frame.iloc[-1]
    for column in ("before", "after"):
        assert abs((parts[column] ** 2).sum() ** 0.5 - total[column]) < 1e-9
    assert "W2 distance" in str(alignment)


def test_a_hand_written_symmetry_is_sized_by_the_guide():
    by_hand = SymmetrySpec(
        {"layer0.weight": ("h", None), "layer0.bias": ("h",), "layer1.weight": ("k", "h"), "layer1.bias": ("k",),
         "layer2.weight": (None, "k")}
    )  # fmt: skip
    guide = make_guide(AutoNormal, 0)
    alignment = pyro_align.align(guide, make_guide(AutoNormal, 1), by_hand)
    assert alignment.permutation.symmetry.atoms["h"].size == 7
    assert pyro_align.certify(model, by_hand, X, Y).certificate.error < 1e-9


def test_a_forgotten_site_fails_the_certificate():
    forgotten = SymmetrySpec({"layer0.weight": ("h", None), "layer1.weight": (None, "h")})
    with pytest.raises(SymmetryError, match=r"'h' on layer0.weight\[0\], layer1.weight\[1\].*changes the log joint"):
        pyro_align.certify(model, forgotten, X, Y)


# -- bad input ---------------------------------------------------------------------------------------------------------


def other_sites(x, y=None):
    pyro.sample("w", dist.Normal(0.0, 1.0).expand([7]).to_event(1))


def other_width(x, y=None):
    return bayesian_mlp([3, 6, 5, 2])(x, y)


def test_guides_of_different_sites_or_shapes_are_refused(symmetry):
    guide = make_guide(AutoNormal, 0)
    with pytest.raises(GuideError, match=r"only the second \['w'\]"):
        pyro_align.align(guide, make_guide(AutoNormal, 1, other_sites), symmetry)
    with pytest.raises(GuideError, match=r"'layer0.weight'.*\(7, 3\).*\(6, 3\)"):
        pyro_align.align(guide, make_guide(AutoNormal, 1, other_width), symmetry)
    with pytest.raises(GuideError, match="two families"):
        pyro_align.align(guide, make_guide(AutoDelta, 1), symmetry)


def test_a_symmetry_of_another_model_is_refused():
    guides = make_guide(AutoNormal, 0), make_guide(AutoNormal, 1)
    with pytest.raises(SymmetryError, match=r"'layer0.weight'.*\(6, 3\).*\(7, 3\)"):
        pyro_align.align(*guides, pyro_align.find_symmetry(other_width, X, Y))
    with pytest.raises(GuideError, match=r"does not have: \['w'\]"):
        pyro_align.align(*guides, SymmetrySpec({"w": ("h",)}))
    with pytest.raises(TypeError, match="expected a Symmetry"):
        pyro_align.align(*guides, "symmetry")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite_are_refused(bad, symmetry):
    guide, broken = make_guide(AutoNormal, 0), make_guide(AutoNormal, 1)
    with torch.no_grad():
        next(p for n, p in broken.named_parameters() if "locs" in n).view(-1)[0] = bad
    with pytest.raises(GuideError, match=r"'layer0.weight'.*NaN or infinite"):
        pyro_align.align(guide, broken, symmetry)


def test_an_untrained_guide_is_refused(symmetry):
    with pytest.raises(GuideError, match=r"no parameters yet|untrained"):
        pyro_align.align(make_guide(AutoNormal, 0), AutoNormal(model), symmetry)


def test_guides_that_share_the_store_are_refused(symmetry):
    first = AutoNormal(model, init_loc_fn=init_to_sample)
    first(X, Y)
    second = AutoNormal(model, init_loc_fn=init_to_sample)
    second(X, Y)
    with pytest.raises(GuideError, match=r"share.*scope\(\)"):
        pyro_align.align(first, second, symmetry)


def test_guides_of_two_dtypes_are_refused(symmetry):
    single = make_guide(AutoNormal, 1).to(torch.float32)
    with pytest.raises(GuideError, match=r"'layer0.weight'.*float64 in the first.*float32"):
        pyro_align.align(make_guide(AutoNormal, 0), single, symmetry)


def test_options_out_of_range_are_refused(symmetry):
    guides = make_guide(AutoNormal, 0), make_guide(AutoNormal, 1)
    with pytest.raises(MatchError, match="unknown matcher 'best'"):
        pyro_align.align(*guides, symmetry, matcher="best")
    with pytest.raises(GuideError, match="no divergence 'l2'"):
        pyro_align.align(*guides, symmetry, divergence="l2")
    with pytest.raises(MatchError, match="restarts"):
        pyro_align.align(*guides, symmetry, restarts=-1)
    with pytest.raises(ValueError, match="tau must lie"):
        pyro_align.displacement(*guides)(1.5)


def test_a_model_with_other_arguments_is_refused():
    with pytest.raises(pyro_align.errors.TraceError, match="could not be run with the arguments given"):
        pyro_align.find_symmetry(model, X[:, :2], Y)


def test_units_say_which_matches_mean_something():
    symmetry = Symmetry.from_axes({"w": ("unit", None)}, shapes={"w": (5, 2)})

    def plain():
        pyro.sample("w", dist.Normal(0.0, 1.0).expand([5, 2]).to_event(2))

    guide = make_guide(AutoNormal, 0, plain, ())
    with torch.no_grad():  # two twins, one unit at the prior, two of a kind of their own
        guide.locs.w.copy_(torch.tensor([[4.0, 0.0], [4.0, 0.0], [0.0, 0.0], [0.0, 5.0], [-4.0, 1.0]]))
        guide.scales.w_unconstrained.fill_(0.5413248546129181)  # softplus(this) = 1, the prior's scale
    alignment = pyro_align.align(
        guide, pyro_align.permute_guide(guide, symmetry.random(3)), symmetry, with_margins=True
    )
    units = alignment.units(pyro_align.effective_width(plain, guide, symmetry))
    assert units["distinct"].tolist() == [False, False, True, True, True]
    assert units["active"].tolist() == [True, True, False, True, True]
    assert units.loc[("unit", 4), "partner"] == int(alignment.permutation.indices["unit"][4])
    assert "kl" not in alignment.units()
    with pytest.raises(MatchError, match="with_margins=True"):
        pyro_align.align(guide, make_guide(AutoNormal, 1, plain, ()), symmetry).units()
