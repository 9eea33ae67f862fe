"""Guides without a rule, hand-written guides, draws and ensembles."""

import copy
import io
import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.distributions import constraints
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGaussian,
    AutoIAFNormal,
    AutoNormal,
    AutoNormalizingFlow,
    AutoRegressiveMessenger,
    AutoStructured,
)
from pyro.infer.autoguide.effect import AutoHierarchicalNormalMessenger
from pyro.nn import PyroModule, PyroParam
from test_guides_laws import SITE_SHAPES, SYMMETRY, X, Y, model, scatter, state_of

from pyro_align.alignment.pair import align
from pyro_align.draws import align_draws
from pyro_align.errors import GuideError
from pyro_align.guides import (
    Between,
    Ensemble,
    MeanFieldNormal,
    RelabeledGuide,
    Wrapped,
    mean_field_guide,
    permute_guide,
    read_guide,
    wrap_guide,
)
from pyro_align.paths.geodesic import displacement
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.spec import SymmetrySpec


class Easy(EasyGuide):
    """Global `pyro.param` statements inside a module."""

    def guide(self, x, y=None):
        group = self.group(match="w.*")
        loc = pyro.param("easy_loc", lambda: torch.randn(group.event_shape))
        group.sample("joint", dist.Normal(loc, 0.1).to_event(1))
        self.map_estimate("mix")
        self.map_estimate("noise")
        gain = pyro.param("easy_gain", lambda: torch.randn(4))
        pyro.sample("layer.gain", dist.LogNormal(gain, 0.1).to_event(1))


class Renamed(AutoNormal):
    """A subclass without a rule."""


def by_hand(x, y=None):
    """Functions with `pyro.param` statements; not mean-field normal, because of the Dirichlet."""
    loc = pyro.param("hand.w1", lambda: torch.randn(4, 2))
    w1 = pyro.sample("w1", dist.Normal(loc, 0.1).to_event(2))
    scale = pyro.param("hand.scale", lambda: torch.rand(4), constraint=constraints.positive)
    pyro.sample("layer.gain", dist.LogNormal(w1.sum(-1), scale).to_event(1))
    weights = pyro.param("hand.mix", lambda: 1 + torch.rand(4, 3), constraint=constraints.positive)
    pyro.sample("mix", dist.Dirichlet(weights).to_event(1))
    pyro.sample("w2", dist.Normal(pyro.param("hand.w2", lambda: torch.randn(3, 4)), 0.1).to_event(2))
    pyro.sample("noise", dist.LogNormal(pyro.param("hand.noise", torch.tensor(0.0)), 0.1))


def flow(size):
    return dist.transforms.planar(size)


GUIDES = {
    "AutoIAFNormal": lambda: AutoIAFNormal(model, hidden_dim=[40]),
    "AutoNormalizingFlow": lambda: AutoNormalizingFlow(model, flow),
    "AutoStructured": lambda: AutoStructured(model, conditionals="normal"),
    "AutoGaussian": lambda: AutoGaussian(model),
    "AutoRegressiveMessenger": lambda: AutoRegressiveMessenger(model),
    "AutoHierarchicalNormalMessenger": lambda: AutoHierarchicalNormalMessenger(
        poutine.block(model, hide=["mix"]), init_scale=0.01
    ),
    "EasyGuide": lambda: Easy(model),
    "subclass": lambda: Renamed(model),
    "function": lambda: by_hand,
}
every_guide = pytest.mark.parametrize("name", [k for k in GUIDES if k != "AutoHierarchicalNormalMessenger"])


def trained(make, seed=0):
    """A guide after three steps of SVI, and the scope that its parameters live in."""
    pyro.set_rng_seed(seed)
    with pyro.get_param_store().scope() as scope:
        guide = make()
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        for _ in range(3):
            svi.step(X, Y)
        if isinstance(guide, torch.nn.Module):
            scatter(guide, seed) if not isinstance(guide, AutoIAFNormal | AutoNormalizingFlow) else None
    return guide, scope


def wrapped(name, seed=0):
    guide, scope = trained(GUIDES[name], seed)
    with pyro.get_param_store().scope(scope):
        return guide, scope, wrap_guide(guide, X, Y)


