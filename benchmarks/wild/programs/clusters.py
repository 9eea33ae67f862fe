"""Mixtures of counts, directions, levels and shared components."""

import pyro
import pyro.distributions as dist
import torch

from benchmarks.wild.catalog import program
from benchmarks.wild.programs.common import S, category, counts, normal, plate, positive, simplex

K = 3
WL = {"w": ("k",), "loc": ("k",)}


@program("zero-inflated count mixture", {"w": ("k",), "rate": ("k",), "gate": ("k",)})
def zero_inflated_mixture():
    def model(y):
        w, rate, gate = simplex("w", K), positive("rate", K), S("gate", dist.Beta(1.0, 1.0).expand([K]).to_event(1))
        with plate("data", len(y)):
            z = category("z", w)
            S("y", dist.ZeroInflatedPoisson(rate[z], gate=gate[z]), obs=y)

    return model, (counts(6),)


@program("Pyro tutorial: Dirichlet process by stick breaking, whose order is fixed", {})
def stick_breaking():
    def model(x):
        sticks = S("sticks", dist.Beta(1.0, 2.0).expand([K - 1]).to_event(1))
        loc = normal("loc", K)
        w = torch.nn.functional.pad(sticks, (0, 1), value=1.0) * torch.nn.functional.pad(
            (1 - sticks).cumprod(-1), (1, 0), value=1.0
        )
        with plate("data", len(x)):
            S("x", dist.Normal(loc[category("z", w)], 1.0), obs=x)

    return model, (torch.randn(6),)


@program("finite approximation of a Dirichlet process, concentration learned", WL)
def finite_dirichlet_process():
    def model(x):
        alpha = S("alpha", dist.Gamma(2.0, 1.0))
        w = S("w", dist.Dirichlet(alpha.expand(4) / 4))
        with plate("components", 4):
            loc = S("loc", dist.Normal(0.0, 3.0))
        with plate("data", len(x)):
            S("x", dist.Normal(loc[category("z", w)], 1.0), obs=x)

    return model, (torch.randn(6),)


@program("weights as normalized Gammas", {"g": ("k",), "loc": ("k",)})
def normalized_gamma_weights():
    def model(x):
        g, loc = positive("g", K), normal("loc", K)
        with plate("data", len(x)):
            S("x", dist.MixtureSameFamily(dist.Categorical(g / g.sum()), dist.Normal(loc, 1.0)), obs=x)

    return model, (torch.randn(6),)


@program(
    "gated mixture of linear experts (Jordan and Jacobs 1994)", {"gate": ("k", None), "beta": ("k", None), "sd": ("k",)}
)
def gated_regressions():
    def model(x, y):
        gate, beta, sd = normal("gate", K, 2), normal("beta", K, 2), positive("sd", K)
        with plate("data", len(y)):
            S("y", dist.MixtureSameFamily(dist.Categorical(logits=x @ gate.T), dist.Normal(x @ beta.T, sd)), obs=y)

    return model, (torch.randn(6, 2), torch.randn(6))


@program(
    "mixture of factor analyzers (Ghahramani and Hinton 1996)",
    {"w": ("k",), "load": ("k", None, "f"), "mu": ("k", None)},
    within={"f": "k"},
)
def mixture_of_factor_analyzers():
    def model(x):
        w, load, mu = simplex("w", K), normal("load", K, 4, 2), normal("mu", K, 4)
        with plate("data", len(x)):
            cov = load @ load.mT + 0.5 * torch.eye(4)
            S("x", dist.MixtureSameFamily(dist.Categorical(w), dist.MultivariateNormal(mu, cov)), obs=x)

    return model, (torch.randn(6, 4),)


@program("robust clustering with Student components", WL | {"nu": ("k",)})
def student_mixture():
    def model(x):
        w, loc, nu = simplex("w", K), normal("loc", K), positive("nu", K)
        with plate("data", len(x)):
            S("x", dist.MixtureSameFamily(dist.Categorical(w), dist.StudentT(1 + nu, loc, 1.0)), obs=x)

    return model, (torch.randn(6),)


@program("directions: a mixture of von Mises distributions", {"w": ("k",), "mu": ("k",), "kappa": ("k",)})
def von_mises_mixture():
    def model(x):
        w, kappa = simplex("w", K), positive("kappa", K)
        mu = S("mu", dist.VonMises(torch.zeros(K), 1.0).to_event(1))
        pyro.factor("x", (w.log() + dist.VonMises(mu, kappa).log_prob(x[:, None])).logsumexp(-1).sum())

    return model, (torch.rand(6),)


