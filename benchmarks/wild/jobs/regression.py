"""Regressions, hierarchies and Bayesian networks with automatic guides."""

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    init_to_sample,
)
from pyro.nn import PyroModule, PyroSample
from torch import nn

from benchmarks.wild.jobs import Job, job


@job("Pyro tutorial, Bayesian regression")
def bayesian_regression():
    class BayesianRegression(PyroModule):
        def __init__(self, features):
            super().__init__()
            self.linear = PyroModule[nn.Linear](features, 1)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, features]).to_event(2))
            self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

        def forward(self, x, y=None):
            sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
            mean = self.linear(x).squeeze(-1)
            with pyro.plate("data", x.shape[0]):
                pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
            return mean

    torch.manual_seed(0)
    model = BayesianRegression(3)
    return Job(
        model, lambda: AutoDiagonalNormal(model, init_loc_fn=init_to_sample), (torch.randn(12, 3), torch.randn(12))
    )


@job("Pyro, examples/eight_schools, AutoMultivariateNormal")
def eight_schools():
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model(sigma, y):
        eta = pyro.sample("eta", dist.Normal(torch.zeros(8), torch.ones(8)).to_event(1))
        mu, tau = pyro.sample("mu", dist.Normal(0.0, 10.0)), pyro.sample("tau", dist.HalfCauchy(scale=25.0))
        pyro.sample("obs", dist.Normal(mu + tau * eta, sigma).to_event(1), obs=y)

    return Job(model, lambda: AutoMultivariateNormal(model, init_loc_fn=init_to_sample), (sigma, y))


@job("Pyro, examples/baseball.py, partially pooled with logits")
def baseball():
    def model(at_bats, hits):
        loc, scale = pyro.sample("loc", dist.Normal(-1.0, 1.0)), pyro.sample("scale", dist.HalfCauchy(1.0))
        with pyro.plate("num_players", len(at_bats)):
            alpha = pyro.sample("alpha", dist.Normal(loc, scale))
            pyro.sample("obs", dist.Binomial(at_bats, logits=alpha), obs=hits)

    data = torch.full((6,), 45.0), torch.tensor([18.0, 17.0, 16.0, 15.0, 14.0, 7.0])
    return Job(model, lambda: AutoNormal(model, init_loc_fn=init_to_sample), data)


def lift(module: PyroModule, scale=1.0):
    """Every parameter of a ``PyroModule`` becomes a latent site."""
    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            setattr(part, name, PyroSample(dist.Normal(0.0, scale).expand(value.shape).to_event(value.dim())))
    return module


@job("TyXe: VariationalBNN with a homoskedastic Gaussian likelihood")
def tyxe():
    class Bayesian(PyroModule):
        def __init__(self):
            super().__init__()
            net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 1))
            pyro.nn.module.to_pyro_module_(net)
            self.net = lift(net)

        def forward(self, x, obs=None):
            prediction = self.net(x)
            with pyro.plate("data", size=len(x), subsample_size=len(x)):
                return pyro.sample("likelihood.data", dist.Normal(prediction, 0.1).to_event(1), obs=obs)

    torch.manual_seed(0)
    model = Bayesian()
    guide = lambda: AutoNormal(model, init_loc_fn=init_to_sample, init_scale=1e-2)  # noqa: E731
    return Job(model, guide, (torch.randn(16, 2), torch.randn(16, 1)), elbo=TraceMeanField_ELBO)


@job("A small Bayesian CNN classifier, subsampled data")
def bayesian_cnn():
    class CNN(PyroModule):
        def __init__(self):
            super().__init__()
            self.conv = PyroModule[nn.Conv2d](1, 4, 3)
            self.fc = PyroModule[nn.Linear](4 * 9, 3)
            lift(self, 0.3)

        def forward(self, x, y=None):
            hidden = torch.relu(self.conv(x))
            logits = self.fc(nn.functional.max_pool2d(hidden, 2).flatten(1))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    torch.manual_seed(0)
    model = CNN()
    data = torch.randn(10, 1, 8, 8), torch.randint(0, 3, (10,))
    return Job(model, lambda: AutoNormal(model, init_loc_fn=init_to_sample), data)


@job("Horseshoe regression (Carvalho, Polson and Scott, 2010), AutoLowRankMultivariateNormal")
def horseshoe():
    def model(x, y):
        tau = pyro.sample("tau", dist.HalfCauchy(0.1))
        lam = pyro.sample("lambda", dist.HalfCauchy(torch.ones(x.shape[1])).to_event(1))
        beta = pyro.sample("beta", dist.Normal(0.0, tau * lam).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)

    torch.manual_seed(0)
    guide = lambda: AutoLowRankMultivariateNormal(model, init_loc_fn=init_to_sample)  # noqa: E731
    return Job(model, guide, (torch.randn(12, 5), torch.randn(12)))


@job("Radon: varying intercepts and slopes (Gelman and Hill)")
def radon():
    def model(county, floor, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        sd = pyro.sample("sd", dist.HalfNormal(1.0).expand([2]).to_event(1))
        with pyro.plate("counties", 5):
            a, b = pyro.sample("a", dist.Normal(mu[0], sd[0])), pyro.sample("b", dist.Normal(mu[1], sd[1]))
        sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
        with pyro.plate("homes", len(y)):
            pyro.sample("y", dist.Normal(a[county] + b[county] * floor, sigma), obs=y)

    torch.manual_seed(0)
    data = torch.randint(0, 5, (20,)), torch.randint(0, 2, (20,)).float(), torch.randn(20)
    return Job(model, lambda: AutoNormal(model, init_loc_fn=init_to_sample), data)


@job("Pyro contrib.gp tutorial: variational sparse Gaussian process")
def sparse_gp():
    torch.manual_seed(0)
    x, y = torch.linspace(0.0, 1.0, 12), torch.randn(12)

    def pair():
        kernel, likelihood = gp.kernels.RBF(input_dim=1), gp.likelihoods.Gaussian()
        inducing = torch.linspace(0.1, 0.9, 4)
        process = gp.models.VariationalSparseGP(x, y, kernel, Xu=inducing, likelihood=likelihood, whiten=True)
        return process.model, process.guide

    return Job(pair=pair, elbo=Trace_ELBO, parameters=True, wrapped=True)


@job("Bayesian network over a fixed set of features, heteroskedastic, scalar noise sampled")
def mlp_without_plate():
    def model(x, y):
        w1 = pyro.sample("w1", dist.Normal(0.0, 1.0).expand([x.shape[1], 6]).to_event(2))
        w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([6, 2]).to_event(2))
        out = torch.tanh(x @ w1) @ w2
        pyro.sample("y", dist.Normal(out[:, 0], out[:, 1].exp()).to_event(1), obs=y)

    torch.manual_seed(0)
    return Job(model, lambda: AutoNormal(model, init_loc_fn=init_to_sample), (torch.randn(9, 3), torch.randn(9)))
