"""Guides that run the priors: relabeled by their parameters where the priors allow, and refused where not."""

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, AutoRegressiveMessenger
from pyro.infer.autoguide.effect import AutoHierarchicalNormalMessenger
from test_guides_laws import scatter, state_of

from pyro_align import Symmetry, align, displacement, load, permute_guide, save
from pyro_align.errors import GuideError
from pyro_align.guides import Messenger, messenger_guide, read_guide

UNITS = 4
X = torch.linspace(-1, 1, 6, dtype=torch.float64)


def model(x, apart=None):
    """Weights whose prior hangs on a scale and on a gain for each unit; `apart` shifts the first unit's prior."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    with pyro.plate("units", UNITS):
        gain = pyro.sample("gain", dist.Normal(torch.zeros(UNITS) if apart is None else apart, scale))
        w = pyro.sample("w", dist.Normal(gain.unsqueeze(-1), 1.0).expand([UNITS, 2]).to_event(1))
    v = pyro.sample("v", dist.Normal(0.0, scale.unsqueeze(-1)).expand([*scale.shape, UNITS]).to_event(1))
    hidden = torch.tanh(x[:, None] * w[..., 0] + w[..., 1])
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((hidden * v).sum(-1), 1.0), obs=torch.sin(x))


SYMMETRY = Symmetry.from_axes(
    {"gain": ("unit",), "w": ("unit", None), "v": ("unit",)}, shapes={"gain": (UNITS,), "w": (UNITS, 2), "v": (UNITS,)}
)


def scalar_weights(model):
    guide = AutoHierarchicalNormalMessenger(model)
    guide.weight_type = "scalar"
    return guide


KINDS = {
    "hierarchical": AutoHierarchicalNormalMessenger,
    "some sites": lambda model: AutoHierarchicalNormalMessenger(model, hierarchical_sites=["w", "gain"]),
    "scalar weights": scalar_weights,
    "regressive": AutoRegressiveMessenger,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def fitted(kind, seed=0, *args):
    pyro.set_rng_seed(seed)
    with pyro.get_param_store().scope():
        guide = KINDS[kind](model)
        guide(X, *args)
    return scatter(guide, seed)


def log_density(guide, values, i):
    """Pyro's own density of a guide at given values."""

    class At(pyro.poutine.messenger.Messenger):
        def _pyro_sample(self, msg):
            if msg["name"] in values and not msg["is_observed"]:
                msg["value"], msg["done"] = values[msg["name"]][i], True

    with pyro.get_param_store().scope(), torch.no_grad(), At():
        guide(X)
    return guide.get_traces()[1].log_prob_sum()


