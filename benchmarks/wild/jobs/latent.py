"""Mixtures, topics, factors, item responses and animals, from Pyro's tutorials, examples and packages on top of it."""

import functools

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal, init_to_sample
from torch import nn
from torch.distributions import constraints

from benchmarks.wild.jobs import Job, job


def gaussian_mixture(guide):
    @config_enumerate
    def model(data):
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(3)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", 3):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(data)):
            assignment = pyro.sample("assignment", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)

    def make():
        return guide(poutine.block(model, expose=["weights", "locs", "scale"]), init_loc_fn=init_to_sample)

    torch.manual_seed(0)
    data = torch.cat([torch.randn(10) - 6, torch.randn(10), torch.randn(10) + 7])
    return Job(model, make, (data,), elbo=lambda: TraceEnum_ELBO(max_plate_nesting=1), steps=60, rate=0.05)


@job("Pyro tutorial, Gaussian mixture models, with AutoNormal")
def gmm_normal():
    return gaussian_mixture(AutoNormal)


@job("Pyro tutorial, Gaussian mixture models")
def gmm_delta():
    return gaussian_mixture(AutoDelta)


@job("Pyro, examples/lda.py")
def lda():
    topics, vocabulary, documents, words = 4, 12, 6, 8

    def model(data):
        with pyro.plate("topics", topics):
            topic_weights = pyro.sample("topic_weights", dist.Gamma(1.0 / topics, 1.0))
            topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(vocabulary) / vocabulary))
        with pyro.plate("documents", documents):
            doc_topics = pyro.sample("doc_topics", dist.Dirichlet(topic_weights))
            with pyro.plate("words", words):
                z = pyro.sample("word_topics", dist.Categorical(doc_topics), infer={"enumerate": "parallel"})
                pyro.sample("doc_words", dist.Categorical(topic_words[z]), obs=data)

    def make():
        predictor = nn.Sequential(nn.Linear(vocabulary, 7), nn.Sigmoid(), nn.Linear(7, topics), nn.Softmax(-1))

        def guide(data):
            weights = pyro.param("w_posterior", lambda: torch.rand(topics) + 0.5, constraint=constraints.positive)
            word = pyro.param(
                "t_posterior",
                lambda: 0.2 + torch.rand(topics, vocabulary),
                constraint=constraints.greater_than(0.5 / vocabulary),
            )
            with pyro.plate("topics", topics):
                pyro.sample("topic_weights", dist.Gamma(weights, 1.0))
                pyro.sample("topic_words", dist.Dirichlet(word))
            pyro.module("predictor", predictor)
            counts = torch.zeros(vocabulary, documents).scatter_add(0, data, torch.ones_like(data, dtype=torch.float))
            with pyro.plate("documents", documents):
                pyro.sample("doc_topics", dist.Delta(0.99 * predictor(counts.T) + 0.01 / topics, event_dim=1))

        return guide

    torch.manual_seed(0)
    data = torch.randint(0, vocabulary, (words, documents))
    return Job(model, make, (data,), elbo=lambda: TraceEnum_ELBO(max_plate_nesting=2), wrapped=True)


@job("Pyro, examples/sparse_gamma_def.py")
def sparse_gamma_def():
    def model(x):
        shape = 0.1
        with pyro.plate("w_top_plate", 5 * 4):
            top = pyro.sample("w_top", dist.Gamma(shape, 0.3))
        with pyro.plate("w_mid_plate", 4 * 3):
            mid = pyro.sample("w_mid", dist.Gamma(shape, 0.3))
        with pyro.plate("w_bottom_plate", 3 * x.shape[-1]):
            bottom = pyro.sample("w_bottom", dist.Gamma(shape, 0.3))
        with pyro.plate("data", len(x)):
            z_top = pyro.sample("z_top", dist.Gamma(shape, shape).expand([5]).to_event(1))
            z_mid = pyro.sample("z_mid", dist.Gamma(shape, shape / (z_top @ top.reshape(5, 4) + 1e-3)).to_event(1))
            rate = shape / (z_mid @ mid.reshape(4, 3) + 1e-3)
            z_bottom = pyro.sample("z_bottom", dist.Gamma(shape, rate).to_event(1))
            mean = z_bottom @ bottom.reshape(3, -1) + 1e-3
            pyro.sample("obs", dist.Poisson(mean).to_event(1), obs=x)

    def make():
        return AutoNormal(model, init_loc_fn=functools.partial(_moderate), init_scale=0.05)

    torch.manual_seed(0)
    return Job(model, make, (torch.poisson(torch.rand(6, 8) * 4),))


def _moderate(site):
    return 0.5 + torch.rand(site["fn"].shape())