@program("methylation levels: a mixture of Betas", {"w": ("k",), "a": ("k",), "b": ("k",)})
def beta_mixture():
    def model(x):
        w, a, b = simplex("w", K), positive("a", K), positive("b", K)
        with plate("data", len(x)):
            z = category("z", w)
            S("x", dist.Beta(a[z], b[z]), obs=x)

    return model, (torch.rand(6),)


@program("groups with weights of their own over shared components", {"w": (None, "k"), "loc": ("k",)})
def shared_components():
    def model(x):
        w, loc = simplex("w", K, 2), normal("loc", K)
        with plate("groups", 2, dim=-2), plate("data", 5, dim=-1):
            S("x", dist.MixtureSameFamily(dist.Categorical(w[:, None]), dist.Normal(loc.expand(2, 1, K), 1.0)), obs=x)

    return model, (torch.randn(2, 5),)


@program("a mixture as the prior of group effects", WL | {"effect": (None,)})
def mixture_prior():
    def model(y):
        w, loc = simplex("w", K), normal("loc", K)
        with plate("groups", 4):
            effect = S("effect", dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(loc, 0.3)))
            S("y", dist.Normal(effect, 1.0), obs=y)

    return model, (torch.randn(4),)


@program(
    "Dawid and Skene 1979: annotators' confusion matrices, true classes summed out",
    {"pi": ("k",), "beta": (None, "k", None)},
)
def annotators():
    def model(y):
        pi, beta = simplex("pi", K), simplex("beta", K, 4, K)
        with plate("items", len(y), dim=-2):
            c = category("c", pi)
            with plate("annotators", 4, dim=-1):
                S("y", dist.Categorical(pyro.ops.indexing.Vindex(beta)[torch.arange(4), c]), obs=y)

    return model, (torch.randint(0, K, (5, 4)),)


@program("annotators with a prior that expects the right answer: classes are told by their labels", {})
def annotators_with_informed_prior():
    def model(y):
        pi = simplex("pi", K)
        beta = S("beta", dist.Dirichlet((torch.eye(K) + 1).expand(4, K, K)).to_event(2))
        with plate("items", len(y), dim=-2):
            c = category("c", pi)
            with plate("annotators", 4, dim=-1):
                S("y", dist.Categorical(pyro.ops.indexing.Vindex(beta)[torch.arange(4), c]), obs=y)

    # relabeling classes together with labels would need the data to move
    return model, (torch.tensor([[0, 1, 2, 0], [1, 1, 2, 0], [2, 2, 2, 1], [0, 0, 1, 1], [1, 0, 0, 0]]),)


@program("admixture of populations (STRUCTURE, Pritchard et al. 2000)", {"q": (None, "k"), "f": ("k", None)})
def admixture():
    def model(y):
        q, f = simplex("q", K, 4), S("f", dist.Beta(1.0, 1.0).expand([K, 5]).to_event(2))
        with plate("people", 4, dim=-2), plate("loci", 5, dim=-1):
            S("y", dist.Binomial(2, q @ f), obs=y)

    return model, (counts(4, 5, high=3),)


@program("spike and slab of equal coefficients' places: inclusion summed out", {})
def spike_and_slab_regression():
    def model(x, y):
        theta = S("theta", dist.Beta(1.0, 1.0))
        beta = S(
            "beta",
            dist.MixtureSameFamily(
                dist.Categorical(torch.stack([theta, 1 - theta])),
                dist.Normal(torch.zeros(2), torch.tensor([0.05, 2.0])),
            )
            .expand([3])
            .to_event(1),
        )
        with plate("data", len(y)):
            S("y", dist.Normal(x @ beta, 1.0), obs=y)

    return model, (torch.randn(6, 3), torch.randn(6))


@program("capture of unordered pairs: a mixture over shifted copies of the data", {"w": ("k",), "shift": ("k",)})
def mixture_of_shifts():
    def model(x, y):
        w, shift = simplex("w", K), normal("shift", K)
        z = dist.Categorical(w)
        with plate("data", len(y)):
            S("y", dist.MixtureSameFamily(z, dist.Laplace(x[:, None] + shift, 0.5)), obs=y)

    return model, (torch.randn(6), torch.randn(6))
