"""Plain networks and state dicts in the verbs for guides, and learned parameters beside a guide."""

import copy
from collections import OrderedDict

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_sample
from pyro.nn import PyroModule, PyroSample
from torch import nn

import pyro_align
from pyro_align.errors import GuideError
from pyro_align.guides import GuideAndModel, Point, Wrapped, permute_guide, read_guide
from pyro_align.paths import evaluate_networks, reset_batch_norm

X = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(20, 2)
Y = X.prod(-1)


def network(seed):
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1))
    layers(torch.randn(50, 2, dtype=torch.float64))  # running statistics of its own
    return layers.eval()


def loss(net):
    return (net(X).squeeze(-1) - Y).square().mean()


@pytest.fixture
def symmetry():
    return pyro_align.find_symmetry(network(0), X)


def test_two_networks_in_one_verb(symmetry):
    a, p = network(0), symmetry.random(1)
    b = p.apply(a)
    torch.testing.assert_close(b(X), a(X))
    state = copy.deepcopy(b.state_dict())
    alignment = pyro_align.align(a, b, symmetry)
    assert alignment.permutation == p.inverse()
    assert alignment.distance == 0.0 < alignment.distance_before
    assert type(alignment.guide) is nn.Sequential
    assert all(torch.equal(v, a.state_dict()[k]) for k, v in alignment.guide.state_dict().items())
    assert all(torch.equal(v, state[k]) for k, v in b.state_dict().items())
    merged = alignment.path(0.5)
    torch.testing.assert_close(merged(X), a(X))
    frame = evaluate_networks(alignment.path, loss, taus=3)
    assert frame["excess"].abs().max() < 1e-12
    before = evaluate_networks(pyro_align.displacement(a, b), loss, taus=3)
    assert before["excess"].max() > 1e-3


def test_networks_of_two_fits_come_nearer(symmetry):
    a, b = network(0), network(1)
    alignment = pyro_align.align(a, b, symmetry)
    assert alignment.distance < alignment.distance_before
    torch.testing.assert_close(alignment.guide(X), b(X))
    weights = {k: v.detach() for k, v in alignment.path(0.25).state_dict().items()}
    expected = 0.75 * a[0].weight + 0.25 * alignment.guide[0].weight
    torch.testing.assert_close(weights["0.weight"], expected.detach())
    assert int(weights["1.num_batches_tracked"]) == 1


def test_batch_norm_is_reset_on_data_in_a_copy(symmetry):
    merged = pyro_align.align(network(0), network(1), symmetry).path(0.5)
    kept = copy.deepcopy(merged.state_dict())
    reset = reset_batch_norm(merged, [X[:10], X[10:]])
    hidden = merged[0](X)
    torch.testing.assert_close(reset[1].running_mean, hidden.mean(0).detach())
    assert all(torch.equal(v, kept[k]) for k, v in merged.state_dict().items())
    assert not reset[1].training
    assert reset[1].momentum == merged[1].momentum
    alignment = pyro_align.align(network(0), network(1), symmetry)
    plain, renewed = (evaluate_networks(alignment.path, loss, taus=3, batches=b) for b in (None, [X]))
    assert plain["loss"][0] == renewed["loss"][0]
    assert plain["loss"][1] != renewed["loss"][1]


@pytest.mark.parametrize("kind", [OrderedDict, dict])
def test_state_dicts(symmetry, kind):
    a, p = network(0), symmetry.random(2)
    here, there = kind(a.state_dict()), kind(p.apply(a.state_dict()))
    assert int(there["1.num_batches_tracked"]) == 1
    alignment = pyro_align.align(here, there, symmetry)
    assert alignment.permutation == p.inverse()
    assert all(torch.equal(v, here[k]) for k, v in alignment.guide.items())
    a.load_state_dict(alignment.guide)
    assert isinstance(read_guide(a), Point)


