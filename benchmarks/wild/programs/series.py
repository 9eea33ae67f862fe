"""Time series: hidden states, local levels, volatility."""

import pyro
import pyro.distributions as dist
import torch

from benchmarks.wild.catalog import program
from benchmarks.wild.programs.common import S, bits, category, counts, normal, plate, positive, simplex
from pyro_align.axes import Atom

K, T = 3, 4
REST = [1, Atom("k", K - 1)]
HMM = {"init": ("k",), "trans": ("k", "k"), "loc": ("k",)}


def tables():
    return simplex("init", K), simplex("trans", K, K), normal("loc", K)


@program("pyro.distributions.DiscreteHMM, Poisson emissions", {"init": ("k",), "trans": ("k", "k"), "rate": ("k",)})
def discrete_hmm_counts():
    def model(y):
        init, trans, rate = simplex("init", K), simplex("trans", K, K), positive("rate", K)
        S("y", dist.DiscreteHMM(init.log(), trans.log(), dist.Poisson(rate), duration=T), obs=y)

    return model, (counts(T),)


@program("forward algorithm by hand, in logarithms", HMM)
def forward_algorithm():
    def model(y):
        init, trans, loc = tables()
        alpha = init.log() + dist.Normal(loc, 1.0).log_prob(y[0])
        for t in range(1, T):
            alpha = (alpha[:, None] + trans.log()).logsumexp(0) + dist.Normal(loc, 1.0).log_prob(y[t])
        pyro.factor("y", alpha.logsumexp(0))

    return model, (torch.randn(T),)


@program("forward algorithm, scaled probabilities and matrix products", HMM)
def forward_algorithm_scaled():
    def model(y):
        init, trans, loc = tables()
        p, total = init, 0.0
        for t in range(T):
            p = (p if t == 0 else p @ trans) * dist.Normal(loc, 1.0).log_prob(y[t]).exp()
            total, p = total + p.sum().log(), p / p.sum()
        pyro.factor("y", total)

    return model, (torch.randn(T),)


@program("sticky transitions: one diagonal, the same for every state", HMM)
def sticky_hmm():
    def model(y):
        init, loc = simplex("init", K), normal("loc", K)
        trans = S("trans", dist.Dirichlet(3.0 * torch.eye(K) + 1.0).to_event(1))
        S("y", dist.DiscreteHMM(init.log(), trans.log(), dist.Normal(loc, 1.0), duration=T), obs=y)

    return model, (torch.randn(T),)


@program(
    "Pyro's example prior 0.9 eye + 0.1, sixteen states, start in the first",
    {"trans": ([1, Atom("k", 15)], [1, Atom("k", 15)]), "p": ([1, Atom("k", 15)], None)},
)
def example_prior_of_sixteen_states():
    def model(y):
        trans = S("trans", dist.Dirichlet(0.9 * torch.eye(16) + 0.1).to_event(1))
        p = S("p", dist.Beta(0.1, 0.9).expand([16, 3]).to_event(2))
        x = 0
        for t in pyro.markov(range(T)):
            x = category(f"x_{t}", trans[x])
            with plate(f"tones_{t}", 3):
                S(f"y_{t}", dist.Bernoulli(p[x.squeeze(-1)]), obs=y[t])

    return model, (bits(T, 3),)


def markov(model):
    return model, (bits(T, 3),)


@program("second-order chain, start in the first state", {"trans": (REST, REST, REST), "p": (REST, None)})
def second_order_hmm():
    def model(y):
        trans, p = simplex("trans", K, K, K), S("p", dist.Beta(1.0, 1.0).expand([K, 3]).to_event(2))
        now, last = 0, 0
        for t in pyro.markov(range(T), history=2):
            probs = trans[last, now]
            last, now = now, category(f"x_{t}", probs)
            with plate(f"tones_{t}", 3):
                S(f"y_{t}", dist.Bernoulli(p[now.squeeze(-1)]), obs=y[t])

    return markov(model)


