"""Hierarchies, survival, ecology, epidemics: many have no interchangeable parts, and must show none."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from benchmarks.wild.catalog import program
from benchmarks.wild.programs.common import S, bits, category, counts, normal, plate, positive, simplex

K, N = 3, 6


@program("rats: growth curves with correlated intercepts and slopes (Gelfand et al. 1990)", {})
def growth_curves():
    def model(x, y):
        mu, sd = normal("mu", 2), S("sd", dist.HalfNormal(1.0).expand([2]).to_event(1))
        corr = S("corr", dist.LKJCholesky(2, 2.0))
        with plate("rats", N, dim=-2):
            beta = S("beta", dist.MultivariateNormal(mu, scale_tril=sd[:, None] * corr))
            with plate("weeks", 4, dim=-1):
                S("y", dist.Normal(beta[..., 0] + beta[..., 1] * x, 0.5), obs=y)

    return model, (torch.arange(4), torch.randn(N, 4))


@program("crossed random effects", {})
def crossed_effects():
    def model(i, j, y):
        sa, sb = positive("sa"), positive("sb")
        with plate("as", 4):
            a = S("a", dist.Normal(0.0, sa))
        with plate("bs", 3):
            b = S("b", dist.Normal(0.0, sb))
        with plate("data", len(y)):
            S("y", dist.Normal(a[i] + b[j], 1.0), obs=y)

    return model, (torch.randint(0, 4, (8,)), torch.randint(0, 3, (8,)), torch.randn(8))


@program("growth mixture: classes of trajectories", {"w": ("k",), "beta": ("k", None), "sd": ("k",)})
def growth_mixture():
    def model(x, y):
        w, beta, sd = simplex("w", K), normal("beta", K, 2), positive("sd", K)
        with plate("people", len(y), dim=-2):
            z = category("z", w)
            with plate("waves", 4, dim=-1):
                S("y", dist.Normal(beta[z, 0] + beta[z, 1] * x, sd[z]), obs=y)

    return model, (torch.arange(4), torch.randn(N, 4))


@program("Weibull survival with censoring by mask", {})
def survival():
    def model(x, time, died):
        shape, beta = positive("shape"), normal("beta", 2)
        hazard = dist.Weibull(torch.exp(-(x @ beta) / shape), shape)
        with plate("patients", len(time)):
            with poutine.mask(mask=died.bool()):
                S("time", hazard, obs=time)
            pyro.factor("alive", torch.where(died.bool(), 0.0, -((time / hazard.scale) ** shape)))

    return model, (torch.randn(N, 2), torch.rand(N) + 0.1, bits(N))


@program("mixture cure model with latent hazards", {"w": ("k",), "rate": ("k",), "beta": ("k", None)})
def survival_mixture():
    def model(x, time):
        w, rate, beta = simplex("w", K), positive("rate", K), normal("beta", K, 2)
        with plate("patients", len(time)):
            hazards = dist.Exponential(rate * torch.exp(x @ beta.T))
            S("time", dist.MixtureSameFamily(dist.Categorical(w), hazards), obs=time)

    return model, (torch.randn(N, 2), torch.rand(N) + 0.1)


@program("occupancy: presence summed out over repeated visits", {})
def occupancy():
    def model(x, y):
        a, b, p = normal("a"), normal("b"), S("p", dist.Beta(1.0, 1.0))
        with plate("sites", len(y), dim=-2):
            z = S("z", dist.Bernoulli(logits=a + b * x[:, None]), infer={"enumerate": "parallel"})
            with plate("visits", 3, dim=-1):
                S("y", dist.Bernoulli(p * z), obs=y)

    return model, (torch.randn(N), bits(N, 3))


@program("abundance of several species with latent habitats (exchangeable)", {"h": (None, "k"), "a": ("k", None)})
def species_distribution():
    def model(y):
        h, a = normal("h", N, K), normal("a", K, 4)
        with plate("sites", N, dim=-2), plate("species", 4, dim=-1):
            S("y", dist.NegativeBinomial(2.0, logits=0.3 * h @ a), obs=y)

    return model, (counts(N, 4),)


@program("N-mixture: abundance summed out over a grid", {})
def n_mixture():
    def model(y):
        lam, p = positive("lam"), S("p", dist.Beta(2.0, 2.0))
        n = torch.arange(12).to(y.dtype)
        prior = dist.Poisson(lam, validate_args=False).log_prob(n)
        seen = dist.Binomial(n[:, None, None], p, validate_args=False).log_prob(y).sum(-1)
        seen = torch.where(n[:, None] >= y.amax(-1), seen, -torch.inf)
        pyro.factor("y", (prior[:, None] + seen).logsumexp(0).sum())

    return model, (counts(N, 3, high=4),)


@program("SIR epidemic, deterministic steps", {})
def epidemic():
    def model(y):
        beta, gamma = positive("beta"), positive("gamma")
        s, i = torch.tensor(0.95), torch.tensor(0.05)
        for t in range(4):
            new, cured = 0.3 * beta * s * i, 0.2 * gamma * i
            s, i = s - new, i + new - cured
            S(f"y_{t}", dist.Poisson(20 * new + 1e-3), obs=y[t])

    return model, (counts(4),)


@program("epidemic of patches with a contact matrix from latent mobility", {"u": (None, "k"), "v": (None, "k")})
def epidemic_of_patches():
    def model(y):
        u, v = positive("u", N, 2), positive("v", N, 2)
        i = torch.full((N,), 0.1)
        for t in range(3):
            i = torch.sigmoid(torch.logit(i) + 0.2 * torch.einsum("ik,jk,j->i", u, v, i))
            S(f"y_{t}", dist.Poisson(10 * i).to_event(1), obs=y[t])

    return model, (counts(3, N),)


@program("pharmacokinetics: a sum of exponentials", {"amount": ("k",), "rate": ("k",)})
def compartments():
    def model(time, y):
        amount, rate = positive("amount", K), positive("rate", K)
        with plate("times", len(y)):
            S("y", dist.LogNormal((amount * torch.exp(-rate * time[:, None])).sum(-1).log(), 0.2), obs=y)

    return model, (torch.rand(N), torch.rand(N) + 0.1)


@program("spectra: peaks of a height, a place and a width", {"h": ("k",), "c": ("k",), "s": ("k",)})
def spectral_peaks():
    def model(x, y):
        with plate("peaks", K):
            h, c, s = S("h", dist.Gamma(2.0, 1.0)), S("c", dist.Normal(0.0, 2.0)), S("s", dist.LogNormal(0.0, 0.3))
        S("y", dist.Normal((h * torch.exp(-0.5 * ((x[:, None] - c) / s) ** 2)).sum(-1), 0.1).to_event(1), obs=y)

    return model, (torch.randn(N), torch.randn(N))


@program("sources of sound: positions and strengths, received at microphones", {"place": ("k", None), "power": ("k",)})
def sources():
    def model(microphones, y):
        with plate("sources", K):
            place = S("place", dist.Normal(torch.zeros(2), 2.0).to_event(1))
            power = S("power", dist.LogNormal(0.0, 1.0))
        distance = torch.linalg.vector_norm(microphones.unsqueeze(1) - place, dim=-1)
        with plate("microphones", len(y)):
            S("y", dist.LogNormal((power / (1 + distance**2)).sum(-1).log(), 0.1), obs=y)

    return model, (torch.randn(N, 2), torch.rand(N) + 0.1)


@program(
    "linear-chain conditional field over latent labels' scores",
    {"emit": ("k", None), "trans": ("k", "k"), "out": (None, "k")},
)
def latent_conditional_field():
    def model(x, y):
        emit, trans, out = normal("emit", K, 2), normal("trans", K, K), normal("out", 2, K)
        score = x @ emit.T
        alpha = score[0]
        for t in range(1, len(x)):
            alpha = torch.logsumexp(alpha.unsqueeze(1) + trans, 0) + score[t]
        S("y", dist.Categorical(logits=(out.unsqueeze(1) + alpha).logsumexp(-1).mean(-1)), obs=y)

    return model, (torch.randn(4, 2), torch.tensor(1))


@program(
    "a hierarchical Dirichlet over shared components",
    {"beta": ("k",), "pi": (None, None, "k"), "loc": ("k",)},
)
def hierarchical_dirichlet():
    def model(x):
        beta, loc = simplex("beta", K), normal("loc", K)
        with plate("groups", 2, dim=-2):
            pi = S("pi", dist.Dirichlet(1.0 + 5 * beta))
            with plate("data", 4, dim=-1):
                S("x", dist.MixtureSameFamily(dist.Categorical(pi), dist.Normal(loc.expand(2, 1, K), 1.0)), obs=x)

    return model, (torch.randn(2, 4),)


@program("Wishart precisions of mixture components", {"w": ("k",), "loc": ("k", None), "prec": ("k", None, None)})
def wishart_mixture():
    def model(x):
        w, loc = simplex("w", K), normal("loc", K, 2)
        prec = S("prec", dist.Wishart(torch.tensor(4.0), torch.eye(2)).expand([K]).to_event(1))
        with plate("data", len(x)):
            components = dist.MultivariateNormal(loc, precision_matrix=prec)
            S("x", dist.MixtureSameFamily(dist.Categorical(w), components), obs=x)

    return model, (torch.randn(N, 2),)


@program("flat priors on components", {"w": ("k",), "loc": ("k",)})
def flat_priors():
    def model(x):
        w = simplex("w", K)
        loc = S("loc", dist.Uniform(-10.0, 10.0).expand([K]).to_event(1))
        S("x", dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(loc, 1.0)).expand([N]).to_event(1), obs=x)

    return model, (torch.randn(N),)


@program("entries observed where a mask says so", {"w": ("k", None), "z": (None, "k")})
def missing_entries():
    def model(x, seen):
        w, z = normal("w", K, 4), normal("z", N, K)
        mean = (z @ w)[seen]
        with plate("entries", len(mean)):
            S("x", dist.Normal(mean, 1.0), obs=x[seen])

    return model, (torch.randn(N, 4), bits(N, 4).bool())