class Loose(nn.Module):
    """A network whose signature takes anything, or nothing, as those of language models do."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, *inputs, x=None):
        return self.layers(inputs[0] if inputs else X if x is None else x)


class Silent(Loose):
    def forward(self, x=None):
        if x is None:
            raise ValueError("give x")
        return self.layers(x)


@pytest.mark.parametrize("kind", [Loose, Silent])
def test_networks_that_could_be_called_without_arguments(kind):
    a, b = kind(0), kind(1)
    symmetry = pyro_align.find_symmetry(a, X)
    kept = copy.deepcopy(b.state_dict())
    moved = permute_guide(b, p := symmetry.random(1))
    assert isinstance(read_guide(b, X), Point)
    torch.testing.assert_close(moved.eval()(X), copy.deepcopy(b).eval()(X))
    assert pyro_align.align(b, moved, symmetry).permutation == p.inverse()
    assert isinstance(pyro_align.align(a, b, symmetry).path(0.5), kind)
    assert all(torch.equal(v, kept[k]) for k, v in b.state_dict().items())


class LastLayer(PyroModule):
    """A network whose last layer alone has a prior."""

    def __init__(self):
        super().__init__()
        self.inner = PyroModule[nn.Linear](2, 5)
        self.out = PyroSample(dist.Normal(torch.zeros(5, dtype=torch.float64), 1.0).to_event(1))

    def forward(self, x, y=None):
        mean = torch.tanh(self.inner(x)) @ self.out
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, 0.1), obs=y)


def last_layer(seed):
    pyro.set_rng_seed(seed)
    model = LastLayer()
    with pyro.get_param_store().scope():
        guide = AutoNormal(model, init_loc_fn=init_to_sample, init_scale=0.05)
        guide(X, Y)
    return model, guide


def test_learned_parameters_are_aligned_beside_the_guide():
    model, guide = last_layer(0)
    symmetry = pyro_align.find_symmetry(model, X, Y, parameters=True)
    assert {site for places in symmetry.carriers.values() for site, _ in places} == {
        "inner.weight",
        "inner.bias",
        "out",
    }
    p = symmetry.random(1)
    moved = permute_guide(guide, p, parameters=model)
    assert isinstance(moved, GuideAndModel)
    (atom,) = symmetry.atoms
    assert torch.equal(moved.model.inner.weight, model.inner.weight[p.indices[atom]])
    assert torch.equal(moved.guide.median()["out"], guide.median()["out"][p.indices[atom]])
    back = pyro_align.align(guide, moved.guide, symmetry, parameters=(model, moved.model))
    assert back.permutation == p.inverse()
    assert back.distance < 1e-12
    with pytest.raises(GuideError, match="the symmetry relabels sites that the guide does not have"):
        pyro_align.align(guide, moved.guide, symmetry)
    with pytest.raises(GuideError, match="parameters: expected the model"):
        pyro_align.align(guide, moved.guide, symmetry, parameters=(None, None))


def test_a_partial_network_is_evaluated_as_one():
    """The same network with its units in another order: other values half-way before alignment, the same after it."""
    model, guide = last_layer(0)
    symmetry = pyro_align.find_symmetry(model, X, Y, parameters=True)
    moved = permute_guide(guide, symmetry.random(3), parameters=model)
    alignment = pyro_align.align(guide, moved.guide, symmetry, parameters=(model, moved.model))
    options = {"taus": 3, "num_samples": 16}
    aligned = pyro_align.evaluate_barrier(model, alignment.path, X, Y, **options)
    assert abs(aligned["expected_nll"].excess).max() < 1e-6
    before = pyro_align.displacement(GuideAndModel(guide, model), moved)
    barrier = pyro_align.evaluate_barrier(model, before, X, Y, **options)["expected_nll"]
    assert abs(barrier.excess[1]) > 1.0
    torch.testing.assert_close(barrier.value[0], barrier.value[-1], rtol=0.3, atol=0.0)
    torch.testing.assert_close(aligned["expected_nll"].value[0], barrier.value[0])


class Experts(PyroModule):
    """A learned layer, and weights of experts on a simplex: relabeled, a Gaussian guide is known by its draws."""

    def __init__(self):
        super().__init__()
        self.inner = PyroModule[nn.Linear](2, 4)
        self.out = PyroSample(dist.Normal(0.0, 1.0).expand([3, 4]).to_event(2))
        self.share = PyroSample(dist.Dirichlet(torch.ones(3)))

    def forward(self, x, y=None):
        mean = torch.tanh(self.inner(x)) @ self.out.mT
        share = dist.Categorical(self.share)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.MixtureSameFamily(share, dist.Normal(mean, 0.5)), obs=y)


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("family", [AutoNormal, AutoMultivariateNormal])
def test_experts_whose_shares_leave_the_family(family, tmp_path):
    fits = []
    for seed in range(2):
        pyro.set_rng_seed(seed)
        model = Experts()
        with pyro.get_param_store().scope():
            guide = family(model, init_loc_fn=init_to_sample, init_scale=0.05)
            guide(X, Y)
        fits.append((guide, model))
    (a, model), (b, _) = fits
    symmetry = pyro_align.find_symmetry(model, X, Y, parameters=True)
    assert sorted(atom.size for atom in symmetry.atoms.values()) == [3, 4]
    p = symmetry.random(1)
    moved = permute_guide(GuideAndModel(*fits[0]), p)
    back = pyro_align.align(a, moved.guide, symmetry, parameters=(model, moved.model))
    assert back.permutation == p.inverse()
    alignment = pyro_align.align(a, b, symmetry, parameters=(model, fits[1][1]))
    barrier = pyro_align.evaluate_barrier(model, alignment.path, X, Y, taus=3, num_samples=4)
    assert not barrier.summary().isna().all(axis=None)
    pyro_align.save(tmp_path / "a", alignment)
    loaded = pyro_align.load(tmp_path / "a", like=GuideAndModel(*fits[0]))
    noise = alignment.posterior.noise(3)
    assert all(torch.equal(v, loaded.posterior.push(noise)[k]) for k, v in alignment.posterior.push(noise).items())


class Autoencoder(nn.Module):
    """Model and guide as methods of one module, as in Pyro's tutorials; the decoder is learned."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Linear(2, 4)
        self.decoder = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw)).to_event(1))


