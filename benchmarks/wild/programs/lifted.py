"""Bayesian networks from modules: lifted, partly Bayesian, in loops and ensembles."""

import functools

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.distributions import constraints
from torch.nn import functional as F

from benchmarks.wild.catalog import modules, program
from benchmarks.wild.programs.common import S, bits, normal, plate
from benchmarks.wild.programs.networks import H, N, X, observe, regression


class Lifted(PyroModule):
    """A module whose parameters have priors by name, and what makes the mean from it."""

    def __init__(self, net, likelihood):
        super().__init__()
        pyro.nn.module.to_pyro_module_(net)
        for part in net.modules():
            for name, value in list(part.named_parameters(recurse=False)):
                setattr(part, name, PyroSample(dist.Normal(0.0, 0.5).expand(value.shape).to_event(value.dim())))
        self.net, self.likelihood = net, likelihood

    def forward(self, x, y):
        self.likelihood(self.net(x), y)


def classes(logits, y):
    with plate("data", len(y)):
        S("y", dist.Categorical(logits=logits), obs=y)


@program(
    "a lifted convolutional classifier",
    {
        "net.0.weight": ("c", None, None, None),
        "net.0.bias": ("c",),
        "net.3.weight": ("h", ("c", 4)),
        "net.3.bias": ("h",),
        "net.5.weight": (None, "h"),
    },
)
def lifted_convolutions():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.SiLU(), nn.Linear(5, 3))
    return Lifted(net, classes), (torch.randn(4, 1, 6, 6), torch.randint(0, 3, (4,)))


class Last(nn.Module):
    """An LSTM's last state, read."""

    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1]).squeeze(-1)


@program(
    "a lifted LSTM",
    {
        f"net.lstm.{p}": (["h"] * 4, *rest)
        for p, *rest in (("weight_ih_l0", None), ("weight_hh_l0", "h"), ("bias_ih_l0",), ("bias_hh_l0",))
    }
    | {"net.out.weight": (None, "h")},
)
def lifted_lstm():
    return Lifted(Last(), observe), (torch.randn(4, 3, 2), torch.randn(4))


@program("only the last layer is Bayesian, on fixed features", {"w": (None,)})
def last_layer():
    features = nn.Sequential(nn.Linear(X, H), nn.ReLU()).requires_grad_(False)

    def model(x, y):
        observe(features(x) @ normal("w", H), y)

    return model, regression()


@program(
    "a learned layer that is a parameter, beside Bayesian ones",
    {"w1": ("h", None), "middle": ("k", "h"), "w2": ("k",)},
    parameters=True,
)
def partly_bayesian():
    middle = torch.randn(5, H)

    def model(x, y):
        w1, w2 = normal("w1", H, X), normal("w2", 5)
        middle_weight = pyro.param("middle", middle)
        observe(torch.relu(torch.tanh(x @ w1.T) @ middle_weight.T) @ w2, y)

    return model, regression()


@program("a network with two outputs: mean and log scale", {"w1": ("h", None), "w2": (None, "h")})
def heteroscedastic():
    def model(x, y):
        mean, log_sd = (torch.tanh(x @ normal("w1", H, X).T) @ normal("w2", 2, H).T).unbind(-1)
        observe(mean, y, log_sd.exp())

    return model, regression()


@program("ensemble of members in a plate, averaged", {"w1": ("m", "h", None), "w2": ("m", "h")}, within={"h": "m"})
def plated_ensemble():
    def model(x, y):
        with plate("members", 3):
            w1 = S("w1", dist.Normal(0.0, 1.0).expand([H, X]).to_event(2))
            w2 = S("w2", dist.Normal(0.0, 1.0).expand([H]).to_event(1))
        observe(torch.einsum("mh,mhn->mn", w2, torch.tanh(w1 @ x.T)).mean(0), y)

    return model, regression()


@program(
    "layers in a loop with sites by number, widths equal",
    {"w0": ("a", None), "w1": ("b", "a"), "w2": ("c", "b"), "out": ("c",)},
)
def layers_in_a_loop():
    def model(x, y):
        h = x
        for i in range(3):
            h = F.gelu(h @ normal(f"w{i}", H, h.shape[1]).T)
        observe(h @ normal("out", H), y)

    return model, regression()


@program(
    "additive model: a small network for each input (NAM)",
    {f"w{i}": (f"h{i}",) for i in range(2)} | {f"v{i}": (f"h{i}",) for i in range(2)},
)
def additive_networks():
    def model(x, y):
        observe(sum(torch.tanh(x[:, i : i + 1] * normal(f"w{i}", H)) @ normal(f"v{i}", H) for i in range(2)), y)

    return model, regression()


@program(
    "functional network by partial and functional_call",
    {"0.weight": ("h", None), "0.bias": ("h",), "2.weight": (None, "h")},
)
def functional_call_network():
    net = nn.Sequential(nn.Linear(X, H), nn.Mish(), nn.Linear(H, 1))
    shapes = {k: list(p.shape) for k, p in net.named_parameters()}

    def model(x, y, *, net):
        values = {k: normal(k, *shape) for k, shape in shapes.items()}
        observe(torch.func.functional_call(net, values, (x,)).squeeze(-1), y)

    return functools.partial(model, net=net), regression()


@program("vmapped units", {"w1": ("h", None), "w2": ("h",)})
def vmapped_units():
    def model(x, y):
        w1, w2 = normal("w1", H, X), normal("w2", H)
        observe(torch.func.vmap(lambda w, v: v * torch.tanh(x @ w))(w1, w2).sum(0), y)

    return model, regression()


@program("a list of units as sites in a sequential plate", {}, moves=[(H, modules("w_{}", "v_{}"))])
def units_as_sites():
    def model(x, y):
        observe(sum(normal(f"v_{i}") * torch.tanh(x @ normal(f"w_{i}", X)) for i in plate("units", H)), y)

    return model, regression()


@program("a neural network in logits of a hurdle model", {"w1": ("h", None), "w2": ("h",), "w3": ("h",)})
def hurdle_network():
    def model(x, y):
        h = torch.sigmoid(x @ normal("w1", H, X).T)
        gate, rate = h @ normal("w2", H), h @ normal("w3", H)
        with plate("data", len(y)):
            S("y", dist.ZeroInflatedPoisson(rate.exp(), gate_logits=gate), obs=y)

    return model, (torch.randn(N, X), bits(N))


class DeepKernel(PyroModule):
    """A PyroModule with a parameter under a constraint beside its sampled layers."""

    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.tensor(1.0), constraint=constraints.positive)
        self.first = PyroModule[nn.Linear](X, H)
        self.first.weight = PyroSample(dist.Normal(0.0, 1.0).expand([H, X]).to_event(2))
        self.first.bias = PyroSample(lambda module: dist.Normal(0.0, module.spread).expand([H]).to_event(1))
        self.first.spread = PyroSample(dist.HalfNormal(1.0))

    def forward(self, x, y):
        h = torch.tanh(self.first(x))
        k = torch.exp(-0.5 * ((h[:, None] - h) / self.scale).square().sum(-1)) + 0.1 * torch.eye(len(x))
        S("y", dist.MultivariateNormal(torch.zeros(len(x)), k), obs=y)


@program(
    "deep kernel learning with sampled weights", {"first.weight": ("h", None), "first.bias": ("h",), "first.spread": ()}
)
def deep_kernel():
    return DeepKernel(), regression()
