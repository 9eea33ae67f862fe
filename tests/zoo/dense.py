"""Dense networks: one atom a hidden layer."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from problems import bayesian, normal, observe, problem
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import nn

from pyro_align.axes import Atom, Odd

MLP = {"0.weight": ("h", None), "0.bias": ("h",), "2.weight": ("k", "h"), "2.bias": ("k",), "4.weight": (None, "k")}


def mlp(*middle: nn.Module) -> nn.Sequential:
    """3 -> 5 -> 4 -> 2."""
    a, b = middle or (nn.Tanh(), nn.ReLU())
    return nn.Sequential(nn.Linear(3, 5), a, nn.Linear(5, 4), b, nn.Linear(4, 2))


@problem({"w1": ("h", None), "b1": ("h",), "w2": (None, "h")}, odd="h")
def functional_mlp():
    def model(x, y):
        w1, b1, w2 = normal("w1", 5, 3), normal("b1", 5), normal("w2", 2, 5)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(torch.tanh(x @ w1.T + b1) @ w2.T, 0.5).to_event(1), obs=y)

    return model, (torch.randn(6, 3), torch.randn(6, 2))


@problem(MLP, odd="h")
def lifted_mlp():
    return bayesian(mlp()), (torch.randn(6, 3),)


@problem({"w0": ("a", None), "w1": ("b", "a"), "w2": ("c", "b"), "w3": (None, "c")})
def deep_mlp_of_equal_widths():
    def model(x):
        h = x
        for i, (n, m) in enumerate([(4, 4), (4, 4), (4, 4), (4, 4)]):
            h = torch.relu(h @ normal(f"w{i}", n, m).T)
        observe(h)

    return model, (torch.randn(5, 4),)


@problem({"w1": (None, None), "w2": (None, None)})
def mlp_of_width_one():
    def model(x):
        h = torch.tanh(x @ normal("w1", 1, 3).T) @ normal("w2", 2, 1).T
        observe(h)

    return model, (torch.randn(5, 3),)


class Regression(PyroModule):
    """A ``PyroModule`` with ``PyroSample`` weights and a sampled noise scale."""

    def __init__(self):
        super().__init__()
        self.hidden = PyroModule[nn.Linear](3, 5)
        self.hidden.weight = PyroSample(dist.Normal(0.0, 1.0).expand([5, 3]).to_event(2))
        self.hidden.bias = PyroSample(dist.Normal(0.0, 1.0).expand([5]).to_event(1))
        self.out = PyroModule[nn.Linear](5, 1)
        self.out.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 5]).to_event(2))
        self.out.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        mean = self.out(torch.tanh(self.hidden(x))).squeeze(-1)
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(mean, sigma), obs=y)


@problem({"hidden.weight": ("h", None), "hidden.bias": ("h",), "out.weight": (None, "h"), "out.bias": (None,)}, odd="h")
def pyro_module():
    return Regression(), (torch.randn(6, 3), torch.randn(6))


class Lifted(PyroModule):
    """A plain module made Bayesian in place by ``to_pyro_module_``."""

    def __init__(self, net: nn.Module):
        super().__init__()
        to_pyro_module_(net)
        for module in net.modules():
            for name, value in list(module.named_parameters(recurse=False)):
                setattr(module, name, PyroSample(dist.Normal(0.0, 1.0).expand(value.shape).to_event(value.dim())))
        self.net = net

    def forward(self, x):
        mean = self.net(x)
        observe(mean)


@problem({f"net.{k}": v for k, v in MLP.items()}, odd="h")
def to_pyro_module():
    return Lifted(mlp()), (torch.randn(6, 3),)


@problem(
    {
        "net.net.0.weight": ("h", None),
        "net.net.0.bias": ("h",),
        "net.net.2.weight": ("k", "h"),
        "net.net.2.bias": ("k",),
        "net.net.4.weight": (None, "k"),
    },
    odd="h",
)
def nested_modules():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            return self.net(x)

    return Lifted(Wrapper()), (torch.randn(6, 3),)


@problem(MLP, odd="h")
def plain_module():
    return mlp(), (torch.randn(6, 3),)


@problem(
    {
        "0.weight": ("h", None),
        "0.bias": ("h",),
        "1.weight": ("h",),
        "1.bias": ("h",),
        "3.weight": ("k", "h"),
        "3.bias": ("k",),
        "4.weight": ("k",),
        "4.bias": ("k",),
        "6.weight": (None, "k"),
    }
)
def mlp_with_layer_norm():
    net = nn.Sequential(
        nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 3), nn.LayerNorm(3), nn.SiLU(), nn.Linear(3, 2)
    )
    return bayesian(net), (torch.randn(6, 3),)


BATCH_NORM = {
    "0.weight": ("h", None),
    "0.bias": ("h",),
    "1.weight": ("h",),
    "1.bias": ("h",),
    "1.running_mean": ("h",),
    "1.running_var": ("h",),
    "3.weight": (None, "h"),
}


# What comes before may change sign with the gain.
BATCH_NORM_SIGNS = {
    "0.weight": (Odd("h"), None),
    "0.bias": (Odd("h"),),
    "1.weight": (Odd("h"),),
    "1.running_mean": (Odd("h"),),
}


def batch_norm_net() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 1.5)
    return net


@problem(BATCH_NORM, oracle=False, signs=BATCH_NORM_SIGNS)
def module_with_batch_norm_in_evaluation():
    return batch_norm_net().eval(), (torch.randn(6, 3),)


@problem(BATCH_NORM, oracle=False, signs=BATCH_NORM_SIGNS)
def module_with_batch_norm_in_training():
    return batch_norm_net(), (torch.randn(6, 3),)


@problem(
    {f"net.{k}": v for k, v in BATCH_NORM.items()},
    parameters=True,
    signs={f"net.{k}": v for k, v in BATCH_NORM_SIGNS.items()},
)
def statistics_as_sites():
    net = batch_norm_net().eval()
    shapes = {k: p.shape for k, p in net.named_parameters()}

    def model(x):
        values = {k: normal(f"net.{k}", *shape) for k, shape in shapes.items()}
        mean = torch.func.functional_call(net, values, (x,))
        observe(mean)

    return model, (torch.randn(6, 3),)


@problem({k: (None,) * len(v) for k, v in BATCH_NORM.items() if "running" not in k})
def statistics_as_constants():
    return bayesian(batch_norm_net().eval()), (torch.randn(6, 3),)


@problem({"w1": ("h", None), "scale": ("h",), "w2": (None, "h")}, parameters=True)
def pyro_params():
    def model(x):
        w1 = pyro.param("w1", torch.randn(5, 3))
        scale = pyro.param("scale", torch.rand(5) + 0.5, constraint=dist.constraints.positive)
        w2 = normal("w2", 2, 5)
        mean = (torch.relu(x @ w1.T) * scale) @ w2.T
        observe(mean)

    return model, (torch.randn(6, 3),)


class Announced(pyro.nn.PyroModule):
    """A PyroModule announces its `nn.Parameter`s as param sites, and computes with its own tensors."""

    def __init__(self):
        super().__init__()
        self.layer = pyro.nn.PyroModule[torch.nn.Linear](3, 5)
        self.gain = torch.nn.Parameter(torch.rand(5) + 0.5)

    def forward(self, x):
        mean = (torch.relu(self.layer(x)) * self.gain) @ normal("w2", 2, 5).T
        observe(mean)


@problem(
    {"layer.weight": ("h", None), "layer.bias": ("h",), "gain": ("h",), "w2": (None, "h")},
    parameters=True,
    oracle=False,
    signs={"gain": (Odd("h"),), "w2": (None, Odd("h"))},
)
def parameters_of_a_pyro_module():
    return Announced(), (torch.randn(6, 3),)


@problem({"net.weight": ("h", None), "net.bias": ("h",), "w2": (None, "h")}, parameters=True, oracle=False)
def parameters_of_a_registered_module():
    net = torch.nn.Linear(3, 5)

    def model(x):
        pyro.module("registered", net)
        mean = torch.relu(net(x)) @ normal("w2", 2, 5).T
        observe(mean)

    return model, (torch.randn(6, 3),)


@problem({"w2": (None, "h"), "w1": ("h", None)}, parameters=True)
def a_parameter_that_nothing_depends_on():
    def model(x):
        pyro.param("idle", torch.randn(4))
        mean = torch.relu(x @ normal("w1", 5, 3).T) @ normal("w2", 2, 5).T
        observe(mean)

    return model, (torch.randn(6, 3),)


@problem({"w2": (None, None)})
def params_as_constants():
    def model(x):
        w1 = pyro.param("w1", torch.randn(5, 3))
        mean = torch.relu(x @ w1.T) @ normal("w2", 2, 5).T
        observe(mean)

    return model, (torch.randn(6, 3),)


@problem(
    {
        "shared.weight": ("h", "h"),
        "shared.bias": ("h",),
        "first.weight": ("h", None),
        "first.bias": ("h",),
        "last.weight": (None, "h"),
    },
    odd="h",
)
def shared_module_called_twice():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.shared, self.last = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x):
            h = torch.tanh(self.first(x))
            return self.last(torch.tanh(self.shared(torch.tanh(self.shared(h)))))

    return bayesian(Shared()), (torch.randn(6, 3),)


@problem({"up.weight": ("h", None), "up.bias": ("h",), "down.weight": (None, "h")})
def skip_from_the_input():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(3, 5), nn.Linear(5, 3)

        def forward(self, x):
            return x + self.down(torch.relu(self.up(x)))

    return bayesian(Skip()), (torch.randn(6, 3),)


@problem(
    {"up.weight": (["h", "h"], None), "up.bias": (["h", "h"],), "down.weight": (None, "h")},
    signs={"up.weight": (["h", Odd("h")], None), "up.bias": (["h", Odd("h")],), "down.weight": (None, Odd("h"))},
)
def gated_linear_unit():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(3, 10), nn.Linear(5, 2)

        def forward(self, x):
            gate, value = self.up(x).chunk(2, -1)
            return self.down(nn.functional.silu(gate) * value)

    return bayesian(Gated()), (torch.randn(6, 3),)


@problem(
    {
        "w1": ([Atom("a", 3), None, Atom("b", 4)], None),
        "w2": (None, [Atom("a", 3), None]),
        "w3": (None, [Atom("b", 4), None]),
    }
)
def units_that_feed_different_places():
    def model(x):
        h = torch.relu(x @ normal("w1", 8, 3).T)  # the fourth unit feeds both
        a = h[:, :4] @ normal("w2", 2, 4).T
        b = torch.cat([h[:, 4:], h[:, 3:4]], -1) @ normal("w3", 2, 5).T
        observe(a + 2 * b)

    return model, (torch.randn(6, 3),)


# All seven units are interchangeable, but no axis term can put one atom's units to both sides of a fixed piece.
@problem({"w1": ([Atom("a", 4), Atom("b", 3)], None), "w2": (None, ["a", None, "b"])}, oracle=False)
def skip_concatenation():
    def model(x):
        h = torch.relu(x @ normal("w1", 7, 2).T)
        features = torch.cat([h[:, :4], x, h[:, 4:]], -1)
        observe(features @ normal("w2", 2, 9).T)

    return model, (torch.randn(6, 2),)


@problem({"w1": ("h", None), "w2": (None, "h")}, scope="likelihood", odd="h")
def priors_left_out():
    prior = torch.randn(5, 3)

    def fixed_prior(x):
        w1 = pyro.sample("w1", dist.Normal(prior, 1.0).to_event(2))
        mean = torch.tanh(x @ w1.T) @ normal("w2", 2, 5).T
        observe(mean)

    return fixed_prior, (torch.randn(6, 3),)


@problem({"w1": ("h", None), "w2": (None, "h")}, odd="h")
def subsampled_scaled_masked():
    def model(x, y):
        w1, w2 = normal("w1", 5, 3), normal("w2", 1, 5)
        with pyro.plate("data", len(x), subsample_size=4) as index, pyro.poutine.scale(scale=0.5):
            mean = (torch.tanh(x[index] @ w1.T) @ w2.T).squeeze(-1)
            with pyro.poutine.mask(mask=torch.tensor([True, True, False, True])):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y[index])

    return model, (torch.randn(9, 3), torch.randn(9))


@problem({"w1": ("h", None), "w2": (None, "h")}, odd="h")
def blocked_site():
    def model(x):
        with pyro.poutine.block(hide=["extra"]):
            extra = pyro.sample("extra", dist.Delta(torch.tensor(2.0)))
        mean = torch.tanh(x @ normal("w1", 5, 3).T) @ normal("w2", 2, 5).T
        observe(mean * extra)

    return model, (torch.randn(6, 3),)


@problem({"w1": ("m", "h", None), "b1": ("m", "h"), "w2": ("m", None, "h")}, within={"h": "m"}, odd="h")
def ensemble_averaged():
    def model(x):
        w1, b1, w2 = normal("w1", 3, 4, 2), normal("b1", 3, 4), normal("w2", 3, 2, 4)
        h = torch.tanh(torch.einsum("mhd,nd->mnh", w1, x) + b1[:, None])
        mean = torch.einsum("mnh,moh->mno", h, w2).mean(0)
        observe(mean)

    return model, (torch.randn(5, 2),)


@problem({"w1": ("m!", "h", None), "w2": ("m!", None, "h")}, within={"h": "m!"}, odd="h")
def ensemble_of_members_kept_apart():
    def model(x, y):
        w1, w2 = normal("w1", 3, 4, 2), normal("w2", 3, 2, 4)
        mean = torch.einsum("mnh,moh->mno", torch.tanh(torch.einsum("mhd,nd->mnh", w1, x)), w2)
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(3), obs=y)

    return model, (torch.randn(5, 2), torch.randn(3, 5, 2))


@problem({"gate": ("e", None), "up": ("e", "h", None), "down": ("e", None, "h")}, within={"h": "e"})
def mixture_of_experts():
    def model(x):
        gate, up, down = normal("gate", 3, 2), normal("up", 3, 4, 2), normal("down", 3, 2, 4)
        p = (x @ gate.T).softmax(-1)
        h = torch.relu(torch.einsum("ehd,nd->neh", up, x))
        mean = torch.einsum("ne,neh,eoh->no", p, h, down)
        observe(mean)

    return model, (torch.randn(5, 2),)
