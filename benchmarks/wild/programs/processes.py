"""Gaussian processes, and kernels over what is latent."""

import pyro.contrib.gp as gp
import pyro.distributions as dist
import torch
from pyro.nn import PyroSample

from benchmarks.wild.catalog import program
from benchmarks.wild.programs.common import S, counts, normal, plate, positive

N, K = 5, 3


def rbf(a, b, scale=1.0):
    return torch.exp(-0.5 * (((a[..., :, None, :] - b[..., None, :, :]) / scale) ** 2).sum(-1))


def jitter(n=N, size=0.1):
    return size * torch.eye(n)


def observe(y, cov):
    S("y", dist.MultivariateNormal(torch.zeros(len(y)), cov), obs=y)


@program("relevance lengthscales of inputs", {})
def relevance_kernel():
    def model(x, y):
        observe(y, positive("scale") * rbf(x, x, positive("lengthscale", 2)) + jitter())

    return model, (torch.randn(N, 2), torch.randn(N))


@program(
    "latent variable model (Lawrence 2005): dimensions with their lengthscales",
    {"z": (None, "k"), "lengthscale": ("k",)},
)
def latent_variable_process():
    def model(y):
        z, lengthscale = normal("z", N, 2), positive("lengthscale", 2)
        cov = rbf(z, z, lengthscale) + jitter()
        with plate("outputs", 3):
            S("y", dist.MultivariateNormal(torch.zeros(N), cov), obs=y)

    return model, (torch.randn(3, N),)


@program("Pyro's GPLVM with sampled latents", {"X": (None, "k")})
def contrib_gplvm():
    kernel = gp.kernels.RBF(input_dim=2, lengthscale=torch.tensor(1.0))
    process = gp.models.GPRegression(torch.randn(N, 2), torch.randn(3, N), kernel, noise=torch.tensor(0.1))
    model = gp.models.GPLVM(process)
    model.X = PyroSample(dist.Normal(torch.zeros(N, 2), 1.0).to_event())
    return model.model, ()


@program("sum of kernels with a scale and a lengthscale each", {"scale": ("k",), "lengthscale": ("k",)})
def additive_kernels():
    def model(x, y):
        scale, lengthscale = positive("scale", K), positive("lengthscale", K)
        cov = (scale[:, None, None] * rbf(x[None], x[None], lengthscale[:, None, None, None])).sum(0)
        observe(y, cov + jitter())

    return model, (torch.randn(N, 1), torch.randn(N))


@program("spectral mixture kernel (Wilson and Adams 2013)", {"w": ("q",), "mu": ("q",), "v": ("q",)})
def spectral_mixture():
    def model(x, y):
        w, mu, v = positive("w", K), positive("mu", K), positive("v", K)
        tau = x[:, None] - x
        cov = torch.einsum(
            "q,qij->ij", w, torch.exp(-2 * v[:, None, None] * tau**2) * torch.cos(6.28 * mu[:, None, None] * tau)
        )
        observe(y, cov + jitter())

    return model, (torch.randn(N), torch.randn(N))


@program(
    "linear model of coregionalization: latent functions and their mixing",
    {"mix": (None, "q"), "ell": ("q",), "f": ("q", None)},
)
def coregionalization():
    def model(x, y):
        mix, ell = normal("mix", 4, K), positive("ell", K)
        cov = rbf(x, x, ell[:, None, None, None]) + jitter()
        f = S("f", dist.MultivariateNormal(torch.zeros(N), cov).to_event(1))
        S("y", dist.Normal(f.T @ mix.T, 0.3).to_event(2), obs=y)

    return model, (torch.randn(N, 1), torch.randn(N, 4))


@program("coregionalization, whitened latent functions", {"mix": (None, "q"), "f": ("q", None)})
def coregionalization_whitened():
    def model(x, y):
        mix, f = normal("mix", 4, K), normal("f", K, N)
        chol = torch.linalg.cholesky(rbf(x, x) + jitter())
        S("y", dist.Normal((chol @ f.T) @ mix.T, 0.3).to_event(2), obs=y)

    return model, (torch.randn(N, 1), torch.randn(N, 4))


