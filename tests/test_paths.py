"""Paths: optimal transport against independent computations, couplings of low-rank Gaussians, bad input."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGaussian,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

from pyro_align.errors import GuideError
from pyro_align.guides import LowRankNormal, read_guide
from pyro_align.paths.geodesic import Path, displacement


def model():
    pyro.sample("w", dist.Normal(0, 1).expand([3, 2]).to_event(2))
    pyro.sample("v", dist.LogNormal(0, 1).expand([3]).to_event(1))


def low_rank(m, rank=2):
    return AutoLowRankMultivariateNormal(m, rank=rank)


def fitted(make, seed):
    with pyro.get_param_store().scope():
        guide = make(model)
        guide()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in guide.parameters():
            tensor += torch.randn(tensor.shape, generator=generator)
    return guide


def moments(guide):
    """Location and covariance of what Pyro itself says the guide's posterior is."""
    if isinstance(guide, AutoGaussian):  # what Pyro draws, before its scales and locations
        inner, sites = guide._dense_get_mvn(), ("w", "v")
        loc, scale = (torch.cat([getattr(part, k).flatten() for k in sites]) for part in (guide.locs, guide.scales))
        mean, cov = loc + scale * inner.mean, scale[:, None] * inner.covariance_matrix * scale
        return mean.detach(), cov.detach()
    posterior = guide.get_posterior()
    return posterior.mean.detach(), posterior.covariance_matrix.detach()


