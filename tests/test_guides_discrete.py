"""Discrete sites: values that are labels move with the units they number, and nobody guesses which those are."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiscreteParallel, AutoGuideList
from test_guides_laws import scatter, state_of

from pyro_align import Symmetry, align, displacement, find_symmetry, load, permute_guide, save, wrap_guide
from pyro_align.errors import GuideError
from pyro_align.guides import Discrete, Independent, Wrapped, read_guide

Y = torch.tensor([0.0, 5.0, 10.0, 1.0, 4.0, 11.0], dtype=torch.float64)
SYMMETRY = Symmetry.from_axes({"w": ("k",), "loc": ("k",)}, shapes={"w": (3,), "loc": (3,)})


def plain(y):
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    loc = pyro.sample("loc", dist.Normal(0.0, 5.0).expand([3]).to_event(1))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)


mixture = config_enumerate(plain)


def listed(model, continuous, discrete, seed, *args):
    pyro.set_rng_seed(seed)
    with pyro.get_param_store().scope():
        guide = AutoGuideList(model)
        guide.append(AutoDelta(poutine.block(model, expose=continuous)))
        guide.append(AutoDiscreteParallel(poutine.block(model, expose=discrete)))
        guide(*args)
    return scatter(guide, seed)


def fitted(seed=0):
    return listed(mixture, ["w", "loc"], ["z"], seed, Y)


def elbo(model, guide, *args):
    with pyro.get_param_store().scope():
        return TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, *args)


@pytest.mark.filterwarnings("ignore:.*possibly invalid dependency:RuntimeWarning")
def test_labels_move_with_their_components():
    guide, p = fitted(), SYMMETRY.permutation({"k": [1, 2, 0]})
    state = state_of(guide)
    new = permute_guide(read_guide(guide, labels={"z": "k"}), p)
    assert torch.equal(new[1].z_probs.detach(), guide[1].z_probs.detach()[:, [1, 2, 0]])
    expected = elbo(mixture, guide, Y)
    assert elbo(mixture, new, Y) == pytest.approx(expected, rel=1e-10)
    # the values may be said to be none; here that is wrong, and shows
    wrong = permute_guide(read_guide(guide, labels={"z": None}), p)
    assert abs(elbo(mixture, wrong, Y) - expected) > 1
    assert all(torch.equal(v, state_of(guide)[k]) for k, v in state.items())


def test_nobody_guesses():
    p = SYMMETRY.permutation({"k": [1, 2, 0]})
    for q in (read_guide(fitted()), wrap_guide(fitted(), Y)):
        with pytest.raises(GuideError, match=r"site 'z' is discrete.*labels=\{'z': 'k'\}"):
            q.permute(p)
        assert q.permute(SYMMETRY.identity()).to_guide() is not None
    q = read_guide(fitted())
    with pytest.raises(GuideError, match=r"labels= names the site 'loc'; the guide's discrete sites are \['z'\]"):
        q.with_labels({"loc": "k"})
    with pytest.raises(GuideError, match="no discrete sites"):
        read_guide(fitted()[0], labels={"z": "k"})
    with pytest.raises(GuideError, match=r"units of 'j'; the symmetry has \['k'\]"):
        q.with_labels({"z": "j"}).permute(p)
    four = Symmetry.from_axes({"v": ("k",)}, shapes={"v": (4,)}).permutation({"k": [1, 0, 2, 3]})
    with pytest.raises(GuideError, match="3 values and 4 units"):
        q.parts[1].with_labels({"z": "k"})._permute(four)


def test_the_laws_of_relabeling():
    q = read_guide(fitted(), labels={"z": "k"})
    assert isinstance(q, Independent)
    p, other = SYMMETRY.random(1), SYMMETRY.random(2)
    noise = q.noise(50)
    values, log_prob = q.push_with_log_prob(noise)
    moved, moved_log_prob = q.permute(p).push_with_log_prob(q.permute_noise(p, noise))
    assert torch.equal(moved["z"], p.indices["k"].argsort()[values["z"]])
    assert torch.equal(moved["loc"], values["loc"][:, p.indices["k"]])
    torch.testing.assert_close(moved_log_prob, log_prob, rtol=1e-12, atol=0)
    # the component that a datum is assigned to is the same one
    assert torch.equal(moved["loc"].gather(-1, moved["z"]), values["loc"].gather(-1, values["z"]))
    once, twice = q.permute(p @ other), q.permute(other).permute(p)
    for k, v in state_of(once.to_guide()).items():
        assert torch.equal(v, state_of(twice.to_guide())[k])
    back = q.permute(p).permute(p.inverse())
    assert all(torch.equal(v, state_of(back.to_guide())[k]) for k, v in state_of(q.to_guide()).items())
    assert isinstance(q.parts[1], Discrete)
    table = q.parts[1].log_table("z").exp()
    share = torch.nn.functional.one_hot(q.push(q.noise(4000))["z"], 3).double().mean(0)
    assert float((share - table).abs().max()) < 0.04


@pytest.mark.filterwarnings("ignore:.*possibly invalid dependency:RuntimeWarning")
def test_alignment_and_paths(tmp_path):
    a, b = (read_guide(fitted(seed), labels={"z": "k"}) for seed in range(2))
    planted = SYMMETRY.random(4)
    found = align(a, a.permute(planted), SYMMETRY)
    assert found.permutation == planted.inverse()
    assert torch.equal(found.guide[1].z_probs, a.to_guide()[1].z_probs)
    found = align(a, b, SYMMETRY)
    assert found.distance <= found.distance_before
    assert elbo(mixture, found.guide, Y) == pytest.approx(elbo(mixture, b.to_guide(), Y), rel=1e-10)
    path = displacement(a, found.posterior)
    assert torch.isfinite(torch.tensor(elbo(mixture, path(0.5), Y)))
    middle = (path(0.0)[1].z_probs + path(1.0)[1].z_probs) / 2
    torch.testing.assert_close(path(0.5)[1].z_probs, middle)
    assert all(torch.equal(v, state_of(path(1.0))[k]) for k, v in state_of(found.guide).items())
    save(tmp_path / "g.zip", found.guide)
    loaded = load(tmp_path / "g.zip", like=fitted(2))
    assert elbo(mixture, loaded, Y) == pytest.approx(elbo(mixture, found.guide, Y), rel=1e-12)
    for again in (copy.deepcopy(found.guide), pickle.loads(pickle.dumps(path))(1.0)):
        assert all(torch.equal(v, state_of(again)[k]) for k, v in state_of(found.guide).items())
    save(tmp_path / "a.zip", found)
    kept = load(tmp_path / "a.zip", like=read_guide(fitted(2), labels={"z": "k"})).posterior
    assert kept.labels == {"z": "k"}
    before = state_of(loaded)
    SVI(mixture, loaded, pyro.optim.Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=1)).step(Y)
    assert all(not torch.equal(v, before[k]) for k, v in state_of(loaded).items())


def test_the_symmetry_that_is_found_serves():
    symmetry = find_symmetry(mixture, Y)
    (name,) = symmetry.atoms
    q = read_guide(fitted(), labels={"z": name})
    assert q.permute(symmetry.random(1)).to_guide() is not None


# -- drawn, not enumerated ---------------------------------------------------------------------------------------------


def by_hand(y):
    pyro.sample("w", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    loc = pyro.sample("loc", dist.Normal(torch.tensor([0.0, 5.0, 10.0]), 0.5).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Categorical(logits=-((y[:, None] - loc) ** 2) / 2))


@pytest.mark.usefixtures("few_draws")
def test_labels_of_a_wrapped_guide():
    """The ELBO is the old one draw by draw; were the labels forgotten, it would fall by hundreds of nats."""
    q, p = wrap_guide(by_hand, Y), SYMMETRY.permutation({"k": [1, 2, 0]})
    assert isinstance(q, Wrapped)
    losses = []
    for labels in (None, {"z": "k"}, {"z": None}):
        new = by_hand if labels is None else q.with_labels(labels).permute(p).to_guide()
        pyro.set_rng_seed(3)
        losses.append(Trace_ELBO(num_particles=3).loss(plain, new, Y))
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert losses[2] > losses[0] + 50
    labeled = q.with_labels({"z": "k"})
    again = read_guide(labeled.permute(p).to_guide()).permute(p.inverse())
    noise = q.noise(4)
    assert all(torch.equal(v, again.push(noise)[k]) for k, v in q.push(noise).items())
    labeled.marginal("loc")  # its draws, made once, serve the relabeled guide, too
    found = align(labeled, labeled.permute(p), SYMMETRY)
    assert found.permutation == p.inverse()
    draws = displacement(labeled, found.posterior).posterior(0.5).drawn(0)
    assert draws["z"].dtype == torch.long


def test_enumerated_sites_cannot_be_wrapped_and_moved():
    q = wrap_guide(fitted(), Y).with_labels({"z": "k"})
    with pytest.raises(GuideError, match=r"'z' is enumerated.*read_guide\(guide, labels="):
        q.permute(SYMMETRY.permutation({"k": [1, 2, 0]}))


def test_labels_among_draws():
    g = torch.Generator().manual_seed(0)
    draws = {"loc": torch.randn(5, 3, generator=g), "z": torch.randint(0, 3, (5, 6), generator=g)}
    symmetry = Symmetry.from_axes({"loc": ("k",)}, shapes={"loc": (3,)})
    p = symmetry.permutation({"k": [1, 2, 0]})
    with pytest.raises(GuideError, match="site 'z' is discrete"):
        permute_guide(draws, p)
    new = read_guide(permute_guide(read_guide(draws, labels={"z": "k"}), p)).draws
    assert torch.equal(new["loc"].gather(-1, new["z"]), draws["loc"].gather(-1, draws["z"]))
    counters = [{"w": torch.randn(3), "norm.num_batches_tracked": torch.tensor(i)} for i in range(3)]
    symmetry = Symmetry.from_axes({"w": ("k",)}, shapes={"w": (3,)})
    moved = read_guide(counters).permute(symmetry.permutation({"k": [1, 2, 0]}))
    assert moved.draws["norm.num_batches_tracked"].tolist() == [0, 1, 2]


# -- other discrete sites ----------------------------------------------------------------------------------------------


@config_enumerate
def others():
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("units", 2):
        used = pyro.sample("used", dist.Bernoulli(0.3))
    with pyro.plate("data", 4):
        side = pyro.sample("side", dist.Bernoulli(0.5))
        which = pyro.sample("which", dist.OneHotCategorical(torch.ones(2)))
        mean = (loc * which).sum(-1) + loc[side.long()]
        pyro.sample("y", dist.Normal(mean, 1.0), obs=torch.arange(4.0))
    pyro.factor("share", (used * loc).sum(-1) if used.dim() == 1 else (used * loc[:, None]).sum())


def test_units_sides_and_one_hot_vectors():
    """Indicators of units move with their axis; two-valued labels swap; one-hot labels are indexed."""
    guide = listed(others, ["loc"], ["used", "side", "which"], 0)
    symmetry = Symmetry.from_axes({"loc": ("k",), "used": ("k",)}, shapes={"loc": (2,), "used": (2,)})
    p = symmetry.permutation({"k": [1, 0]})
    q = read_guide(guide, labels={"side": "k", "which": "k"})
    noise = q.noise(6)
    values, log_prob = q.push_with_log_prob(noise)
    moved, moved_log_prob = q.permute(p).push_with_log_prob(q.permute_noise(p, noise))
    assert torch.equal(moved["used"], values["used"].flip(-1))
    assert torch.equal(moved["side"], 1 - values["side"])
    assert torch.equal(moved["which"], values["which"].flip(-1))
    torch.testing.assert_close(moved_log_prob, log_prob)
    assert values["which"].shape == (6, 4, 2)
    old, new = guide[1], q.permute(p).to_guide()[1]
    torch.testing.assert_close(new.side_probs, 1 - old.side_probs)
    assert torch.equal(new.used_probs.detach(), old.used_probs.detach().flip(-1))
    torch.testing.assert_close(new.which_probs.detach(), old.which_probs.detach().flip(-1))
