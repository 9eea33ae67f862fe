"""Bayesian neural networks, in the ways that people write them."""

import pyro.distributions as dist
import torch
from torch.nn import functional as F

from benchmarks.wild.catalog import program
from benchmarks.wild.programs.common import S, normal, plate, positive

N, X, H = 6, 3, 4
TWO = {"w1": ("h", None), "b1": ("h",), "w2": (None, "h")}


def regression():
    return torch.randn(N, X), torch.randn(N)


def observe(mean, y, sd=0.5):
    with plate("data", len(y)):
        S("y", dist.Normal(mean, sd), obs=y)


@program("all weights in one vector, cut and reshaped", {"theta": ([("h", X), "h", "h", None],)}, sizes={"h": H})
def flat_parameter_vector():
    def model(x, y):
        theta = normal("theta", H * X + 2 * H + 1)
        w1, b1, w2, b2 = theta.split([H * X, H, H, 1])
        observe(torch.tanh(x @ w1.view(H, X).T + b1) @ w2 + b2, y)

    return model, regression()


@program("a plate of units in place of events", {"w1": (None, "h"), "b1": ("h",), "w2": ("h",)})
def units_in_a_plate():
    def model(x, y):
        with plate("units", H):
            b1, w2 = S("b1", dist.Normal(0.0, 1.0)), S("w2", dist.Normal(0.0, 1.0))
            with plate("inputs", X):
                w1 = S("w1", dist.Normal(0.0, 1.0))
        observe(F.relu(x @ w1 + b1) @ w2, y)

    return model, regression()


@program("output weights with MultivariateNormal(0, I)", TWO | {"w2": ("h",)})
def output_weights_multivariate():
    def model(x, y):
        w1, b1 = normal("w1", H, X), normal("b1", H)
        w2 = S("w2", dist.MultivariateNormal(torch.zeros(H), 0.5 * torch.eye(H)))
        observe(torch.tanh(x @ w1.T + b1) @ w2, y)

    return model, regression()


@program("rows of weights with a Gaussian process over inputs' places", {"w1": ("h", None), "w2": ("h",)})
def smooth_rows():
    def model(x, y):
        places = torch.arange(X)
        kernel = torch.exp(-0.5 * (places[:, None] - places) ** 2) + 0.1 * torch.eye(X)
        w1 = S("w1", dist.MultivariateNormal(torch.zeros(X), kernel).expand([H]).to_event(1))
        observe(torch.tanh(x @ w1.T) @ normal("w2", H), y)

    return model, regression()


@program("matrix normal prior: Kronecker covariance, identity over units", {"w1": ("h", None), "w2": ("h",)})
def matrix_normal_prior():
    def model(x, y):
        rows = 0.5 + torch.eye(X)
        w1 = S("w1", dist.MultivariateNormal(torch.zeros(H, X), covariance_matrix=rows).to_event(1))
        observe(F.relu(x @ w1.T) @ normal("w2", H), y)

    return model, regression()


@program("flattened matrix with a Kronecker covariance", {"w1": (("h", X),), "w2": ("h",)}, sizes={"h": H})
def kronecker_prior():
    def model(x, y):
        w1 = S("w1", dist.MultivariateNormal(torch.zeros(H * X), torch.kron(torch.eye(H), 0.5 + torch.eye(X))))
        observe(F.relu(x @ w1.view(H, X).T) @ normal("w2", H), y)

    return model, regression()


@program("Bayes by Backprop's prior: a mixture of two scales", TWO | {"w2": ("h",)})
def scale_mixture_prior():
    def model(x, y):
        prior = dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([0.5, 0.5])), dist.Normal(torch.zeros(2), torch.tensor([1.0, 0.1]))
        )
        w1, b1, w2 = (S(n, prior.expand(s).to_event(len(s))) for n, s in (("w1", [H, X]), ("b1", [H]), ("w2", [H])))
        observe(torch.tanh(x @ w1.T + b1) @ w2, y)

    return model, regression()


@program("Neal 1996: relevance of inputs, a precision for each layer", TWO | {"w2": ("h",), "a": (None,)})
def relevance_and_layer_precisions():
    def model(x, y):
        a, p1, p2 = positive("a", X), positive("p1"), positive("p2")
        w1 = S("w1", dist.Normal(0.0, a.rsqrt()).expand([H, X]).to_event(2))
        b1 = S("b1", dist.Normal(0.0, p1.rsqrt()).expand([H]).to_event(1))
        w2 = S("w2", dist.Normal(0.0, p2.rsqrt()).expand([H]).to_event(1))
        observe(torch.tanh(x @ w1.T + b1) @ w2, y)

    return model, regression()


@program(
    "node-wise horseshoe, not centered (Ghosh and Doshi-Velez 2017)", {"tau": ("h",), "w1": ("h", None), "w2": ("h",)}
)
def horseshoe_of_nodes():
    def model(x, y):
        v, tau = S("v", dist.HalfCauchy(1.0)), S("tau", dist.HalfCauchy(torch.ones(H)).to_event(1))
        w1 = (tau * v)[:, None] * normal("w1", H, X)
        observe(F.relu(F.linear(x, w1)) @ normal("w2", H), y)

    return model, regression()


@program(
    "scales summed by InverseGamma chains (Makalic and Schmidt 2016)",
    {"nu": ("h", None), "lam": ("h", None), "w1": ("h", None), "w2": ("h",)},
)
def horseshoe_by_inverse_gammas():
    def model(x, y):
        nu = S("nu", dist.InverseGamma(0.5, 1.0).expand([H, X]).to_event(2))
        lam = S("lam", dist.InverseGamma(0.5, 1.0 / nu).to_event(2))
        w1 = S("w1", dist.Normal(0.0, lam.sqrt()).to_event(2))
        observe(F.relu(x @ w1.T) @ normal("w2", H), y)

    return model, regression()


@program("prior scales that fall with the unit's number (Neal's infinite networks)", {})
def decaying_scales():
    def model(x, y):
        scale = 1.0 / torch.arange(1, H + 1)
        w1, w2 = normal("w1", H, X), S("w2", dist.Normal(0.0, scale).to_event(1))
        observe(torch.tanh(x @ w1.T) @ w2, y)

    return model, regression()