@every_guide
def test_wrapped_draws_and_densities(name):
    _, _, q = wrapped(name)
    p, noise = SYMMETRY.random(1), q.noise(3)
    values, log_prob = q.push_with_log_prob(noise)
    moved, moved_log_prob = q.permute(p).push_with_log_prob(noise)
    expected = p.apply({k: values[k] for k in SYMMETRY.sites}, batch_dims=1)
    assert all(torch.equal(moved[k], v) and not torch.equal(v, values[k]) for k, v in expected.items())
    assert torch.equal(moved["noise"], values["noise"])
    torch.testing.assert_close(moved_log_prob, log_prob, rtol=1e-12, atol=0)
    twice = q.permute(p).permute(p.inverse())
    assert all(torch.equal(twice.push(noise)[k], v) for k, v in values.items())
    for other in (q.permute(SYMMETRY.identity()), read_guide(q.permute(p).permute(p.inverse()).to_guide())):
        assert all(torch.equal(other.push(noise)[k], v) for k, v in values.items())


@every_guide
def test_wrapped_elbo_is_the_old_one(name):
    """Draw by draw, because the model does not tell units apart; the density is Pyro's own."""
    guide, scope, q = wrapped(name)
    new = q.permute(SYMMETRY.random(2)).to_guide()
    losses = []
    for candidate, state in ((guide, scope), (new, None), (q.to_guide(), None)):
        with pyro.get_param_store().scope(state):
            pyro.set_rng_seed(5)
            losses.append(Trace_ELBO(num_particles=2).loss(model, candidate, X, Y))
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert losses[2] == pytest.approx(losses[0], rel=1e-9)


@every_guide
def test_wrapped_guides_work_in_pyro(name):
    q = wrapped(name)[2]
    new = q.permute(SYMMETRY.random(2)).to_guide()
    assert isinstance(new, RelabeledGuide)
    state = state_of(new)
    if name not in ("AutoStructured", "EasyGuide"):  # Pyro warns of the order in which these draw, wrapped or not
        TraceMeanField_ELBO().loss(model, new, X, Y)
    assert Predictive(model, guide=new, num_samples=2)(X)["y"].shape == (2, 5, 3)
    SVI(model, new, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(X, Y)
    assert any(not torch.equal(v, state[k]) for k, v in state_of(new).items())
    if name not in ("function",):
        assert all(not torch.equal(v, state_of(new)[k]) for k, v in state.items() if k.endswith("w1_unconstrained"))
    copy.deepcopy(q.permute(SYMMETRY.random(2)).to_guide())


def test_wrapped_guides_can_be_saved():
    new = wrapped("subclass")[2].permute(SYMMETRY.random(2)).to_guide()
    buffer = io.BytesIO()
    torch.save(new, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    pyro.set_rng_seed(0)
    expected = new(X)
    pyro.set_rng_seed(0)
    assert all(torch.equal(v, expected[k]) for k, v in loaded(X).items())


@every_guide
def test_wrapping_touches_nothing(name):
    guide, scope = trained(GUIDES[name])
    is_module = isinstance(guide, torch.nn.Module)
    with pyro.get_param_store().scope(scope):
        store = pyro.get_param_store()
        before = {k: v.detach().clone() for k, v in store.named_parameters()}
        identity = dict(store.named_parameters())
        state = state_of(guide) if is_module else {}
        attributes = dict(guide.__dict__)
        rng = torch.get_rng_state()
        q = wrap_guide(guide, X, Y)
        q.push(q.noise(2))
        q.permute(SYMMETRY.random(0)).to_guide()
        assert torch.equal(torch.get_rng_state(), rng)
        assert dict(store.named_parameters()).keys() == before.keys()
        assert all(store._params[k] is v and torch.equal(v, before[k]) for k, v in identity.items())
        assert guide.__dict__.keys() == attributes.keys()
        assert all(guide.__dict__[k] is v for k, v in attributes.items())
        if is_module:
            assert all(torch.equal(v, state[k]) for k, v in state_of(guide).items())
        guide(X, Y)


def test_wrapped_particles_are_independent():
    """Sites set aside still see the plates around the guide."""
    new = wrapped("AutoStructured")[2].permute(SYMMETRY.random(1)).to_guide()
    with pyro.plate("particles", 50, dim=-2):
        out = new(X, Y)
    assert out["w1"].shape == (50, 1, 4, 2)
    assert float(out["w1"].detach().std(0).min()) > 0


def test_wrapped_local_sites_keep_their_plates():
    def local(x):
        w = pyro.sample("w", dist.Normal(0, 1).expand([3]).to_event(1))
        with pyro.plate("data", len(x), subsample_size=4):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1).to_event(1))
            pyro.sample("x", dist.Normal((z * w).sum(-1), 1), obs=x[:4])

    def guide(x):
        pyro.sample("w", dist.Normal(pyro.param("w_loc", lambda: torch.randn(3)), 0.1).to_event(1))
        loc = pyro.param("z_loc", lambda: torch.randn(10, 3), event_dim=1)
        with pyro.plate("data", len(x), subsample_size=4) as index:
            pyro.sample("z", dist.Normal(loc[index] if len(loc) == 10 else loc, 0.1).to_event(1))

    x = torch.randn(10)
    guide(x)
    s = Symmetry.from_axes({"w": ("h",), "z": (None, "h")}, shapes={"w": (3,), "z": (4, 3)})
    new = wrap_guide(guide, x).permute(s.permutation({"h": [2, 0, 1]})).to_guide()
    pyro.set_rng_seed(1)
    expected = Trace_ELBO().loss(local, guide, x)
    pyro.set_rng_seed(1)
    assert Trace_ELBO().loss(local, new, x) == pytest.approx(expected, rel=1e-9)


