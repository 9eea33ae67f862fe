"""Adapters to other packages, each against the real package; without it, that test is skipped."""

import copy
import functools
import operator
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import DataLoader, TensorDataset

from pyro_align.errors import GuideError
from pyro_align.guides import MeanFieldNormal, permute_guide, read_bayesian_module, read_guide
from pyro_align.paths.geodesic import displacement
from pyro_align.symmetry.group import Symmetry

pytestmark = pytest.mark.filterwarnings("ignore")  # what these packages warn about is theirs


def installed(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return pytest.importorskip(name)
        except (AttributeError, TypeError, RuntimeError, ImportError) as error:  # installed, but broken with this torch
            pytest.skip(f"{name} does not import here: {error}")


def check_family(q, p, values_of):
    """Relabeled posteriors, their written-back objects and paths, by what the object itself holds."""
    assert isinstance(q, MeanFieldNormal)
    moved = q.permute(p)
    back = values_of(moved.to_guide())
    for site, (loc, scale) in values_of(q.to_guide()).items():
        torch.testing.assert_close(q.marginal(site)[0], loc)
        torch.testing.assert_close(q.marginal(site)[1], scale)
        torch.testing.assert_close(back[site][0], p.apply_site(site, loc) if site in p.symmetry.sites else loc)
        torch.testing.assert_close(back[site][1], p.apply_site(site, scale) if site in p.symmetry.sites else scale)
    middle = values_of(displacement(q, moved)(0.5))
    for site, (loc, scale) in middle.items():
        torch.testing.assert_close(loc, (q.marginal(site)[0] + moved.marginal(site)[0]) / 2)
        torch.testing.assert_close(scale, (q.marginal(site)[1] + moved.marginal(site)[1]) / 2)


MLP = Symmetry.from_axes(
    {"0.weight": ("h", None), "0.bias": ("h",), "2.weight": (None, "h")},
    shapes={"0.weight": (5, 3), "0.bias": (5,), "2.weight": (2, 5)},
)
P = MLP.permutation({"h": [3, 0, 4, 1, 2]})


def softplus_pairs(first, second):
    def values_of(module):
        own = dict(module.named_parameters())
        return {
            f"{i}.{kind}": (
                own[f"{i}.{first.format(kind)}"].detach(),
                torch.log1p(own[f"{i}.{second.format(kind)}"].detach().exp()),
            )
            for i in (0, 2)
            for kind in ("weight", "bias")
        }

    return values_of


def same_predictions(module, moved, x, seed=3):
    """Means over many forward passes: the relabeled network is the same function in distribution."""
    outs = []
    for net in (module, moved):
        torch.manual_seed(seed)
        with torch.no_grad():
            outs.append(torch.stack([_output(net(x)) for _ in range(400)]))
    error = (outs[0].var(0) / 400 + outs[1].var(0) / 400).sqrt()
    assert bool(((outs[0].mean(0) - outs[1].mean(0)).abs() < 6 * error).all())


def _output(out):
    return out[0] if isinstance(out, tuple) else out


def test_bayesian_torch():
    layers = installed("bayesian_torch.layers")
    first = layers.LinearReparameterization(3, 5)
    second = layers.LinearReparameterization(5, 2)

    class Net(torch.nn.Sequential):
        def forward(self, x):
            return self[2](torch.relu(self[0](x)[0]))[0]

    net = Net(first, torch.nn.Identity(), second)
    check_family(read_bayesian_module(net), P, softplus_pairs("mu_{}", "rho_{}"))
    moved = read_bayesian_module(net).permute(P).to_guide()
    assert type(moved) is Net
    same_predictions(net, moved, torch.randn(4, 3))


def test_blitz():
    modules = installed("blitz.modules")
    net = torch.nn.Sequential(
        modules.BayesianLinear(3, 5, posterior_rho_init=-2.0),
        torch.nn.ReLU(),
        modules.BayesianLinear(5, 2, posterior_rho_init=-2.0),
    )
    before = copy.deepcopy(net.state_dict())
    q = read_bayesian_module(net)
    assert sorted(q.sites) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    check_family(q, P, softplus_pairs("{}_mu", "{}_rho"))
    moved = q.permute(P).to_guide()
    sampler = moved[0].weight_sampler  # what BLiTZ draws from
    torch.testing.assert_close(sampler.mu.detach(), P.apply_site("0.weight", net[0].weight_mu.detach()))
    same_predictions(net, moved, torch.randn(4, 3))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items() if "eps" not in k)
    broken = copy.deepcopy(net)
    torch.nn.init.zeros_(broken[0].weight_mu)
    with pytest.raises(GuideError, match="differ from its sampler's"):
        read_bayesian_module(broken)