@every_kind
def test_relabeled_guides_have_relabeled_draws(kind):
    guide, p = fitted(kind), SYMMETRY.random(3)
    q = messenger_guide(guide, X)
    assert isinstance(q, Messenger)
    noise = q.noise(4)
    values, log_prob = q.push_with_log_prob(noise)
    moved, moved_log_prob = q.permute(p).push_with_log_prob(noise)
    for k, v in p.apply({k: values[k] for k in SYMMETRY.sites}, batch_dims=1).items():
        assert torch.equal(moved[k], v)
    torch.testing.assert_close(moved_log_prob, log_prob, rtol=1e-12, atol=0)
    new = permute_guide(q, p)
    assert type(new) is type(guide)
    for i in range(4):
        torch.testing.assert_close(log_density(new, moved, i), log_prob[i], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(log_density(guide, values, i), log_prob[i], rtol=1e-9, atol=1e-9)
    assert torch.equal(new.locs.w.detach(), guide.locs.w.detach()[p.indices["unit"]])


@every_kind
def test_group_laws(kind):
    q = messenger_guide(fitted(kind), X)
    p, other = SYMMETRY.random(1), SYMMETRY.random(2)
    original = state_of(q.to_guide())
    for same in (q.permute(SYMMETRY.identity()), q.permute(p).permute(p.inverse())):
        assert all(torch.equal(state_of(same.to_guide())[k], v) for k, v in original.items())
    once, twice = state_of(q.permute(p @ other).to_guide()), state_of(q.permute(other).permute(p).to_guide())
    assert all(torch.equal(once[k], v) for k, v in twice.items())


@every_kind
def test_paths_move_the_parameters(kind):
    a, b = (messenger_guide(fitted(kind, seed), X) for seed in range(2))
    b = b.permute(SYMMETRY.random(4))
    path = displacement(a, b)
    for tau, end in ((0.0, a), (1.0, b)):
        assert all(torch.equal(state_of(path(tau))[k], v) for k, v in state_of(end.to_guide()).items())
    middle = path(0.5)
    assert type(middle) is type(a.to_guide())
    torch.testing.assert_close(middle.locs.w, (path(0.0).locs.w + path(1.0).locs.w) / 2)
    torch.testing.assert_close(middle.scales.v, (path(0.0).scales.v + path(1.0).scales.v) / 2)
    noise = path.posterior(0.0).noise(3)
    drawn = [path.posterior(tau).push(noise) for tau in (0.0, 0.5, 1.0)]
    assert {v["w"].shape for v in drawn} == {(3, UNITS, 2)}
    pickled = pickle.loads(pickle.dumps(path)).posterior(0.5)
    assert all(torch.equal(v, drawn[1][k]) for k, v in pickled.push(noise).items())
    assert torch.isfinite(torch.tensor(Trace_ELBO().loss(model, middle, X)))


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("kind", ["hierarchical", "regressive"])
def test_alignment(kind, tmp_path):
    a = messenger_guide(fitted(kind), X)
    planted = SYMMETRY.random(4)
    a.marginal("w")  # its draws, made once, serve the relabeled guide, too
    found = align(a, a.permute(planted), SYMMETRY)
    assert found.permutation == planted.inverse()
    assert all(torch.equal(state_of(found.guide)[k], v) for k, v in state_of(a.to_guide()).items())
    like = messenger_guide(fitted(kind, 2), X)
    save(tmp_path / "a.zip", found)
    loaded = load(tmp_path / "a.zip", like=like)
    assert all(torch.equal(state_of(found.guide)[k], v) for k, v in state_of(loaded.guide).items())


@every_kind
def test_returned_guides_work_in_pyro_and_nothing_is_touched(kind):
    guide = fitted(kind)
    state, attributes, rng = state_of(guide), dict(guide.__dict__), torch.get_rng_state()
    store = set(pyro.get_param_store().keys())
    q = messenger_guide(guide, X)
    new = q.permute(SYMMETRY.random(1)).to_guide()
    displacement(q, q.permute(SYMMETRY.random(2)))(0.5)
    assert torch.equal(torch.get_rng_state(), rng)
    assert set(pyro.get_param_store().keys()) == store
    assert all(torch.equal(v, state[k]) for k, v in state_of(guide).items())
    assert guide.__dict__.keys() == attributes.keys()
    assert all(guide.__dict__[k] is v for k, v in attributes.items())
    assert Predictive(model, guide=new, num_samples=2, return_sites=("w",))(X)["w"].shape == (2, UNITS, 2)
    before = state_of(new)
    SVI(model, new, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(X)
    assert all(not torch.equal(v, before[k]) for k, v in state_of(new).items() if ".w_" in f".{k}")


@every_kind
def test_priors_that_tell_units_apart_are_refused(kind):
    """The first unit's gain is shifted a priori: parameters say nothing of it, so they cannot move it."""
    shift = torch.tensor([2.0, 0.0, 0.0, 0.0])
    q = messenger_guide(fitted(kind, 0, shift), X, shift)
    p = SYMMETRY.permutation({"unit": [1, 0, 2, 3]})
    with pytest.raises(GuideError, match=r"priors that it runs tell the units apart.*wrap_guide"):
        q.permute(p)
    q.permute(SYMMETRY.permutation({"unit": [0, 2, 1, 3]}))  # those that are alike may move


def test_what_is_no_such_guide():
    with pyro.get_param_store().scope():
        normal = AutoNormal(model)
        normal(X)
    with pytest.raises(GuideError, match="not AutoNormal"):
        messenger_guide(normal)
    with pytest.raises(GuideError, match="untrained"):
        messenger_guide(AutoRegressiveMessenger(model), X)
    with pytest.raises(GuideError, match=r"does not run.*wrap_guide.*messenger_guide"):
        read_guide(fitted("regressive"))
    a, b = messenger_guide(fitted("hierarchical"), X), messenger_guide(fitted("regressive"), X)
    with pytest.raises(GuideError, match="guides of one type"):
        displacement(a, b)
    pyro.set_rng_seed(0)
    with pyro.get_param_store().scope():
        shared = AutoRegressiveMessenger(model, amortized_plates=("units",))
        shared(X)
    with pytest.raises(GuideError, match="shared along a plate"):
        messenger_guide(shared, X)
