"""Mixtures of every kind."""

import pyro
import pyro.distributions as dist
import torch

from benchmarks.wild.catalog import modules, program
from benchmarks.wild.programs.common import S, bits, category, counts, normal, plate, simplex

K = 3
WL = {"w": ("k",), "loc": ("k",)}


@program("count mixture, component by enumeration", {"w": ("k",), "rate": ("k",)})
def poisson_mixture():
    def model(y):
        w = simplex("w", K)
        with plate("components", K):
            rate = S("rate", dist.Gamma(2.0, 1.0))
        with plate("data", len(y)):
            S("y", dist.Poisson(rate[category("z", w)]), obs=y)

    return model, (counts(6),)


@program("latent class analysis (Lazarsfeld)", {"w": ("k",), "p": ("k", None)})
def latent_classes():
    def model(y):
        w, p = simplex("w", K), S("p", dist.Beta(1.0, 1.0).expand([K, 4]).to_event(2))
        with plate("people", len(y)):
            S("y", dist.Bernoulli(p[category("z", w)]).to_event(1), obs=y)

    return model, (bits(6, 4),)


@program("multinomial mixture for documents", {"w": ("k",), "p": ("k", None)})
def multinomial_mixture():
    def model(y):
        w, p = simplex("w", K), simplex("p", 5, K)
        with plate("documents", len(y)):
            S("y", dist.Multinomial(probs=p[category("z", w)], validate_args=False), obs=y)

    return model, (counts(6, 5),)


@program("multinomial mixture, marginal by MixtureSameFamily", {"w": ("k",), "p": ("k", None)})
def multinomial_mixture_marginal():
    def model(y):
        w, p = simplex("w", K), simplex("p", 5, K)
        with plate("documents", len(y)):
            components = dist.Multinomial(total_count=9, probs=p, validate_args=False)
            S("y", dist.MixtureSameFamily(dist.Categorical(w), components, validate_args=False), obs=y)

    return model, (counts(6, 5),)


@program(
    "full covariances: LKJ factors and scales for each component",
    {"w": ("k",), "loc": ("k", None), "sd": ("k", None), "corr": ("k", None, None)},
)
def full_covariance_mixture():
    def model(x):
        w, loc = simplex("w", K), normal("loc", K, 2)
        with plate("components", K):
            corr = S("corr", dist.LKJCholesky(2, 1.0))
            sd = S("sd", dist.HalfNormal(1.0).expand([2]).to_event(1))
        with plate("data", len(x)):
            components = dist.MultivariateNormal(loc, scale_tril=sd.unsqueeze(-1) * corr)
            S("x", dist.MixtureSameFamily(dist.Categorical(w), components), obs=x)

    return model, (torch.randn(6, 2),)


@program("components with a hierarchical spread, enumerated", WL | {"sd": ("k",)})
def hierarchical_gaussian_mixture():
    def model(x):
        mu, tau = normal("mu"), S("tau", dist.HalfCauchy(1.0))
        with plate("components", K):
            loc, sd = S("loc", dist.Normal(mu, tau)), S("sd", dist.LogNormal(0.0, 1.0))
        w = simplex("w", K)
        with plate("data", len(x)):
            z = category("z", w)
            S("x", dist.Normal(loc[z], sd[z]), obs=x)

    return model, (torch.randn(6),)


@program("densities stacked component by component", WL)
def mixture_stacked_by_loop():
    def model(x):
        w, loc = simplex("w", K), normal("loc", K)
        parts = [w[k].log() + dist.Normal(loc[k], 1.0).log_prob(x) for k in range(K)]
        pyro.factor("x", torch.stack(parts, -1).logsumexp(-1).sum())

    return model, (torch.randn(6),)


@program("log-sum-exp accumulated by logaddexp", WL)
def mixture_accumulated():
    def model(x):
        w, loc = simplex("w", K), normal("loc", K)
        total = torch.full_like(x, -1e30)
        for k in range(K):
            total = torch.logaddexp(total, w[k].log() + dist.Normal(loc[k], 1.0).log_prob(x))
        pyro.factor("x", total.sum())

    return model, (torch.randn(6),)


def _weights_follow(values, order):
    moved = modules("loc_{}")(values, order)
    return {**moved, "w": values["w"][list(order)]}


@program("a sequential plate of components, each a site", {}, moves=[(K, _weights_follow)])
def mixture_of_named_components():
    def model(x):
        w = simplex("w", K)
        loc = torch.stack([S(f"loc_{k}", dist.Normal(0.0, 5.0)) for k in plate("components", K)])
        with plate("data", len(x)):
            S("x", dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(loc, 1.0)), obs=x)

    return model, (torch.randn(6),)


def _mirror(values, order):
    if list(order) == [0, 1]:
        return values
    return {"p": 1 - values["p"], "mu1": values["mu2"], "mu2": values["mu1"]}


@program("old faithful: two named components and one probability", {}, moves=[(2, _mirror)])
def two_named_components():
    def model(x):
        p, mu1, mu2 = S("p", dist.Beta(2.0, 2.0)), normal("mu1"), normal("mu2")
        with plate("data", len(x)):
            components = dist.Normal(torch.stack([mu1, mu2]), 1.0)
            S("x", dist.MixtureSameFamily(dist.Categorical(torch.stack([p, 1 - p])), components), obs=x)

    return model, (torch.randn(6),)