@program("inducing points are interchangeable (subset of regressors)", {"z": ("m", None), "u": ("m",)})
def inducing_points():
    def model(x, y):
        z = normal("z", 4, 2)
        u = S("u", dist.MultivariateNormal(torch.zeros(4), rbf(z, z) + jitter(4)))
        mean = rbf(x, z) @ torch.linalg.solve(rbf(z, z) + jitter(4), u)
        S("y", dist.Normal(mean, 0.3).to_event(1), obs=y)

    return model, (torch.randn(N, 2), torch.randn(N))


@program("inducing points, Cholesky solve", {"z": ("m", None), "u": ("m",)})
def inducing_points_cholesky():
    def model(x, y):
        z = normal("z", 4, 2)
        chol = torch.linalg.cholesky(rbf(z, z) + jitter(4))
        u = S("u", dist.MultivariateNormal(torch.zeros(4), scale_tril=chol))
        mean = rbf(x, z) @ torch.cholesky_solve(u[:, None], chol).squeeze(-1)
        S("y", dist.Normal(mean, 0.3).to_event(1), obs=y)

    return model, (torch.randn(N, 2), torch.randn(N))


@program("marginal sparse process: the Nystroem covariance by triangular solves", {"z": ("m", None)})
def nystroem():
    def model(x, y):
        z = normal("z", 4, 2)
        a = torch.linalg.solve_triangular(torch.linalg.cholesky(rbf(z, z) + jitter(4)), rbf(z, x), upper=False)
        observe(y, a.T @ a + jitter(size=0.5))

    return model, (torch.randn(N, 2), torch.randn(N))


@program("random Fourier features with sampled frequencies", {"omega": (None, "f"), "w": (["f", "f"],)})
def fourier_features():
    def model(x, y):
        omega, w = normal("omega", 2, 4), normal("w", 8)
        phi = torch.cat([torch.cos(x @ omega), torch.sin(x @ omega)], -1)
        S("y", dist.Normal(phi @ w, 0.3).to_event(1), obs=y)

    return model, (torch.randn(N, 2), torch.randn(N))


@program("Hilbert space approximation: a basis of fixed order", {})
def hilbert_basis():
    def model(x, y):
        ell, beta = positive("ell"), normal("beta", 4)
        j = torch.arange(1, 5)
        phi = torch.sin(j * 0.5 * (x[:, None] + 2))
        S("y", dist.Normal(phi @ (torch.exp(-0.25 * (ell * j) ** 2) * beta), 0.3).to_event(1), obs=y)

    return model, (torch.randn(N), torch.randn(N))


@program("deep process: a hidden layer of functions at the data", {"f": ("h", None), "ell": ("h",)})
def deep_process():
    def model(x, y):
        f = S("f", dist.MultivariateNormal(torch.zeros(N), rbf(x, x) + jitter()).expand([K]).to_event(1))
        ell = positive("ell", K)
        observe(y, rbf(f.T, f.T, ell) + jitter())

    return model, (torch.randn(N, 2), torch.randn(N))


@program(
    "process factor analysis (Yu et al. 2009): latent functions with timescales",
    {"tau": ("k",), "x": ("k", None), "c": (None, "k")},
)
def process_factor_analysis():
    def model(y):
        t = torch.arange(N).to(torch.get_default_dtype())
        tau = positive("tau", 2)
        cov = torch.exp(-0.5 * (t[:, None] - t) ** 2 / tau[:, None, None] ** 2) + jitter()
        with plate("factors", 2):
            x = S("x", dist.MultivariateNormal(torch.zeros(N), cov))
        S("y", dist.Poisson(torch.exp(0.3 * normal("c", 4, 2) @ x)).to_event(2), obs=y)

    return model, (counts(4, N),)


@program(
    "warped input clusters: latent places of points with an exchangeable kernel between groups",
    {"b": ("g",), "u": (None, "g")},
)
def exchangeable_groups():
    def model(y):
        rho = S("rho", dist.Beta(1.0, 1.0))
        b = S("b", dist.MultivariateNormal(torch.zeros(K), covariance_matrix=torch.eye(K) + rho))
        u = normal("u", N, K)
        S("y", dist.Normal(torch.tanh(u) @ b, 0.3).to_event(1), obs=y)

    return model, (torch.randn(N),)
