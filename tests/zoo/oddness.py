"""Signs: activations that are odd and that are not, priors that are symmetric and that are not."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from problems import bayesian, normal, observe, problem
from torch import nn
from torch.nn import functional as F

from pyro_align.axes import Atom, Odd

TWO = {"w1": ("h", None), "w2": (None, "h")}
TURNED = {"w1": (Odd("h"), None), "w2": (None, Odd("h"))}


# -- depth and biases -------------------------------------------------------------------------------------------------


def tanh_axes(depth: int, bias: bool):
    """Site axes of a network of ``depth`` hidden layers of four units."""
    units = [None, *(f"h{i}" for i in range(depth)), None]
    axes = {}
    for i in range(depth + 1):
        axes[f"{2 * i}.weight"] = (units[i + 1], units[i])
        if bias:
            axes[f"{2 * i}.bias"] = (units[i + 1],)
    return axes


def tanh_net(depth: int, bias: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth + 1):
        layers += [nn.Linear(4 if i else 3, 4 if i < depth else 2, bias=bias), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


for _depth in (1, 2, 3):
    for _bias in (True, False):

        @problem(
            tanh_axes(_depth, _bias),
            odd=tuple(f"h{i}" for i in range(_depth)),
            name=f"tanh_of_depth_{_depth}{'_with_biases' if _bias else ''}",
        )
        def tanh_network(depth=_depth, bias=_bias):
            return bayesian(tanh_net(depth, bias)), (torch.randn(6, 3),)


@problem({**TWO, "b1": ("h",)})
def biases_with_a_mean():
    """The bias's prior has a location that is not zero: it tells a unit from its mirror image."""

    def model(x):
        w1, w2 = normal("w1", 4, 3), normal("w2", 2, 4)
        b1 = pyro.sample("b1", dist.Normal(0.5, 1.0).expand([4]).to_event(1))
        observe(torch.tanh(x @ w1.T + b1) @ w2.T)

    return model, (torch.randn(5, 3),)


# -- activations ------------------------------------------------------------------------------------------------------


def polynomial(x):
    """Odd, and made of even and odd powers."""
    return x**3 / (1 + x.square()) - 0.1 * x


ODD = {
    "sin": torch.sin,
    "erf": torch.erf,
    "asinh": torch.asinh,
    "softsign": F.softsign,
    "hardtanh": F.hardtanh,
    "tanhshrink": F.tanhshrink,
    "softshrink": lambda x: F.softshrink(x, 0.1),
    "polynomial": polynomial,
    "nothing": lambda x: x,
}
NOT_ODD = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "exponential": torch.exp,
    "leaky_relu": F.leaky_relu,
    "shifted_tanh": lambda x: torch.tanh(x + 0.3),
    "clamped_unevenly": lambda x: x.clamp(-0.5, 1.0),
    "larger_half": lambda x: torch.where(x > 0, x, 0.5 * x),
}

for _name, _function in ODD.items():

    @problem(TWO, odd="h", name=f"network_of_{_name}")
    def odd_network(function=_function):
        def model(x):
            observe(function(x @ normal("w1", 4, 3).T) @ normal("w2", 2, 4).T)

        return model, (torch.randn(5, 3),)


for _name, _function in NOT_ODD.items():

    @problem(TWO, name=f"network_of_{_name}")
    def network_that_is_not_odd(function=_function):
        def model(x):
            observe(function(x @ normal("w1", 4, 3).T) @ normal("w2", 2, 4).T)

        return model, (torch.randn(5, 3),)


for _name, _function in {"cosine": torch.cos, "square": torch.square, "absolute_value": torch.abs}.items():

    @problem(TWO, signs={"w1": (Odd("h"), None)}, name=f"network_of_{_name}")
    def even_network(function=_function):
        """The outgoing weights stay."""

        def model(x):
            observe(function(x @ normal("w1", 4, 3).T) @ normal("w2", 2, 4).T)

        return model, (torch.randn(5, 3),)


# -- architectures ----------------------------------------------------------------------------------------------------

CNN = {"0.weight": ("a", None, None, None), "0.bias": ("a",), "3.weight": ("b", "a", None, None), "3.bias": ("b",)}


