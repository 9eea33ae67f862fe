"""Factors, topics, items and networks."""

import pyro
import pyro.distributions as dist
import torch

from benchmarks.wild.catalog import modules, program
from benchmarks.wild.programs.common import S, bits, counts, normal, plate, positive, simplex

K, N, D = 3, 5, 4
FA = {"w": ("k", None), "z": (None, "k")}


def gaussian(mean, x):
    with plate("data", len(x)):
        S("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


@program("latents with MultivariateNormal(0, I), the usual spelling of factor analysis", FA)
def factors_with_identity_prior():
    def model(x):
        w = normal("w", K, D)
        with plate("data", N):
            z = S("z", dist.MultivariateNormal(torch.zeros(K), torch.eye(K)))
            S("x", dist.Normal(z @ w, 1.0).to_event(1), obs=x)

    return model, (torch.randn(N, D),)


@program("factors with a covariance that is the same for every pair", FA)
def factors_with_exchangeable_prior():
    def model(x):
        w, rho = normal("w", K, D), S("rho", dist.Beta(1.0, 1.0))
        z = S("z", dist.MultivariateNormal(torch.zeros(N, K), rho * torch.ones(K, K) + torch.eye(K)).to_event(1))
        gaussian(z @ w, x)

    return model, (torch.randn(N, D),)


@program("factors with relevance precisions (Bishop 1999)", FA | {"alpha": ("k",)})
def factors_with_relevance():
    def model(x):
        alpha = positive("alpha", K)
        w = S("w", dist.Normal(0.0, alpha.rsqrt()[:, None]).expand([K, D]).to_event(2))
        gaussian(normal("z", N, K) @ w, x)

    return model, (torch.randn(N, D),)


@program("loadings of the factors in a plate of factors", {"w": ("k", None), "z": ("k", None)})
def factors_in_a_plate():
    def model(x):
        with plate("factors", K):
            w = S("w", dist.Laplace(torch.zeros(D), 1.0).to_event(1))
            z = S("z", dist.Normal(torch.zeros(N), 1.0).to_event(1))
        gaussian(z.T @ w, x)

    return model, (torch.randn(N, D),)


@program("independent components: heavy-tailed sources, square mixing by inverse and determinant", {"v": ("k", None)})
def independent_components():
    def model(x):
        v = normal("v", K, K)
        sources = x @ v.T
        pyro.factor(
            "x", dist.StudentT(3.0, 0.0, 1.0).log_prob(sources).sum() + len(x) * torch.linalg.slogdet(v).logabsdet
        )

    return model, (torch.randn(N, K),)


@program("marginal factor analysis with LowRankMultivariateNormal (Zhang et al.)", {"w": (None, "k"), "noise": (None,)})
def factors_of_low_rank():
    def model(x):
        w, noise = normal("w", D, 2), positive("noise", D)
        with plate("data", len(x)):
            S("x", dist.LowRankMultivariateNormal(torch.zeros(D), w, noise), obs=x)

    return model, (torch.randn(N, D),)


@program("non-negative factorization, exponential priors", FA)
def non_negative_factors():
    def model(x):
        w, z = (S(n, dist.Exponential(1.0).expand(s).to_event(2)) for n, s in (("w", [K, D]), ("z", [N, K])))
        S("x", dist.Poisson(z @ w).to_event(2), obs=x)

    return model, (counts(N, D),)


@program(
    "hierarchical Poisson factorization (Gopalan et al. 2015)",
    {"theta": (None, "k"), "beta": (None, "k"), "xi": (None,), "eta": (None,)},
)
def poisson_factorization():
    def model(x):
        xi, eta = positive("xi", N), positive("eta", D)
        theta = S("theta", dist.Gamma(0.3, xi[:, None]).expand([N, K]).to_event(2))
        beta = S("beta", dist.Gamma(0.3, eta[:, None]).expand([D, K]).to_event(2))
        with plate("users", N, dim=-2), plate("items", D, dim=-1):
            S("x", dist.Poisson((theta[:, None] * beta).sum(-1) + 1e-4), obs=x)

    return model, (counts(N, D),)


@program("rank-one terms added in a loop", FA)
def factors_added_in_a_loop():
    def model(x):
        w, z = normal("w", K, D), normal("z", N, K)
        gaussian(sum(torch.outer(z[:, k], w[k]) for k in range(K)), x)

    return model, (torch.randn(N, D),)


@program("factors as sites of their own, in a sequential plate", {}, moves=[(K, modules("w_{}", "z_{}"))])
def factors_as_sites():
    def model(x):
        mean = torch.zeros(N, D)
        for k in plate("factors", K):
            mean = mean + normal(f"z_{k}", N, 1) * normal(f"w_{k}", D)
        gaussian(mean, x)

    return model, (torch.randn(N, D),)


@program("CP tensor factorization with scales", {"u": (None, "k"), "v": (None, "k"), "w": (None, "k"), "scale": ("k",)})
def parafac():
    def model(x):
        u, v, w, scale = normal("u", 2, K), normal("v", 3, K), normal("w", 4, K), positive("scale", K)
        S("x", dist.Normal(torch.einsum("ir,jr,kr,r->ijk", u, v, w, scale), 1.0).to_event(3), obs=x)

    return model, (torch.randn(2, 3, 4),)


@program(
    "Tucker decomposition: a core between three modes",
    {"g": ("a", "b", "c"), "u": (None, "a"), "v": (None, "b"), "w": (None, "c")},
)
def tucker():
    def model(x):
        g, u, v, w = normal("g", 2, 3, 2), normal("u", 2, 2), normal("v", 3, 3), normal("w", 4, 2)
        mean = torch.tensordot(torch.tensordot(torch.tensordot(g, u, ([0], [1])), v, ([0], [1])), w, ([0], [1]))
        S("x", dist.Normal(mean, 1.0).to_event(3), obs=x)

    return model, (torch.randn(2, 3, 4),)


@program(
    "ratings at indices, with biases and hierarchical precisions",
    {"u": (None, "k"), "v": (None, "k"), "lu": ("k",), "lv": ("k",)},
)
def ratings():
    def model(i, j, y):
        lu, lv = positive("lu", K), positive("lv", K)
        with plate("users", 4):
            u = S("u", dist.Normal(torch.zeros(K), lu.rsqrt()).to_event(1))
        with plate("films", 5):
            v = S("v", dist.Normal(torch.zeros(K), lv.rsqrt()).to_event(1))
        with plate("ratings", len(y)):
            S("y", dist.Normal((u[i] * v[j]).sum(-1), 1.0), obs=y)

    return model, (torch.randint(0, 4, (7,)), torch.randint(0, 5, (7,)), torch.randn(7))


@program(
    "canonical correlations: shared and private factors of two views",
    {"z": (None, "k"), "a": ("k", None), "b": ("k", None), "za": (None, "p"), "wa": ("p", None)},
)
def canonical_correlations():
    def model(x, y):
        z, za, a, b, wa = (
            normal("z", N, 2),
            normal("za", N, 3),
            normal("a", 2, D),
            normal("b", 2, 3),
            normal("wa", 3, D),
        )
        with plate("data", N):
            S("x", dist.Normal(z @ a + za @ wa, 1.0).to_event(1), obs=x)
            S("y", dist.Normal(z @ b, 1.0).to_event(1), obs=y)

    return model, (torch.randn(N, D), torch.randn(N, 3))


@program("items of several abilities (multidimensional IRT)", {"theta": (None, "k"), "a": (None, "k"), "b": (None,)})
def multidimensional_items():
    def model(y):
        theta, a, b = normal("theta", N, 2), S("a", dist.LogNormal(0.0, 1.0).expand([D, 2]).to_event(2)), normal("b", D)
        S("y", dist.Bernoulli(logits=theta @ a.T - b).to_event(2), obs=y)

    return model, (bits(N, D),)


@program("noisy-or of attributes, skills summed out (DINA)", {"g": (None,), "s": (None,), "pi": (None,)})
def cognitive_diagnosis():
    def model(y):
        g, s = (S(n, dist.Beta(1.0, 5.0).expand([D]).to_event(1)) for n in "gs")
        pi = simplex("pi", 4)
        q = torch.tensor([[1, 0], [0, 1], [1, 1], [1, 0]])
        skills = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
        has = (skills @ q.T >= q.sum(1)).to(g.dtype)
        with plate("students", len(y)):
            S(
                "y",
                dist.MixtureSameFamily(dist.Categorical(pi), dist.Bernoulli(has * (1 - s) + (1 - has) * g).to_event(1)),
                obs=y,
            )

    return model, (bits(N, D),)


@program("ideal points of legislators in the plane", {"x": (None, "k"), "b": (None, "k"), "a": (None,)})
def ideal_points():
    def model(i, j, y):
        x, b, a = normal("x", N, 2), normal("b", D, 2), normal("a", D)
        with plate("votes", len(y)):
            S("y", dist.Bernoulli(logits=torch.einsum("vk,vk->v", x[i], b[j]) + a[j]), obs=y)

    return model, (torch.randint(0, N, (8,)), torch.randint(0, D, (8,)), bits(8))


@program(
    "binary factors: an Indian buffet cut off, features relaxed to probabilities",
    {"pi": ("k",), "z": (None, "k"), "a": ("k", None)},
)
def latent_features():
    def model(x):
        pi = S("pi", dist.Beta(1.0 / K, 1.0).expand([K]).to_event(1))
        z = S("z", dist.Beta(1.0 + pi, 2.0 - pi).expand([N, K]).to_event(2))
        gaussian(z @ normal("a", K, D), x)

    return model, (torch.randn(N, D),)
