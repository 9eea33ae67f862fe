"""Topic models and networks of people."""

import pyro
import pyro.distributions as dist
import torch

from benchmarks.wild.catalog import program
from benchmarks.wild.programs.common import S, bits, category, counts, normal, plate, positive, simplex
from pyro_align.axes import Atom

K, N, D = 3, 5, 4

# topics


@program("LDA with words summed out by a product", {"phi": ("k", None), "theta": (None, "k")})
def topics_collapsed():
    def model(words):
        phi, theta = simplex("phi", D, K), simplex("theta", K, N)
        with plate("documents", N):
            S("words", dist.Multinomial(probs=theta @ phi, validate_args=False), obs=words)

    return model, (counts(N, D),)


@program("correlated topics: the Cholesky factor of a correlation keeps the topics in order", {})
def correlated_topics():
    def model(words):
        phi, mu, sd = simplex("phi", D, K), normal("mu", K), positive("sd", K)
        corr = S("corr", dist.LKJCholesky(K, 1.0))
        with plate("documents", N):
            eta = S("eta", dist.MultivariateNormal(mu, scale_tril=sd[:, None] * corr))
            S("words", dist.Multinomial(probs=eta.softmax(-1) @ phi, validate_args=False), obs=words)

    return model, (counts(N, D),)


@program("correlated topics, independent logits", {"phi": ("k", None), "eta": (None, "k"), "mu": ("k",)})
def logistic_normal_topics():
    def model(words):
        beta, mu = normal("phi", K, D), normal("mu", K)
        eta = S("eta", dist.Normal(mu, 1.0).expand([N, K]).to_event(2))
        mix = torch.softmax(eta, 1).mm(torch.softmax(beta, 1))
        pyro.factor("words", (words * mix.log()).sum())

    return model, (counts(N, D),)


@program("ProdLDA: mixing before the softmax (Srivastava and Sutton 2017)", {"beta": ("k", None), "eta": (None, "k")})
def product_topics():
    def model(words):
        beta, eta = normal("beta", K, D), normal("eta", N, K)
        with plate("documents", N):
            S("words", dist.Multinomial(logits=eta.softmax(-1) @ beta, validate_args=False), obs=words)

    return model, (counts(N, D),)


@program(
    "supervised topics: a response from the topic proportions", {"phi": ("k", None), "theta": (None, "k"), "b": ("k",)}
)
def supervised_topics():
    def model(words, y):
        phi, theta, b = simplex("phi", D, K), simplex("theta", K, N), normal("b", K)
        S("words", dist.Multinomial(probs=theta @ phi, validate_args=False).to_event(1), obs=words)
        S("y", dist.Normal(torch.mv(theta, b), 1.0).to_event(1), obs=y)

    return model, (counts(N, D), torch.randn(N))


SEEDED = [1, Atom("k", K - 1)]


@program(
    "seeded topics: the prior of the first topic knows some words", {"phi": (SEEDED, None), "theta": (None, SEEDED)}
)
def seeded_topics():
    def model(words):
        prior = torch.ones(K, D)
        prior[0, :2] = 5.0
        phi, theta = S("phi", dist.Dirichlet(prior).to_event(1)), simplex("theta", K, N)
        with plate("documents", N):
            S("words", dist.Multinomial(probs=theta @ phi, validate_args=False), obs=words)

    return model, (counts(N, D),)


@program(
    "dynamic topics: word logits drift over three times",
    {**{f"b_{t}": ("k", None) for t in range(3)}, "theta": (None, None, "k")},
)
def dynamic_topics():
    def model(words):
        theta, b = S("theta", dist.Dirichlet(torch.ones(3, 2, K)).to_event(2)), torch.zeros(K, D)
        for t in range(3):
            b = S(f"b_{t}", dist.Normal(b, 0.5).to_event(2))
            S(
                f"words_{t}",
                dist.Multinomial(probs=theta[t] @ b.softmax(-1), validate_args=False).to_event(1),
                obs=words[t],
            )

    return model, (counts(3, 2, D),)


@program("words of authors: topics of authors, words by enumeration", {"phi": ("k", None), "theta": (None, "k")})
def author_topics():
    def model(author, words):
        phi, theta = simplex("phi", D, K), simplex("theta", K, 2)
        with plate("words", len(words)):
            z = category("z", theta[author])
            S("w", dist.Categorical(phi[z]), obs=words)

    return model, (torch.randint(0, 2, (8,)), torch.randint(0, D, (8,)))


# networks of people


@program("mixed-membership blocks, memberships summed out (Airoldi et al. 2008)", {"pi": (None, "k"), "b": ("k", "k")})
def mixed_membership_blocks():
    def model(y):
        pi, b = simplex("pi", K, N), S("b", dist.Beta(1.0, 1.0).expand([K, K]).to_event(2))
        S("y", dist.Bernoulli(torch.einsum("ik,kl,jl->ij", pi, b, pi)).to_event(2), obs=y)

    return model, (bits(N, N),)


@program("blocks with degree corrections, soft memberships", {"theta": (None,), "z": (None, "k"), "omega": ("k", "k")})
def degree_corrected_blocks():
    def model(y):
        theta, z, omega = positive("theta", N), simplex("z", K, N), positive("omega", K, K)
        rate = theta[:, None] * theta * (z @ omega @ z.T)
        S("y", dist.Poisson(rate).to_event(2), obs=y)

    return model, (counts(N, N),)


@program("latent distances (Hoff et al. 2002): dimensions of the space", {"z": (None, "k"), "a": ()})
def latent_distances():
    def model(y):
        z, a = normal("z", N, 2), normal("a")
        distance = ((z[:, None] - z) ** 2).sum(-1).add(1e-3).sqrt()
        S("y", dist.Bernoulli(logits=a - distance).to_event(2), obs=y)

    return model, (bits(N, N),)


@program("latent distances by cdist", {"z": (None, "k"), "a": ()})
def latent_distances_cdist():
    def model(y):
        z, a = normal("z", N, 2), normal("a")
        S("y", dist.Bernoulli(logits=a - torch.cdist(z, z)).to_event(2), obs=y)

    return model, (bits(N, N),)


@program("eigenmodel: signs of the dimensions' weights by site", {"u": (None, "k"), "lam": ("k",)})
def eigenmodel():
    def model(y):
        u, lam = normal("u", N, K), normal("lam", K)
        S("y", dist.Bernoulli(logits=u @ torch.diag(lam) @ u.T).to_event(2), obs=y)

    return model, (bits(N, N),)


@program("Bradley-Terry with several attributes", {"s": (None, "k"), "w": ("k",)})
def paired_comparisons():
    def model(i, j, y):
        s, w = normal("s", N, K), positive("w", K)
        S("y", dist.Bernoulli(logits=((s[i] - s[j]) * w).sum(-1)).to_event(1), obs=y)

    return model, (torch.randint(0, N, (6,)), torch.randint(0, N, (6,)), bits(6))