def tanh_cnn(pool: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Tanh(),
        pool,
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


@problem({**CNN, "7.weight": (None, "b")}, odd=("a", "b"))
def tanh_convolutions_with_average_pooling():
    return bayesian(tanh_cnn(nn.AvgPool2d(2))), (torch.randn(2, 2, 4, 4),)


@problem({**CNN, "7.weight": (None, "b")}, odd="b")
def tanh_convolutions_with_max_pooling():
    return bayesian(tanh_cnn(nn.MaxPool2d(2))), (torch.randn(2, 2, 4, 4),)


@problem({"a.weight": ("a", None, None), "b.weight": ("a", "b", None), "c.weight": (None, ("b", None))}, odd=("a", "b"))
def tanh_transposed_convolution_and_flatten():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv1d(2, 3, 3, bias=False), nn.ConvTranspose1d(3, 4, 2, bias=False)
            self.c = nn.Linear(16, 2)

        def forward(self, x):
            return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))).flatten(1))

    return bayesian(Net()), (torch.randn(2, 2, 5),)


STREAM = {
    "embed.weight": ("s", None),
    **{f"{i}.up.weight": (f"h{i}", "s") for i in range(2)},
    **{f"{i}.down.weight": ("s", f"h{i}") for i in range(2)},
    "head.weight": (None, "s"),
}


class Stream(nn.Module):
    """A residual stream: two tanh layers read it and add to it."""

    def __init__(self, norm=lambda x: x, activation=torch.tanh):
        super().__init__()
        self.embed, self.head = nn.Linear(3, 4, bias=False), nn.Linear(4, 2)
        for i in range(2):
            layers = {"up": nn.Linear(4, 3, bias=False), "down": nn.Linear(3, 4, bias=False)}
            self.add_module(str(i), nn.ModuleDict(layers))
        self.norm, self.activation = norm, activation

    def forward(self, x):
        x = self.embed(x)
        for i in range(2):
            layer = getattr(self, str(i))
            x = x + layer["down"](self.activation(layer["up"](self.norm(x))))
        return self.head(x)


@problem(STREAM, odd=("s", "h0", "h1"))
def tanh_residual_stream():
    return bayesian(Stream()), (torch.randn(5, 3),)


@problem(STREAM, odd="s")
def residual_stream_through_root_mean_square():
    """RMSNorm does not see signs, unlike LayerNorm; the units are not odd."""
    return bayesian(Stream(lambda x: F.rms_norm(x, (4,)), F.gelu)), (torch.randn(5, 3),)


@problem(STREAM, odd=("h0", "h1"))
def residual_stream_through_layer_norm():
    """The mean over features, which LayerNorm subtracts, sees the sign of one of them."""
    return bayesian(Stream(lambda x: F.layer_norm(x, (4,)))), (torch.randn(5, 3),)


@problem({**TWO, "gamma": ("h",), "beta": ("h",)}, signs={**TURNED, "beta": (Odd("h"),)})
def batch_norm_before_tanh():
    """A unit may change sign in two ways, with its gain before or behind; the larger one leaves the gain alone."""

    def model(x):
        h = F.batch_norm(x @ normal("w1", 4, 3).T, None, None, normal("gamma", 4), normal("beta", 4), training=True)
        observe(torch.tanh(h) @ normal("w2", 2, 4).T)

    return model, (torch.randn(5, 3),)


@problem({"gate": ("e", None), "up": ("e", "h", None), "down": ("e", None, "h")}, within={"h": "e"}, odd="h")
def mixture_of_tanh_experts():
    def model(x):
        gate, up, down = normal("gate", 2, 2), normal("up", 2, 3, 2), normal("down", 2, 2, 3)
        p = (x @ gate.T).softmax(-1)
        h = torch.tanh(torch.einsum("ehd,nd->neh", up, x))
        observe(torch.einsum("ne,neh,eoh->no", p, h, down))

    return model, (torch.randn(5, 2),)


@problem({"w": ([Atom("a", 3), Atom("b", 2)], None), "v": (None, ["a", None, "b"])}, odd="a")
def odd_units_beside_others():
    """A concatenation of odd units, of data, and of units that are not odd."""

    def model(x):
        h = x @ normal("w", 5, 2).T
        h = torch.cat([torch.tanh(h[:, :3]), x, torch.relu(h[:, 3:])], -1)
        observe(h @ normal("v", 2, 7).T)

    return model, (torch.randn(5, 2),)


@problem({**TWO, "v": ("h", "h")}, odd="h")
def recurrence_from_a_state_of_zeros():
    def model(x):
        w, v = normal("w1", 4, 2), normal("v", 4, 4)
        state = x.new_zeros(len(x), 4)
        for t in range(x.shape[1]):
            state = torch.sin(x[:, t] @ w.T + state @ v.T)
        observe(state @ normal("w2", 2, 4).T)

    return model, (torch.randn(3, 3, 2),)


@problem({**TWO, "v": ("h", "h")})
def recurrence_from_a_state_of_ones():
    """All units start alike, but none like its mirror image."""

    def model(x):
        w, v = normal("w1", 4, 2), normal("v", 4, 4)
        state = x.new_ones(len(x), 4)
        for t in range(x.shape[1]):
            state = torch.sin(x[:, t] @ w.T + state @ v.T)
        observe(state @ normal("w2", 2, 4).T)

    return model, (torch.randn(3, 3, 2),)