def test_learned_decoders_and_amortized_guides():
    net = Autoencoder(0)
    symmetry = pyro_align.find_symmetry(net.model, X, parameters=True)
    assert sorted(atom.size for atom in symmetry.atoms.values()) == [2, 5]
    guide = pyro_align.wrap_guide(net.guide, X)
    moved = permute_guide(guide, symmetry.random(1), parameters=net.model)
    kept = copy.deepcopy(net.state_dict())
    alignment = pyro_align.align(guide, moved.guide, symmetry, parameters=(net.model, moved.model))
    assert alignment.distance < 1e-9 < alignment.distance_before
    barrier = pyro_align.evaluate_barrier(net.model, alignment.path, X, taus=3, num_samples=8)["expected_nll"]
    assert abs(barrier.excess).max() < 1e-6
    before = pyro_align.displacement(GuideAndModel(guide, net.model), moved)
    other = pyro_align.evaluate_barrier(net.model, before, X, taus=3, num_samples=8)["expected_nll"]
    torch.testing.assert_close(other.value[0], barrier.value[0])
    torch.testing.assert_close(other.value[-1], barrier.value[0])
    assert abs(other.value[1] - other.value[0]) > 1e-3
    assert all(torch.equal(v, kept[k]) for k, v in net.state_dict().items())


class Normed(nn.Module):
    """Has statistics that a run in training mode would move."""

    def __init__(self, samples):
        super().__init__()
        self.samples, self.norm = samples, nn.BatchNorm1d(2)

    def forward(self, x):
        out = self.norm(x).sum(0)
        return pyro.sample("w", dist.Normal(out, 1.0).to_event(1)) if self.samples else out


@pytest.mark.parametrize("samples", [False, True])
def test_a_module_is_run_once_to_be_read_and_stays_as_it_is(samples):
    module, runs = Normed(samples), []
    module.register_forward_hook(lambda *_: runs.append(1))
    assert isinstance(read_guide(module, X), Wrapped if samples else Point)
    assert runs == [1]
    assert int(module.norm.num_batches_tracked) == 0
    assert torch.equal(module.norm.running_var, torch.ones(2))
