"""Cholesky factors are a gauge: however a Gaussian density is written, the group is the same."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import normal, observe

from pyro_align import find_symmetry
from pyro_align.discovery.certify import GraphFunction
from pyro_align.discovery.gauge import snapped, without_factors
from pyro_align.discovery.source import Source

L = torch.linalg


def exchangeable():
    return 0.7 * torch.eye(5) + 0.3


def vector(**covariance):
    return pyro.sample("w", dist.MultivariateNormal(torch.zeros(5), **covariance).expand([3]).to_event(1))


def units(prior):
    """A network whose incoming weights have a Gaussian prior over its five units."""

    def model():
        w = prior()
        observe(torch.tanh(torch.linspace(-1, 1, 18).reshape(6, 3) @ w) @ normal("v", 5))

    return model


def kernel(a, b):
    return torch.exp(-0.5 * (a[:, None] - b).square().sum(-1))


def of_places(density):
    """A prior over units whose covariance is a kernel of latent places."""

    def prior():
        z = normal("z", 5, 2)
        return density(kernel(z, z) + 0.1 * torch.eye(5))

    return units(prior)


def by_hand(form):
    def density(k):
        w = normal("w", 3, 5, scale=10.0)
        pyro.factor("prior", -0.5 * form(k, w).sum())
        return w

    return of_places(density)


def inducing(project):
    """Four inducing points with latent places and values."""

    def model():
        z, u = normal("z", 4, 3), normal("u", 4)
        x = torch.linspace(-1, 1, 18).reshape(6, 3).sin()
        observe(kernel(x, z) @ project(kernel(z, z) + 0.1 * torch.eye(4), u))

    return model


def two_triangular_solves(k, u):
    first = L.solve_triangular(L.cholesky(k), u[:, None], upper=False)
    return L.solve_triangular(L.cholesky(k).mT, first, upper=True)[:, 0]


FIVE, BOTH, FOUR = 120, 240, 24  # orders: 5!, 5! of the units and 2! of the places' coordinates, 4!
MODELS = {
    "exchangeable covariance": (units(lambda: vector(covariance_matrix=exchangeable())), FIVE),
    "its factor": (units(lambda: vector(scale_tril=L.cholesky(exchangeable()))), FIVE),
    "exchangeable precision": (units(lambda: vector(precision_matrix=exchangeable())), FIVE),
    "identity": (units(lambda: vector(covariance_matrix=torch.eye(5))), FIVE),
    "a covariance that tells units apart": (
        units(lambda: vector(covariance_matrix=torch.diag(torch.arange(1.0, 6)))),
        1,
    ),
    "covariance of latent places": (of_places(lambda k: vector(covariance_matrix=k)), BOTH),
    "factor of latent places": (of_places(lambda k: vector(scale_tril=L.cholesky(k))), BOTH),
    "precision of latent places": (of_places(lambda k: vector(precision_matrix=k)), BOTH),
    "quadratic form with inv": (by_hand(lambda k, w: (w @ L.inv(k) * w).sum(-1)), BOTH),
    "quadratic form with solve": (by_hand(lambda k, w: (w * L.solve(k, w.mT).mT).sum(-1)), BOTH),
    "quadratic form with solve of a vector": (by_hand(lambda k, w: w[0] * L.solve(k, w[0])), None),
    "with logdet": (by_hand(lambda k, w: (w @ L.inv(k) * w).sum(-1) + torch.logdet(k)), BOTH),
    "with slogdet": (by_hand(lambda k, w: (w @ L.inv(k) * w).sum(-1) + L.slogdet(k).logabsdet), BOTH),
    "with cholesky_inverse": (by_hand(lambda k, w: (w @ torch.cholesky_inverse(L.cholesky(k)) * w).sum(-1)), BOTH),
    "the diagonal of the factor alone": (by_hand(lambda k, w: L.cholesky(k).diagonal().sin().sum() + w.square()), None),
    "inducing points, inv": (inducing(lambda k, u: L.inv(k) @ u), FOUR),
    "inducing points, solve": (inducing(L.solve), FOUR),
    "inducing points, cholesky_solve": (
        inducing(lambda k, u: torch.cholesky_solve(u[:, None], L.cholesky(k))[:, 0]),
        FOUR,
    ),
    "inducing points, upper cholesky_solve": (
        inducing(lambda k, u: torch.cholesky_solve(u[:, None], L.cholesky(k, upper=True), upper=True)[:, 0]),
        FOUR,
    ),
    "inducing points, triangular solves": (inducing(two_triangular_solves), FOUR),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_group_does_not_depend_on_the_spelling(name):
    model, order = MODELS[name]
    symmetry = find_symmetry(model)
    if order is not None:
        assert symmetry.log_order == pytest.approx(float(torch.tensor(float(order)).log()))
    assert symmetry.certificate.error <= symmetry.certificate.tolerance


@pytest.mark.parametrize("name", MODELS)
def test_the_rewritten_graph_is_the_same_function(name):
    source = Source(MODELS[name][0], (), {}, scope="joint", parameters=False, seed=0)
    traced = source.trace()
    rewritten, copies = without_factors(traced)
    values = source.generic_values(traced, 0, 0.3)
    torch.testing.assert_close(GraphFunction(rewritten)(values), GraphFunction(traced)(values), rtol=1e-9, atol=1e-9)
    if copies:
        assert {n.name for nodes in rewritten.nodes.values() for n in nodes} <= {n.name for n in copies.values()}


def test_a_factor_that_is_used_itself_keeps_its_order():
    def model():
        k = kernel(z := normal("z", 4, 2), z) + 0.1 * torch.eye(4)
        observe(L.cholesky(k) @ normal("u", 4))

    assert "z" not in find_symmetry(model).atoms


def test_signs_and_rotations_see_through_factors():
    def factors():
        prior = dist.MultivariateNormal(torch.zeros(3), 2.0 * torch.eye(3))
        z = pyro.sample("z", prior.expand([7]).to_event(1))
        observe(z @ normal("w", 6, 3).T)

    assert find_symmetry(factors, signs=True).signed == {"z[1]"}
    assert find_symmetry(factors, rotations=True).rotated == {"z[1]"}


def test_a_large_covariance_of_data_is_left_alone():
    """Hyperparameters of a Gaussian process: nothing to relabel, and nothing goes wrong."""

    def model():
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        x = torch.linspace(0, 1, 30)[:, None]
        cov = kernel(x / scale, x / scale) + 1e-4 * torch.eye(30)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(30), cov), obs=torch.zeros(30))

    assert not find_symmetry(model, signs=True, rotations=True).atoms


def test_what_differs_by_rounding_alone_is_one_number():
    value = torch.tensor([[1.0, 1.0 + 1e-14], [2.0, 1.0 - 1e-14]])
    assert snapped(value).unique().numel() == 2
    assert torch.equal(snapped(torch.tensor([0.0, 1e-3])), torch.tensor([0.0, 1e-3]))