@program(
    "factorial chains with an initial distribution each (Ghahramani and Jordan 1997)",
    {"iw": ("w",), "tw": ("w", "w"), "ix": ("x",), "tx": ("x", "x"), "p": ("w", "x", None)},
)
def factorial_hmm():
    def model(y):
        iw, tw, ix, tx = simplex("iw", 2), simplex("tw", 2, 2), simplex("ix", K), simplex("tx", K, K)
        p, w, x = S("p", dist.Beta(1.0, 1.0).expand([2, K, 3]).to_event(3)), None, None
        for t in pyro.markov(range(T)):
            w, x = category(f"w_{t}", iw if t == 0 else tw[w]), category(f"x_{t}", ix if t == 0 else tx[x])
            with plate(f"tones_{t}", 3):
                S(f"y_{t}", dist.Bernoulli(p[w.squeeze(-1), x.squeeze(-1)]), obs=y[t])

    return markov(model)


@program("autoregressive chain: intercept, slope and noise by state", HMM | {"phi": ("k",), "sd": ("k",)})
def autoregressive_hmm():
    def model(y):
        init, trans, loc = tables()
        phi, sd, x = normal("phi", K), positive("sd", K), None
        for t in pyro.markov(range(T)):
            x = category(f"x_{t}", init if t == 0 else trans[x])
            S(f"y_{t}", dist.Normal(loc[x] + (phi[x] * y[t - 1] if t else 0.0), sd[x]), obs=y[t])

    return model, (torch.randn(T),)


@program("a chain for each subject, emission effects by subject (mixed HMM)", HMM | {"effect": (None, "k")})
def mixed_hmm():
    def model(y):
        init, trans, loc = tables()
        effect = normal("effect", 3, K)
        with plate("subjects", 3):
            emissions = dist.Normal((loc + effect)[:, None], 1.0)
            S("y", dist.DiscreteHMM(init.log(), trans.log(), emissions, duration=T), obs=y)

    return model, (torch.randn(3, T),)


@program("transitions that depend on a covariate", {"init": ("k",), "a": ("k", "k"), "b": ("k", "k"), "loc": ("k",)})
def covariate_transitions():
    def model(u, y):
        init, a, b, loc = simplex("init", K), normal("a", K, K), normal("b", K, K), normal("loc", K)
        trans = a + b * u[:, None, None]
        S("y", dist.DiscreteHMM(init.log(), trans.log_softmax(-1), dist.Normal(loc, 1.0), duration=T), obs=y)

    return model, (torch.randn(T), torch.randn(T))


@program("mixture of Markov chains (clickstreams)", {"w": ("k",), "init": ("k", None), "trans": ("k", None, None)})
def mixture_of_chains():
    def model(y):
        w, init, trans = simplex("w", 2), simplex("init", K, 2), simplex("trans", K, 2, K)
        with plate("users", len(y)):
            z = category("z", w)
            for t in range(T):
                probs = init[z] if t == 0 else pyro.ops.indexing.Vindex(trans)[z, y[:, t - 1]]
                S(f"y_{t}", dist.Categorical(probs), obs=y[:, t])

    return model, (torch.randint(0, K, (5, T)),)


@program("regime-switching regression (Hamilton 1989), two regimes", {"stay": (None,), "beta": (None, None)})
def regime_switching():
    def model(x, y):
        stay, beta = S("stay", dist.Beta(9.0, 1.0).expand([2]).to_event(1)), normal("beta", 2, 2)
        trans = torch.stack([torch.stack([stay[0], 1 - stay[0]]), torch.stack([1 - stay[1], stay[1]])])
        start = torch.tensor([0.7, 0.3]).log()
        S("y", dist.DiscreteHMM(start, trans.log(), dist.Normal(x @ beta.T, 1.0), duration=T), obs=y)

    return model, (torch.randn(T, 2), torch.randn(T))


@program(
    "pyro.distributions.GaussianHMM with sampled matrices: states are interchangeable",
    {"a": ("s", "s"), "c": ("s", None)},
)
def gaussian_hmm():
    def model(y):
        a, c = 0.3 * normal("a", 3, 3), normal("c", 3, 2)
        prior = dist.Normal(torch.zeros(3), 1.0).to_event(1)
        S(
            "y",
            dist.GaussianHMM(
                prior,
                a,
                dist.Normal(torch.zeros(3), 1.0).to_event(1),
                c,
                dist.Normal(torch.zeros(2), 1.0).to_event(1),
                duration=T,
            ),
            obs=y,
        )

    return model, (torch.randn(T, 2),)