@pytest.mark.usefixtures("few_draws")
def test_path_between_wrapped_guides():
    a, b = (wrapped("subclass", seed)[2] for seed in (0, 1))
    path = displacement(a, b)
    assert path.posterior(0.0) is a
    assert path.posterior(1.0) is b
    middle = path.posterior(0.5)
    assert isinstance(middle, Between)
    noise = path.posterior(0.0).noise(4)  # one noise serves the whole path
    assert {len(path.posterior(tau).push(noise)["w1"]) for tau in (0.0, 0.3, 1.0)} == {4}
    assert {k: tuple(v.shape) for k, v in path(0.5)(X).items()} == SITE_SHAPES
    assert path.start.distance(middle) < path.length
    assert displacement(a, middle).length < path.length  # a point of the path is a posterior like any other


def test_wrapped_guides_align():
    """Planted relabelings are undone to the bit; between two fits the distance never rises; draws are reused."""
    a, b = (wrapped("AutoIAFNormal", seed)[2] for seed in (0, 1))
    for q in (a, b):
        q.drawn(0), q.drawn(1)  # relabeled posteriors take them over: the guide need not run again
    planted = SYMMETRY.random(4)
    recovered = align(a, a.permute(planted), SYMMETRY)
    assert recovered.permutation == planted.inverse()
    assert recovered.distance < 1e-9 < recovered.distance_before
    for seed in range(4):
        alignment = align(a, b.permute(SYMMETRY.random(seed)), SYMMETRY)
        assert alignment.distance <= alignment.distance_before
    noise = b.noise(16, generator=0)
    fresh, kept = read_guide(b.permute(planted).to_guide()).push(noise), b.permute(planted).drawn(0)
    kept = {k: v[:16] for k, v in kept.items()}
    assert all(torch.equal(v, fresh[k]) for k, v in kept.items())


def test_guides_that_do_not_run_are_refused():
    with pytest.raises(GuideError, match=r"by_hand|function.*does not run with the arguments given"):
        read_guide(by_hand)
    with pytest.raises(GuideError, match="no parameters yet"):
        wrap_guide(Renamed(model), X, Y)

    def with_module(x):
        net = torch.nn.Linear(1, 1)
        pyro.module("net", net)
        pyro.sample("w", dist.Normal(net(torch.zeros(1)), 1).to_event(1))

    with_module(X)
    with pytest.raises(GuideError, match=r"registers the module 'net'.*PyroModule"):
        wrap_guide(with_module, X)