@problem(tanh_axes(2, True), odd=("h0", "h1"))
def plain_tanh_module():
    return tanh_net(2, True), (torch.randn(6, 3),)


# -- priors -----------------------------------------------------------------------------------------------------------

SYMMETRIC = {
    "laplace": lambda: dist.Laplace(0.0, 1.0),
    "student": lambda: dist.StudentT(3.0, 0.0, 2.0),
    "cauchy": lambda: dist.Cauchy(0.0, 1.0),
}
NOT_SYMMETRIC = {
    "student_with_a_location": lambda: dist.StudentT(3.0, 0.1, 2.0),
    "positive": lambda: dist.HalfNormal(1.0),
    "exponential": lambda: dist.Exponential(1.0),
    "lognormal": lambda: dist.LogNormal(0.0, 1.0),
    "gumbel": lambda: dist.Gumbel(0.0, 1.0),
}


def tanh_with_prior(prior):
    def model(x):
        w1 = pyro.sample("w1", prior().expand([4, 3]).to_event(2))
        observe(torch.tanh(x @ w1.T) @ normal("w2", 2, 4).T)

    return model, (torch.randn(5, 3),)


for _name, _prior in SYMMETRIC.items():

    @problem(TWO, odd="h", name=f"{_name}_prior")
    def symmetric_prior(prior=_prior):
        return tanh_with_prior(prior)


for _name, _prior in NOT_SYMMETRIC.items():

    @problem(TWO, name=f"{_name}_prior")
    def prior_that_is_not_symmetric(prior=_prior):
        return tanh_with_prior(prior)


@problem({**TWO, "sigma": ("h",)}, signs=TURNED)
def relevance_of_units():
    def model(x):
        sigma = pyro.sample("sigma", dist.LogNormal(torch.zeros(4), 1.0).to_event(1))
        w1 = pyro.sample("w1", dist.Normal(0.0, sigma[:, None]).expand([4, 3]).to_event(2))
        observe(torch.tanh(x @ w1.T) @ normal("w2", 2, 4).T)

    return model, (torch.randn(5, 3),)


@problem({"mu": ("h",), "offset": ("h", None), "tau": (), "w2": (None, "h")}, odd="h")
def hierarchical_mean_not_centered():
    def model(x):
        mu, offset = normal("mu", 4), normal("offset", 4, 3)
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        observe(torch.tanh(x @ (mu[:, None] + tau * offset).T) @ normal("w2", 2, 4).T)

    return model, (torch.randn(5, 3),)


@problem({"mu": ("h",), **TWO})
def hierarchical_mean_with_a_mean():
    """The location is a site, but has a location that is not zero."""

    def model(x):
        mu = pyro.sample("mu", dist.Normal(1.0, 1.0).expand([4]).to_event(1))
        w1 = pyro.sample("w1", dist.Normal(mu[:, None], 1.0).expand([4, 3]).to_event(2))
        observe(torch.tanh(x @ w1.T) @ normal("w2", 2, 4).T)

    return model, (torch.randn(5, 3),)


@problem({"w": (None, "f"), "z": (None, "f"), "scale": ("f",)}, signs={"w": (None, Odd("f")), "z": (None, Odd("f"))})
def factors_with_scales():
    def model(x):
        scale = pyro.sample("scale", dist.Gamma(torch.ones(2), 1.0).to_event(1))
        w = pyro.sample("w", dist.Normal(0.0, scale).expand([4, 2]).to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w.T, 1.0).to_event(1), obs=x)

    return model, (torch.randn(5, 4),)


@problem({"w": (None, "f"), "z": (None, "f")})
def factors_that_are_not_negative():
    """Non-negative matrix factorization: parts are relabeled, and have no signs."""

    def model(x):
        w = pyro.sample("w", dist.HalfNormal(torch.ones(4, 2)).to_event(2))
        z = pyro.sample("z", dist.Gamma(torch.ones(5, 2), 1.0).to_event(2))
        pyro.sample("x", dist.Poisson(z @ w.T + 0.1).to_event(2), obs=x)

    return model, (torch.arange(20.0).view(5, 4),)


@problem({"w": ("f", None), "weights": ("f",)}, signs={"w": (Odd("f"), None)})
def simplex_under_a_flat_prior():
    """Equal concentrations leave the density of the weights flat, but a simplex has no negative side."""

    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        observe((weights.square()[:, None] * normal("w", 3, 2).square()).sum(0) * x)

    return model, (torch.randn(4, 2),)