def bures(a, b):
    """The squared Wasserstein-2 distance of two Gaussians from its textbook formula, with matrix square roots."""

    def root(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return vectors * values.clamp_min(0).sqrt() @ vectors.T

    (m0, c0), (m1, c1) = a, b
    r0 = root(c0)
    return (m0 - m1).square().sum() + (c0 + c1 - 2 * root(r0 @ c1 @ r0)).trace()


DENSE = [AutoMultivariateNormal, low_rank, AutoGaussian]


@pytest.mark.parametrize("make", DENSE)
def test_the_length_is_the_bures_distance(make):
    a, b = fitted(make, 0), fitted(make, 1)
    assert displacement(a, b).length ** 2 == pytest.approx(float(bures(moments(a), moments(b))), rel=1e-9)


@pytest.mark.parametrize("make", DENSE)
def test_the_length_agrees_with_pot(make):
    ot = pytest.importorskip("ot", reason="POT is not installed")
    a, b = fitted(make, 0), fitted(make, 1)
    (m0, c0), (m1, c1) = moments(a), moments(b)
    expected = ot.gaussian.bures_wasserstein_distance(m0, m1, c0, c1)
    assert displacement(a, b).length == pytest.approx(float(expected), rel=1e-7)


@pytest.mark.parametrize("make", DENSE)
@pytest.mark.parametrize("tau", [0.2, 0.5, 0.9])
def test_the_path_is_the_geodesic(make, tau):
    """Against the optimal map: cov = ((1 - tau) I + tau T) C0 ((1 - tau) I + tau T)."""
    a, b = fitted(make, 0), fitted(make, 1)
    (m0, c0), (m1, c1) = moments(a), moments(b)
    values, vectors = torch.linalg.eigh(c0)
    r0, inverse = vectors * values.sqrt() @ vectors.T, vectors * values.rsqrt() @ vectors.T
    inner_values, inner_vectors = torch.linalg.eigh(r0 @ c1 @ r0)
    transport = inverse @ (inner_vectors * inner_values.clamp_min(0).sqrt() @ inner_vectors.T) @ inverse
    step = (1 - tau) * torch.eye(len(m0)) + tau * transport
    guide = displacement(a, b)(tau)
    assert type(guide) is AutoMultivariateNormal
    mean, cov = moments(guide)
    torch.testing.assert_close(mean, (1 - tau) * m0 + tau * m1)
    torch.testing.assert_close(cov, step @ c0 @ step.T, rtol=1e-7, atol=1e-7)


def test_linear_in_the_cholesky_factor_is_not_the_geodesic():
    """The trap: the straight line between triangular factors is longer."""
    a, b = fitted(AutoMultivariateNormal, 0), fitted(AutoMultivariateNormal, 1)
    q0, q1 = read_guide(a), read_guide(b)
    straight = ((q0.loc - q1.loc).square().sum() + (q0.root - q1.root).square().sum()).sqrt()
    assert displacement(a, b).length < 0.99 * float(straight)


def test_ill_conditioned_covariances():
    """Condition number 1e14 of the covariance: the square root's is 1e7, and nothing squares it."""
    a, b = fitted(AutoMultivariateNormal, 0), fitted(AutoMultivariateNormal, 1)
    with torch.no_grad():
        for guide in (a, b):
            guide.scale_unconstrained.copy_(torch.linspace(-16, 0, 9))
    path = displacement(a, b)
    middle = read_guide(path(0.5))
    assert path.posterior(0.0).distance(middle) == pytest.approx(path.length / 2, rel=1e-7)
    assert torch.isfinite(middle.tril).all()


def test_low_rank_coupling_keeps_the_type():
    a, b = fitted(low_rank, 0), fitted(low_rank, 1)
    path, geodesic = displacement(a, b, coupling="low_rank"), displacement(a, b)
    assert type(path(0.5)) is AutoLowRankMultivariateNormal
    assert path(0.5).cov_factor.shape == (9, 2)
    assert path.length >= geodesic.length
    assert isinstance(path.posterior(0.5), LowRankNormal)
    for tau, guide in ((0.0, a), (1.0, b)):
        assert all(torch.equal(v, path(tau).state_dict()[k]) for k, v in guide.state_dict().items())
        assert type(geodesic(tau)) is AutoLowRankMultivariateNormal
    # its own length: the distance of infinitely many small steps adds up to no more than it
    points = [path.posterior(t / 20) for t in range(21)]
    walked = sum(p.distance(q) for p, q in itertools.pairwise(points))
    assert geodesic.length - 1e-9 <= walked <= path.length + 1e-9


def test_a_relabeled_point_of_a_path_is_written_as_it_is():
    """The end of a low-rank path writes the guide it came from, unless it has been changed since."""
    from pyro_align.symmetry.group import Symmetry

    s = Symmetry.from_axes({"w": ("h", None), "v": ("h",)}, shapes={"w": (3, 2), "v": (3,)})
    p = s.permutation({"h": [1, 2, 0]})
    path = displacement(fitted(low_rank, 0), fitted(low_rank, 1))
    end = path.posterior(1.0)
    moved = end.permute(p)
    assert type(end.to_guide()) is AutoLowRankMultivariateNormal
    mean, _ = moments(moved.to_guide())
    torch.testing.assert_close(
        mean, torch.cat([p.apply_site("w", end.marginal("w")[0]).flatten(), p.apply_site("v", end.marginal("v")[0])])
    )


def test_bad_input():
    a, b = fitted(AutoNormal, 0), fitted(AutoNormal, 1)
    with pytest.raises(ValueError, match="coupling must be"):
        displacement(a, b, coupling="magic")
    with pytest.raises(GuideError, match="AutoLowRankMultivariateNormal guides, not MeanFieldNormal"):
        displacement(a, b, coupling="low_rank")
    with pytest.raises(GuideError, match="ranks 2 and 3"):
        displacement(fitted(low_rank, 0), fitted(lambda m: low_rank(m, 3), 1))
    for tau in (-0.01, 1.01, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="tau must lie in"):
            displacement(a, b)(tau)
    with pytest.raises(TypeError, match="Posterior"):
        read_guide(a).distance(b)


def test_a_path_is_a_snapshot():
    a, b = fitted(AutoDelta, 0), fitted(AutoDelta, 1)
    path = displacement(a, b)
    assert isinstance(path, Path)
    assert list(path.sites) == ["w", "v"]
    before = path(0.25).w.detach().clone()
    with torch.no_grad():
        a.w_unconstrained.add_(1)
    assert torch.equal(path(0.25).w, before)
    assert f"{path.length:.6g}" in repr(path)


def test_location_and_standard_deviation_are_linear():
    a, b = fitted(AutoNormal, 0), fitted(AutoNormal, 1)
    middle = displacement(a, b)(0.25)
    torch.testing.assert_close(middle.locs.w.detach(), (0.75 * a.locs.w + 0.25 * b.locs.w).detach())
    torch.testing.assert_close(middle.scales.v.detach(), (0.75 * a.scales.v + 0.25 * b.scales.v).detach())


def test_guides_of_two_mean_field_types_share_a_path():
    from pyro.infer.autoguide import AutoDiagonalNormal

    a, b = fitted(AutoNormal, 0), fitted(AutoDiagonalNormal, 1)
    assert type(displacement(a, b)(0.5)) is AutoNormal
    assert type(displacement(b, a)(0.5)) is AutoDiagonalNormal
    torch.testing.assert_close(displacement(b, a)(1.0).loc[:6].detach(), a.locs.w.detach().flatten())
