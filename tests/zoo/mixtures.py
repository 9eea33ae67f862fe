"""Mixtures, hidden Markov models, topics, factors: label switching."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from problems import normal, observe, problem
from pyro.infer import config_enumerate

from pyro_align.axes import Atom, Odd


@problem({"weights": ("k",), "loc": ("k",), "scale": ("k",)})
def gaussian_mixture():
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("components", 3):
            loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, scale)), obs=x)

    return model, (torch.randn(7),)


@problem({"weights": ("k",), "loc": ("k", None), "scale": (None,)})
def gaussian_mixture_in_the_plane():
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(3)))
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3, 2), 5.0).to_event(2))
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
        parts = dist.Normal(loc, scale).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=x)

    return model, (torch.randn(7, 2),)


@problem({"weights": ("k",), "loc": ("k",), "scale": ("k",)})
def enumerated_mixture():
    @config_enumerate
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("components", 3):
            loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)

    return model, (torch.randn(7),)


@problem({"weights": ([None, Atom("k", 3)],), "loc": ([None, "k"],)})
def mixture_with_a_prior_that_tells_one_component_apart():
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([2.0, 1.0, 1.0, 1.0])))
        loc = pyro.sample("loc", dist.Normal(torch.zeros(4), 5.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, 1.0)), obs=x)

    return model, (torch.randn(7),)


def hmm_sites():
    start = pyro.sample("start", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("states", 3):
        move = pyro.sample("move", dist.Dirichlet(torch.ones(3)))
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    return start, move, loc


HMM = {"start": ("s",), "move": ("s", "s"), "loc": ("s",)}


@problem(HMM)
def hidden_markov_model_by_markov():
    @config_enumerate
    def model(x):
        start, move, loc = hmm_sites()
        z = None
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z{t}", dist.Categorical(start if z is None else move[z]))
            pyro.sample(f"x{t}", dist.Normal(loc[z], 1.0), obs=x[t])

    return model, (torch.randn(4),)


@problem(HMM)
def hidden_markov_model_by_markov_with_sequences():
    @config_enumerate
    def model(x):
        start, move, loc = hmm_sites()
        with pyro.plate("sequences", len(x), dim=-1):
            z = None
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z{t}", dist.Categorical(start if z is None else move[z]))
                pyro.sample(f"x{t}", dist.Normal(loc[z], 1.0), obs=x[:, t])

    return model, (torch.randn(2, 3),)


@problem(HMM)
def hidden_markov_model_as_a_distribution():
    def model(x):
        start, move, loc = hmm_sites()
        pyro.sample("x", dist.DiscreteHMM(start.log(), move.log(), dist.Normal(loc, 1.0)), obs=x)

    return model, (torch.randn(5),)


@problem({"topics": ("k", None), "alpha": ("k",), "theta": (None, "k")})
def latent_dirichlet_allocation():
    def model(words):
        alpha = pyro.sample("alpha", dist.Gamma(torch.ones(2), 1.0).to_event(1))
        with pyro.plate("topic", 2):
            topics = pyro.sample("topics", dist.Dirichlet(torch.ones(4)))
        with pyro.plate("documents", len(words)):
            theta = pyro.sample("theta", dist.Dirichlet(alpha))
        probs = theta @ topics
        with pyro.plate("documents_again", len(words)):
            pyro.sample("words", dist.Multinomial(int(words[0].sum()), probs), obs=words)

    return model, (torch.tensor([[2.0, 1, 0, 0], [0, 1, 1, 1], [1, 0, 2, 0]]),)


@problem({"topics": ("k", None), "theta": (None, "k")})
def latent_dirichlet_allocation_with_enumerated_words():
    @config_enumerate
    def model(words):
        with pyro.plate("topic", 2):
            topics = pyro.sample("topics", dist.Dirichlet(torch.ones(4)))
        with pyro.plate("documents", words.shape[1]):
            theta = pyro.sample("theta", dist.Dirichlet(torch.ones(2)))
            with pyro.plate("words", len(words)):
                z = pyro.sample("z", dist.Categorical(theta))
                pyro.sample("w", dist.Categorical(topics[z]), obs=words)

    return model, (torch.tensor([[0, 1, 2], [3, 1, 0], [2, 2, 3], [1, 0, 1]]),)


@problem({"w": (None, "f"), "z": (None, "f"), "mu": (None,), "psi": (None,)}, odd="f")
def factor_analysis():
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(4, 2), 1.0).to_event(2))
        mu, psi = normal("mu", 4), pyro.sample("psi", dist.LogNormal(torch.zeros(4), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w.T + mu, psi).to_event(1), obs=x)

    return model, (torch.randn(5, 4),)


@problem({"w": (None, "f"), "ard": ("f",), "sigma": ()}, signs={"w": (None, Odd("f"))})
def probabilistic_pca_marginalized():
    def model(x):
        ard = pyro.sample("ard", dist.Gamma(torch.ones(2), 1.0).to_event(1))
        w = pyro.sample("w", dist.Normal(0.0, ard.rsqrt()).expand([4, 2]).to_event(2))
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        cov = w @ w.T + sigma**2 * torch.eye(4)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(4), cov), obs=x)

    return model, (torch.randn(5, 4),)


@problem({"w": (None, "f"), "sigma": ()}, odd="f")
def probabilistic_pca_of_low_rank():
    def model(x):
        w = normal("w", 4, 2)
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.LowRankMultivariateNormal(torch.zeros(4), w, sigma.expand(4)), obs=x)

    return model, (torch.randn(5, 4),)


@problem({"gate.w": ("k", None), "gate.b": ("k",), "expert.w": ("k", None), "expert.b": ("k",), "sigma": ("k",)})
def mixture_of_regressions():
    def model(x, y):
        gw, gb = normal("gate.w", 3, 2), normal("gate.b", 3)
        ew, eb = normal("expert.w", 3, 2), normal("expert.b", 3)
        sigma = pyro.sample("sigma", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            gate = dist.Categorical(logits=x @ gw.T + gb)
            pyro.sample("y", dist.MixtureSameFamily(gate, dist.Normal(x @ ew.T + eb, sigma)), obs=y)

    return model, (torch.randn(6, 2), torch.randn(6))


@problem({"a": (None, "r"), "b": (None, "r"), "c": (None, "r"), "weight": ("r",)}, odd="r")
def tensor_factorization():
    def model():
        a, b, c, weight = normal("a", 3, 2), normal("b", 4, 2), normal("c", 5, 2), normal("weight", 2)
        observe(torch.einsum("ir,jr,kr,r->ijk", a, b, c, weight))

    return model, ()