class Amortized(torch.nn.Module):
    """Model and guide as methods of one module, as in Pyro's tutorial on variational autoencoders."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Linear(2, 4)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, torch.nn.functional.softplus(raw)).to_event(1))


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("handled", [False, True])
def test_methods_of_a_module_are_wrapped_with_a_copy_of_it(handled):
    first, second = Amortized(), Amortized()
    guides = [poutine.scale(net.guide, scale=1.0) if handled else net.guide for net in (first, second)]
    symmetry = Symmetry.from_axes({"z": (None, "d")}, shapes={"z": (5, 2)})
    p = symmetry.permutation({"d": [1, 0]})
    before = len(pyro.get_param_store())
    a, b = (wrap_guide(guide, X) for guide in guides)
    noise = a.noise(3)
    values, log_prob = a.push_with_log_prob(noise)
    moved, same = a.permute(p).push_with_log_prob(noise)
    assert torch.equal(moved["z"], values["z"][..., [1, 0]])
    torch.testing.assert_close(same, log_prob)
    assert not torch.equal(b.push(noise)["z"], values["z"])
    with torch.no_grad():
        first.encoder.weight.zero_()
    assert torch.equal(wrap_guide(a.to_guide(), X).push(noise)["z"], values["z"])
    assert len(pyro.get_param_store()) == before
    new = a.permute(p).to_guide()
    state = state_of(new)

    def prior(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    SVI(prior, new, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(X)
    assert any(not torch.equal(v, state[k]) for k, v in state_of(new).items())
    assert align(a, a.permute(p), symmetry).permutation == p


def test_a_function_that_registers_a_module_is_wrapped_with_its_weights():
    encoder = torch.nn.Linear(2, 4)

    def guide(x):
        shift = pyro.param("shift", torch.zeros(2))
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, raw = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc + shift, torch.nn.functional.softplus(raw)).to_event(1))

    def prior(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    SVI(prior, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(X)
    q = wrap_guide(guide, X)
    values, weight = q.push(q.noise(3))["z"], encoder.weight.detach().clone()
    with torch.no_grad():
        encoder.weight.zero_()
    assert torch.equal(wrap_guide(q.to_guide(), X).push(q.noise(3))["z"], values)
    new = q.to_guide()
    state = state_of(new)
    SVI(prior, new, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(X)
    assert all(not torch.equal(v, state[k]) for k, v in state_of(new).items())
    assert not encoder.weight.any(), "the user's own module is not trained"
    assert not torch.equal(weight, encoder.weight)


def test_a_functions_parameters_are_snapshots():
    _, scope = trained(lambda: by_hand)
    with pyro.get_param_store().scope(scope):
        q = wrap_guide(by_hand, X, Y)
        before = q.push(q.noise(2))
        with torch.no_grad():
            for value in pyro.get_param_store()._params.values():
                value += 1
        after = q.push(q.noise(2))
    assert all(torch.equal(before[k], v) for k, v in after.items())
    assert all(torch.equal(q.push(q.noise(2))[k], v) for k, v in before.items())  # without the store, too


# -- hand-written mean-field guides ------------------------------------------------------------------------------------

SMALL = Symmetry.from_axes({"w": ("h", None), "s": ("h",)}, shapes={"w": (3, 2), "s": (3,)})


def small_model():
    pyro.sample("w", dist.Normal(0, 1).expand([3, 2]).to_event(2))
    with pyro.plate("units", 3):
        pyro.sample("s", dist.HalfNormal(1))


def small_guide():
    loc = pyro.param("w_loc", lambda: torch.randn(3, 2))
    scale = pyro.param("w_scale", lambda: torch.rand(3, 1), constraint=constraints.interval(0, 2))
    pyro.sample("w", dist.Normal(loc, scale).to_event(2))
    with pyro.plate("units", 3):
        log = pyro.param("s_loc", lambda: torch.randn(3))
        pyro.sample("s", dist.LogNormal(log, pyro.param("s_scale", torch.tensor(0.2), constraint=constraints.positive)))


NAMES = {"w": ("w_loc", "w_scale"), "s": ("s_loc", "s_scale")}


@pytest.mark.parametrize("names", [None, NAMES])
def test_hand_written_mean_field(names):
    small_guide()
    q = mean_field_guide(small_guide, parameters=names)
    assert isinstance(q, MeanFieldNormal)
    store = pyro.get_param_store()
    assert torch.equal(q.marginal("w")[0], store["w_loc"])
    torch.testing.assert_close(q.marginal("w")[1], store["w_scale"].detach().expand(3, 2))
    torch.testing.assert_close(q.marginal("s")[1], torch.full((3,), 0.2))
    p = SMALL.permutation({"h": [2, 0, 1]})
    guide = permute_guide(q, p)
    assert type(guide) is AutoNormal
    torch.testing.assert_close(guide.locs.s.detach(), store["s_loc"].detach()[p.indices["h"]])
    assert displacement(q, guide).length > 0
    losses = []
    for candidate in (small_guide, guide):
        losses.append(
            Trace_ELBO(num_particles=3000, vectorize_particles=True, max_plate_nesting=1).loss(small_model, candidate)
        )
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    SVI(small_model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step()


def test_hand_written_module():
    class Guide(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = PyroParam(torch.randn(3, 2))

        def forward(self):
            pyro.sample("w", dist.Normal(self.loc, 0.3).to_event(2))

    guide = Guide()
    q = mean_field_guide(guide)
    assert torch.equal(q.marginal("w")[0], guide.loc)


def test_what_is_not_mean_field_is_refused():
    def dependent():
        w = pyro.sample("w", dist.Normal(torch.zeros(3, 2), 1).to_event(2))
        pyro.sample("s", dist.LogNormal(w.sum(-1), 1).to_event(1))

    with pytest.raises(GuideError, match=r"site 's'.*depends on other draws.*wrap_guide"):
        mean_field_guide(dependent)
    with pytest.raises(GuideError, match=r"site 's'.*drawn from Gamma"):
        mean_field_guide(lambda: pyro.sample("s", dist.Gamma(torch.ones(3), 1).to_event(1)))
    small_guide()
    with pytest.raises(GuideError, match=r"no parameter 'typo'"):
        mean_field_guide(small_guide, parameters={**NAMES, "s": ("typo", "s_scale")})
    with pytest.raises(GuideError, match=r"names the sites \['w'\]"):
        mean_field_guide(small_guide, parameters={"w": NAMES["w"]})
    with pytest.raises(GuideError, match=r"parameter 'w_loc' has shape \(3, 2\)"):
        mean_field_guide(small_guide, parameters={**NAMES, "s": ("w_loc", "s_scale")})


# -- draws and ensembles -----------------------------------------------------------------------------------------------


def ensemble(seed, size=5):
    members = []
    for i in range(size):
        with pyro.get_param_store().scope():
            guide = AutoDelta(model)
            guide(X, Y)
        members.append(scatter(guide, 10 * seed + i))
    return members


def test_draws_are_relabeled():
    draws = {k: torch.randn(6, *shape) for k, shape in SYMMETRY.shapes.items()}
    p = SYMMETRY.random(1)
    guide = permute_guide(draws, p)
    expected = p.apply(draws, batch_dims=1)
    assert all(torch.equal(v, expected[k]) for k, v in guide.draws.items())
    q = read_guide(guide)
    noise = q.noise(6)
    pushed, log_prob = q.push_with_log_prob(noise)
    assert torch.equal(pushed["w1"].sum(0), expected["w1"][((noise["_draw"] * 6).long())].sum(0))
    assert sorted((noise["_draw"] * 6).long().tolist()) == list(range(6))
    assert torch.equal(log_prob, torch.zeros(6))


def test_ensembles_become_draws():
    members = ensemble(0)
    q = read_guide(members)
    assert isinstance(q, Ensemble)
    assert q.num_draws == 5
    assert torch.equal(q.draws["mix"][2], members[2].mix)
    states = [{"w": torch.randn(3), "b": torch.randn(())} for _ in range(4)]
    assert torch.equal(read_guide(states).draws["w"][3], states[3]["w"])
    with pytest.raises(GuideError, match="empty"):
        read_guide([])
    with pytest.raises(GuideError, match="empty"):
        read_guide({})
    with pytest.raises(GuideError, match="different names"):
        read_guide([{"w": torch.zeros(2)}, {"v": torch.zeros(2)}])
    with pytest.raises(GuideError, match="site 'w'"):
        read_guide({"w": 3.0})
    with pytest.raises(GuideError, match="same positive number"):
        read_guide({"w": torch.zeros(2, 1), "v": torch.zeros(3, 1)})


def test_one_dict_of_draws_means_one_thing():
    """Chains of draws are told from draws by the symmetry; where there is none, they are refused, not guessed."""
    spec, by_chain = SymmetrySpec({"w": ("k",)}), {"w": torch.randn(4, 100, 3), "lp": torch.randn(4, 100)}
    flat = {k: v.flatten(0, 1) for k, v in by_chain.items()}
    found = [align(given, {k: v.flip(-1) for k, v in given.items()}, spec) for given in (by_chain, flat)]
    assert torch.equal(found[0].posterior.draws["w"], found[1].posterior.draws["w"])
    assert found[0].posterior.num_draws == 400
    assert align_draws(by_chain, spec).draws["w"].shape == (4, 100, 3)
    p = found[0].permutation
    assert p == found[1].permutation
    moved = permute_guide({"w": by_chain["w"]}, p).draws["w"]
    assert torch.equal(moved, p.apply_site("w", flat["w"], batch_dims=1))
    with pytest.raises(GuideError, match=r"site 'w': shape \(4, 100, 3\) can be read as 4 chains of 100 draws"):
        read_guide(by_chain)
    assert read_guide(flat).num_draws == 400
    few, wide = {"w": torch.randn(4, 100, 3)}, SymmetrySpec({"w": ("k", None)})
    assert align(few, {"w": few["w"].flip(1)}, wide).posterior.num_draws == 4
    assert read_guide([{"w": w} for w in few["w"]]).num_draws == 4


def test_displacement_of_draws_is_the_best_assignment():
    a, b = read_guide(ensemble(0)), read_guide(ensemble(1))
    here, there = a.coordinates, b.coordinates
    best = min(float((here - there[list(order)]).square().sum()) for order in itertools.permutations(range(5)))
    path = displacement(a, b)
    assert path.length == pytest.approx((best / 5) ** 0.5, rel=1e-10)
    assert a.distance(path.posterior(0.25)) == pytest.approx(0.25 * path.length, rel=1e-8)
    end = path.posterior(1.0)
    assert {tuple(row.tolist()) for row in end.draws["w1"].flatten(1)} == {
        tuple(row.tolist()) for row in b.draws["w1"].flatten(1)
    }
    guide = path(0.5)
    with pyro.plate("particles", 200, dim=-2):
        out = guide(X)
    assert out["w1"].shape == (200, 1, 4, 2)
    assert len({tuple(row.tolist()) for row in out["w1"].flatten(1)}) == 5
    assert Predictive(model, guide=guide, num_samples=3)(X)["y"].shape == (3, 5, 3)
    with pytest.raises(GuideError, match="5 and 4 members"):
        displacement(a, read_guide(ensemble(2, size=4)))


def test_coupled_features_of_draws_are_the_true_w2():
    a, b = read_guide(ensemble(0)), read_guide(ensemble(1))
    here = SYMMETRY.random(1)
    fixed, moving = a.coupled_features(b, here)

    def inner(p):
        moved = {k: v if k == "noise" else tuple(p.apply_site(k, t) for t in v) for k, v in moving.items()}
        return sum(float((f * m).sum()) for k in fixed for f, m in zip(fixed[k], moved[k], strict=True))

    def half_w2(p):
        return a.distance(b.permute(p)) ** 2 / 2

    constant = inner(here) + half_w2(here)
    gaps = [constant - inner(p) - half_w2(p) for p in (SYMMETRY.random(seed) for seed in range(2, 8))]
    assert min(gaps) > -1e-9


def test_wrapped_type_is_kept():
    _, _, q = wrapped("AutoIAFNormal")
    guide = permute_guide(q, SYMMETRY.random(0))
    assert isinstance(read_guide(guide), Wrapped)
    assert isinstance(guide.guide, AutoIAFNormal)