@job("MOFA and MuVI: factor analysis of several views, ARD priors")
def mofa():
    factors = 4

    def model(first, second):
        weights = []
        for view, x in enumerate((first, second)):
            with pyro.plate(f"factors_{view}", factors):
                alpha = pyro.sample(f"alpha_{view}", dist.Gamma(1.0, 1.0))
            w = pyro.sample(
                f"w_{view}", dist.Normal(0.0, alpha.rsqrt()[:, None]).expand([factors, x.shape[1]]).to_event(2)
            )
            weights.append(w)
        noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("samples", len(first)):
            z = pyro.sample("z", dist.Normal(torch.zeros(factors), 1.0).to_event(1))
            for view, x in enumerate((first, second)):
                pyro.sample(f"x_{view}", dist.Normal(z @ weights[view], noise[view]).to_event(1), obs=x)

    torch.manual_seed(0)
    z = torch.randn(8, factors)
    data = z @ torch.randn(factors, 5), z @ torch.randn(factors, 3)
    return Job(model, lambda: AutoNormal(model, init_loc_fn=init_to_sample), data)


@job("py-irt: two-parameter logistic, its mean-field guide")
def irt_2pl():
    subjects, items = 6, 5

    def model(subject, item, y):
        with pyro.plate("thetas", subjects):
            ability = pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("bs", items):
            difficulty = pyro.sample("b", dist.Normal(0.0, 10.0))
            slope = pyro.sample("gamma", dist.LogNormal(0.0, 1.0))
        with pyro.plate("observe", len(y)):
            logits = slope[item] * (ability[subject] - difficulty[item])
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    def make():
        def guide(subject, item, y):
            for plate, sizes, sites in (("thetas", subjects, "theta"), ("bs", items, "b"), ("bs", items, "gamma")):
                loc = pyro.param(f"loc_{sites}", lambda n=sizes: torch.randn(n))
                scale = pyro.param(f"scale_{sites}", torch.full((sizes,), 0.3), constraint=constraints.positive)
                family = dist.LogNormal if sites == "gamma" else dist.Normal
                with pyro.plate(plate if sites != "gamma" else "bs_", sizes):
                    pyro.sample(sites, family(loc, scale))

        return guide

    torch.manual_seed(0)
    n = 24
    data = torch.randint(0, subjects, (n,)), torch.randint(0, items, (n,)), (torch.rand(n) < 0.5).float()
    return Job(model, make, data, wrapped=True)


@job("Probabilistic matrix factorization with subsampled users (Salakhutdinov and Mnih, 2008)")
def pmf_subsampled():
    users, films, factors = 8, 6, 3

    def model(ratings):
        with pyro.plate("films", films):
            film = pyro.sample("film", dist.Normal(torch.zeros(factors), 1.0).to_event(1))
        noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.5))
        with pyro.plate("users", users, subsample_size=4) as index:
            user = pyro.sample("user", dist.Normal(torch.zeros(factors), 1.0).to_event(1))
            pyro.sample("rating", dist.Normal(user @ film.T, noise).to_event(1), obs=ratings[index])

    def make():
        return AutoNormal(
            model,
            init_loc_fn=init_to_sample,
            create_plates=lambda ratings: pyro.plate("users", users, subsample_size=4),
        )

    torch.manual_seed(0)
    return Job(model, make, (torch.randn(users, films),))


@job("Pyro, examples/capture_recapture/cjs.py, model 1")
def capture_recapture():
    def model(history, sex):
        phi, rho = pyro.sample("phi", dist.Uniform(0.0, 1.0)), pyro.sample("rho", dist.Uniform(0.0, 1.0))
        animals, occasions = history.shape
        with pyro.plate("animals", animals, dim=-1):
            z, seen = torch.ones(animals), torch.zeros(animals).bool()
            for t in pyro.markov(range(occasions)):
                with poutine.mask(mask=seen):
                    z = pyro.sample(f"z_{t}", dist.Bernoulli(phi * z), infer={"enumerate": "parallel"})
                    pyro.sample(f"y_{t}", dist.Bernoulli(rho * z), obs=history[:, t])
                seen = seen | history[:, t].bool()

    def make():
        return AutoDiagonalNormal(
            poutine.block(model, expose_fn=lambda site: site["name"][0:3] in ("phi", "rho")), init_loc_fn=init_to_sample
        )

    torch.manual_seed(0)
    history = (torch.rand(7, 4) < 0.5).float()
    return Job(model, make, (history, None), elbo=lambda: TraceEnum_ELBO(max_plate_nesting=1))


@job("Pyro, examples/inclined_plane.py")
def inclined_plane():
    def slide(friction, steps=20):
        time = torch.linspace(0.0, 1.0, steps)
        return 0.5 * (9.8 * (0.5 - 0.8 * friction)) * time.square().mean().numpy().item()

    def model(times):
        friction = pyro.sample("mu", dist.Uniform(0.05, 0.5))
        with pyro.plate("trials", len(times)):
            pyro.sample("obs", dist.Normal(slide(friction), 0.1), obs=times)

    torch.manual_seed(0)
    return Job(model, lambda: AutoNormal(model, init_loc_fn=init_to_sample), (0.5 + 0.1 * torch.randn(8),), Trace_ELBO)