@program(
    "linear dynamical system with sampled states",
    {"a": ("s", "s"), "c": (None, "s"), **{f"z_{t}": ("s",) for t in range(T)}},
)
def linear_dynamical_system():
    def model(y):
        a, c = normal("a", 3, 3), normal("c", 2, 3)
        z = torch.zeros(3)
        for t in pyro.markov(range(T)):
            z = S(f"z_{t}", dist.Normal(0.3 * a @ z, 1.0).to_event(1))
            S(f"y_{t}", dist.Normal(c @ z, 1.0).to_event(1), obs=y[t])

    return model, (torch.randn(T, 2),)


@program("dynamic factor model, states as one site by cumulative sums", {"steps": (None, "f"), "load": ("f", None)})
def dynamic_factors():
    def model(y):
        steps, load = normal("steps", T, K), normal("load", K, 4)
        S("y", dist.Normal(steps.cumsum(0) @ load, 1.0).to_event(2), obs=y)

    return model, (torch.randn(T, 4),)


@program("local level, innovations sampled", {})
def local_level():
    def model(y):
        sd, level = S("sd", dist.HalfNormal(1.0)), normal("level")
        steps = normal("steps", T)
        S("y", dist.Normal(level + sd * steps.cumsum(0), 0.5).to_event(1), obs=y)

    return model, (torch.randn(T),)


@program("stochastic volatility (Kim et al. 1998)", {})
def stochastic_volatility():
    def model(y):
        phi, sd = S("phi", dist.Beta(20.0, 1.5)), S("sd", dist.HalfCauchy(0.5))
        h = S("h_0", dist.Normal(0.0, 1.0))
        for t in range(T):
            h = S(f"h_{t + 1}", dist.Normal(phi * h, sd))
            S(f"y_{t}", dist.Normal(0.0, (h / 2).exp()), obs=y[t])

    return model, (torch.randn(T),)


@program("factor stochastic volatility", {"load": (None, "f"), "steps": ("f", None), "sd": ("f",)})
def factor_volatility():
    def model(y):
        load, steps, sd = (
            normal("load", 3, 2),
            normal("steps", 2, T),
            S("sd", dist.HalfNormal(1.0).expand([2]).to_event(1)),
        )
        h = (sd[:, None] * steps).cumsum(-1)
        cov = torch.einsum("if,ft,jf->tij", load, h.exp(), load) + 0.5 * torch.eye(3)
        with plate("time", T):
            S("y", dist.MultivariateNormal(torch.zeros(3), cov), obs=y)

    return model, (torch.randn(T, 3),)


@program("change point summed out over its place: levels before and after differ", {})
def change_point():
    def model(y):
        before, after = normal("before"), normal("after")
        times = torch.arange(T)
        logs = torch.stack(
            [
                torch.where(times < c, dist.Normal(before, 1.0).log_prob(y), dist.Normal(after, 1.0).log_prob(y)).sum()
                for c in range(1, T)
            ]
        )
        pyro.factor("y", logs.logsumexp(0))

    return model, (torch.randn(T),)


@program("seasonal effects with trend (structural series)", {})
def structural_series():
    def model(y):
        season, slope = normal("season", 2), normal("slope")
        index = torch.arange(T)
        S("y", dist.Normal(slope * index + season[index % 2], 1.0).to_event(1), obs=y)

    return model, (torch.randn(T),)


@program("sum of damped oscillators, exchangeable", {"freq": ("k",), "amp": ("k",), "decay": ("k",), "phase": ("k",)})
def oscillators():
    def model(y):
        freq, amp, decay, phase = positive("freq", K), normal("amp", K), positive("decay", K), normal("phase", K)
        t = torch.arange(T)
        wave = (amp[:, None] * torch.exp(-decay[:, None] * t) * torch.cos(freq[:, None] * t + phase[:, None])).sum(0)
        S("y", dist.Normal(wave, 1.0).to_event(1), obs=y)

    return model, (torch.randn(T),)


@program("Hawkes process intensities as a sum of exponential kernels", {"alpha": ("k",), "beta": ("k",)})
def self_exciting():
    def model(times):
        mu, alpha, beta = positive("mu"), positive("alpha", K), positive("beta", K)
        gaps = (times[:, None] - times[None, :]).clamp(min=0.0)
        past = times[:, None] > times[None, :]
        kernel = (alpha * beta * torch.exp(-beta * gaps[..., None])).sum(-1)
        intensity = mu + (kernel * past).sum(1)
        pyro.factor(
            "events", intensity.log().sum() - mu * 5 - (alpha * (1 - torch.exp(-beta * (5 - times)[:, None]))).sum()
        )

    return model, (torch.rand(5).cumsum(0),)