def test_torch_uncertainty():
    layers = installed("torch_uncertainty.layers.bayesian")

    def build():
        return torch.nn.Sequential(
            layers.BayesLinear(3, 5, sigma_init=-2.0), torch.nn.ReLU(), layers.BayesLinear(5, 2, sigma_init=-2.0)
        ).double()

    checkpoint, net = build().state_dict(), build()
    net.load_state_dict(checkpoint)
    q = read_bayesian_module(net)
    assert torch.equal(q.marginal("0.weight")[0], checkpoint["0.weight_mu"])
    check_family(q, P, softplus_pairs("{}_mu", "{}_sigma"))
    moved = q.permute(P).to_guide()
    assert moved[0].weight_sampler.mu is moved[0].weight_mu  # what it draws from
    same_predictions(net, moved, torch.randn(4, 3))
    net.load_state_dict(moved.state_dict())
    assert torch.equal(net[0].weight_sigma, moved[0].weight_sigma)


def test_posteriors():
    installed("posteriors")
    installed("torchopt")
    import torchopt
    from posteriors.vi import diag

    params = {k: torch.randn(shape) for k, shape in MLP.shapes.items()}
    state = diag.init(params, torchopt.adam(), init_log_sds=-1.0)
    q = read_guide(state)

    def values_of(s):
        assert type(s) is type(state)
        return {k: (s.params[k], s.log_sd_diag[k].exp()) for k in MLP.sites}

    check_family(q, P, values_of)
    torch.testing.assert_close(q.marginal("0.bias")[0], params["0.bias"])


TYXE = Symmetry.from_axes(
    {f"net.{k}": terms for k, terms in MLP.sites.items()}, shapes={f"net.{k}": v for k, v in MLP.shapes.items()}
)


def tyxe_network(tyxe, guide_builder):
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    prior = tyxe.priors.IIDPrior(dist.Normal(0.0, 1.0))
    likelihood = tyxe.likelihoods.HomoskedasticGaussian(8, scale=0.5)
    bnn = tyxe.VariationalBNN(net, prior, likelihood, guide_builder)
    data = DataLoader(TensorDataset(torch.randn(8, 3), torch.randn(8, 2)), batch_size=8)
    bnn.fit(data, pyro.optim.Adam({"lr": 0.1}), 3)
    return bnn


def test_tyxe_with_an_autoguide():
    bnn = tyxe_network(installed("tyxe"), AutoNormal)
    p = TYXE.permutation(P.indices)
    moved = permute_guide(bnn.net_guide, p)
    assert type(moved) is AutoNormal
    old, new = bnn.net_guide.median(), moved.median()
    assert all(torch.equal(new[k], p.apply_site(k, old[k])) for k in TYXE.sites)


@pytest.mark.parametrize(
    "options", [{}, {"train_scale": False}, {"train_loc": False}, {"max_guide_scale": 0.5}], ids=str
)
def test_tyxe_with_its_own_guide(options, monkeypatch):
    """Pyro 1.9 has dropped a function that TyXe calls; with that put back its guide runs, and keeps its type."""
    tyxe = installed("tyxe")
    monkeypatch.setattr(pyro.util, "deep_getattr", lambda o, name: operator.attrgetter(name)(o), raising=False)
    bnn = tyxe_network(tyxe, functools.partial(tyxe.guides.AutoNormal, **options))
    guide, p = bnn.net_guide, TYXE.permutation(P.indices)

    def values_of(g):
        assert type(g) is tyxe.guides.AutoNormal
        return {k: (g.get_loc(k).detach(), g.get_scale(k).detach()) for k in g.prototype_trace.nodes if "net" in k}

    check_family(read_guide(guide), p, values_of)
    moved = permute_guide(guide, p)
    nodes = pyro.poutine.trace(moved).get_trace().nodes
    for site, (loc, scale) in values_of(guide).items():
        old = dist.Normal(loc, scale).to_event(loc.dim())
        prior = dist.Normal(torch.zeros_like(loc), 1.0).to_event(loc.dim())
        there = torch.distributions.kl_divergence(nodes[site]["fn"], prior)  # in closed form, as TyXe's ELBO needs it
        torch.testing.assert_close(there, torch.distributions.kl_divergence(old, prior))
    x = torch.randn(4, 3)
    locs = [{k: loc for k, (loc, _) in values_of(g).items()} for g in (guide, moved)]
    before, after = (pyro.poutine.condition(bnn.net, data=values)(x).detach() for values in locs)
    torch.testing.assert_close(after, before)


def test_modules_without_bayesian_layers_are_refused():
    with pytest.raises(GuideError, match="holds no Bayesian layers"):
        read_bayesian_module(torch.nn.Linear(2, 2))
