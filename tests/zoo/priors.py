"""Priors: hierarchical ones join their scales to the units, others tell units apart."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from problems import normal, observe, problem

from pyro_align.axes import Odd


def net(x, w1, w2):
    return torch.tanh(x @ w1.T) @ w2.T


@problem(
    {"scale": ("h",), "w1": ("h", None), "w2": (None, "h")}, signs={"w1": (Odd("h"), None), "w2": (None, Odd("h"))}
)
def scale_for_each_unit():
    def model(x):
        scale = pyro.sample("scale", dist.HalfCauchy(torch.ones(4)).to_event(1))
        w1 = pyro.sample("w1", dist.Normal(0.0, scale[:, None]).expand([4, 3]).to_event(2))
        observe(net(x, w1, normal("w2", 2, 4)))

    return model, (torch.randn(5, 3),)


@problem({"ard": (None,), "w1": ("h", None), "w2": (None, "h")}, odd="h")
def automatic_relevance_determination_of_inputs():
    def model(x):
        ard = pyro.sample("ard", dist.Gamma(torch.ones(3), 1.0).to_event(1))
        w1 = pyro.sample("w1", dist.Normal(0.0, ard.rsqrt()).expand([4, 3]).to_event(2))
        observe(net(x, w1, normal("w2", 2, 4)))

    return model, (torch.randn(5, 3),)


@problem(
    {"tau": (), "lambda": ("h",), "local": ("h", None), "w1": ("h", None), "w2": (None, "h")},
    signs={"w1": (Odd("h"), None), "w2": (None, Odd("h"))},
)
def horseshoe():
    def model(x):
        tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(1.0)))
        unit = pyro.sample("lambda", dist.HalfCauchy(torch.ones(4)).to_event(1))
        local = pyro.sample("local", dist.HalfCauchy(torch.ones(4, 3)).to_event(2))
        w1 = pyro.sample("w1", dist.Normal(0.0, tau * unit[:, None] * local).to_event(2))
        observe(net(x, w1, normal("w2", 2, 4)))

    return model, (torch.randn(5, 3),)


@problem(
    {"tau": (), "c2": (), "lambda": ("h",), "w1": ("h", None), "w2": (None, "h")},
    signs={"w1": (Odd("h"), None), "w2": (None, Odd("h"))},
)
def regularized_horseshoe():
    """Piironen & Vehtari 2017, non-centered."""

    def model(x):
        tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(1.0)))
        c2 = pyro.sample("c2", dist.InverseGamma(torch.tensor(2.0), torch.tensor(8.0)))
        unit = pyro.sample("lambda", dist.HalfCauchy(torch.ones(4)).to_event(1))
        scale = (c2 * unit**2 / (c2 + tau**2 * unit**2)).sqrt() * tau
        observe(net(x, normal("w1", 4, 3) * scale[:, None], normal("w2", 2, 4)))

    return model, (torch.randn(5, 3),)


@problem({"mu": ("h",), "sigma": (), "w1": ("h", None), "w2": (None, "h")}, odd="h")
def hierarchical_mean():
    def model(x):
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        with pyro.plate("units", 4):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            w1 = pyro.sample("w1", dist.Normal(mu[:, None].expand(4, 3), sigma).to_event(1))
        observe(net(x, w1, normal("w2", 2, 4)))

    return model, (torch.randn(5, 3),)


@problem({"w1": (None, None), "w2": (None, None)})
def another_scale_for_every_unit():
    def model(x):
        w1 = pyro.sample("w1", dist.Normal(0.0, torch.linspace(1, 2, 4)[:, None]).expand([4, 3]).to_event(2))
        observe(net(x, w1, normal("w2", 2, 4)))

    return model, (torch.randn(5, 3),)


BLOCKS = {"w1": (["a", "b"], None), "w2": (None, ["a", "b"])}


def sized(axes):
    from pyro_align.axes import Atom

    size = {"a": Atom("a", 2), "b": Atom("b", 3)}
    return {k: tuple([size[n] for n in t] if isinstance(t, list) else t for t in v) for k, v in axes.items()}


@problem(sized(BLOCKS), odd=("a", "b"))
def blocks_of_equal_scale():
    def model(x):
        scale = torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0])
        w1 = pyro.sample("w1", dist.Normal(0.0, scale[:, None]).expand([5, 3]).to_event(2))
        observe(net(x, w1, normal("w2", 2, 5)))

    return model, (torch.randn(5, 3),)


@problem(
    {"w1": ("h", None), "w2": (None, "h"), "scale": ("h",)}, signs={"w1": (Odd("h"), None), "w2": (None, Odd("h"))}
)
def scale_shared_by_incoming_and_outgoing_weights():
    def model(x):
        with pyro.plate("units", 4, dim=-1):
            scale = pyro.sample("scale", dist.Exponential(1.0))
        w1 = pyro.sample("w1", dist.Normal(0.0, scale.unsqueeze(-1)).expand([4, 3]).to_event(2))
        w2 = pyro.sample("w2", dist.Laplace(0.0, scale).expand([2, 4]).to_event(2))
        observe(net(x, w1, w2))

    return model, (torch.randn(5, 3),)


@problem({"w1": ("h", None), "w2": (None, "h")}, odd="h")
def correlated_prior_over_inputs():
    a = torch.randn(3, 3)
    tril = torch.linalg.cholesky(a @ a.T + torch.eye(3))

    def model(x):
        w1 = pyro.sample("w1", dist.MultivariateNormal(torch.zeros(3), scale_tril=tril).expand([4]).to_event(1))
        observe(net(x, w1, normal("w2", 2, 4)))

    return model, (torch.randn(5, 3),)


@problem({"w1.0": ("h",), "w1.1": ("h",), "w1.2": ("h",), "w2": (None, "h")}, odd="h")
def weights_stacked_from_several_sites():
    def model(x):
        w1 = torch.stack([normal(f"w1.{i}", 4) for i in range(3)], -1)
        observe(net(x, w1, normal("w2", 2, 4)))

    return model, (torch.randn(5, 3),)


@problem({"z": ("h", None), "w2": (None, "h")}, odd="h")
def spike_and_slab_by_enumeration():
    from pyro.infer import config_enumerate

    @config_enumerate
    def model(x):
        z = normal("z", 3, 2)
        w2 = normal("w2", 2, 3)
        on = pyro.sample("on", dist.Bernoulli(torch.tensor(0.3)))
        mean = torch.tanh(x @ z.T) @ w2.T * (1 + on[..., None, None])
        data = torch.linspace(-1, 1, 8).view(4, 2)
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(2), obs=data)

    return model, (torch.randn(4, 2),)
