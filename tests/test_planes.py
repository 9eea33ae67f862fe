"""Paths through several posteriors, and planes through three: geometry, exact corners, losses, figures."""

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from barrier_problems import classifier, classifier_data, linear, linear_data, linear_truth, make_guide
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoLowRankMultivariateNormal, AutoMultivariateNormal

from pyro_align import displacement, evaluate_barrier, evaluate_plane, plots
from pyro_align.errors import BarrierError, GuideError
from pyro_align.guides import read_guide
from pyro_align.paths import path_through, plane

SCALES = (0.1, 0.2, 0.3)


def three(model=linear, data=None, **options):
    x, y = linear_data() if data is None else data
    return [make_guide(model, x, y, seed=i + 1, scale=s, **options) for i, s in enumerate(SCALES)]


def point(seed):
    pyro.set_rng_seed(seed)
    with pyro.get_param_store().scope():
        guide = AutoDelta(linear, init_loc_fn=pyro.infer.autoguide.init_to_sample)
        guide(*linear_data())
    return guide


# -- paths through several guides --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal])
def test_a_path_passes_its_guides(kind):
    guides = three(guide_type=kind)
    path = path_through(guides, spacing="length")
    for tau, guide in zip(path.breaks, guides, strict=True):
        there = read_guide(path(tau))
        assert read_guide(guide).distance(there) < 1e-6
    assert np.isclose(path.length, sum(displacement(a, b).length for a, b in itertools.pairwise(guides)))
    assert np.isclose(path.breaks[1], displacement(*guides[:2]).length / path.length)


def test_pieces_are_displacements():
    guides = three()
    path, last = path_through(guides), displacement(*guides[1:])
    assert path.breaks == (0.0, 0.5, 1.0)
    assert path.posterior(0.75).distance(last.posterior(0.5)) < 1e-12
    assert path_through(guides[:2]).posterior(0.3).distance(displacement(*guides[:2]).posterior(0.3)) < 1e-12


@pytest.mark.parametrize("kind", [AutoDiagonalNormal, AutoMultivariateNormal])
def test_one_noise_gives_draws_without_jumps(kind):
    path = path_through(three(guide_type=kind))
    noise = path.posterior(0.0).noise(5)
    before, at, after = (path.posterior(tau).push(noise)["w"] for tau in (0.5 - 1e-9, 0.5, 0.5 + 1e-9))
    assert torch.allclose(before, at, atol=1e-6)
    assert torch.allclose(at, after, atol=1e-6)


def test_losses_along_a_path_through_three():
    x, y = linear_data()
    path = path_through(three(), spacing="length")
    taus = sorted({*np.linspace(0, 1, 9), *path.breaks})
    barrier = evaluate_barrier(linear, path, x, y, taus=taus, num_samples=200)
    truth = np.array([linear_truth(path, tau, x, y).expected_nll for tau in taus])
    curve = barrier["expected_nll"]
    assert np.all(np.abs(curve.value - truth) < 4.5 * curve.se)
    assert np.allclose(barrier["kl"].value, [linear_truth(path, tau, x, y).kl for tau in taus])


def test_bad_paths():
    a, b, _ = three()
    with pytest.raises(ValueError, match="at least two guides, got 1"):
        path_through([a])
    with pytest.raises(ValueError, match="'equal' or 'length'"):
        path_through([a, b], spacing="tau")
    with pytest.raises(GuideError, match="NaN or infinite"):
        path_through([a, b, make_guide(linear, *linear_data(), scale=float("inf"))])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        path_through([a, b]).posterior(-0.1)


# -- planes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AutoDiagonalNormal, AutoDelta])
def test_a_plane_keeps_distances(kind):
    guides = three(guide_type=kind) if kind is AutoDiagonalNormal else [point(seed) for seed in (1, 2, 3)]
    here = plane(*guides)
    for corner, guide in zip(here.coordinates, guides, strict=True):
        assert here.posterior(*corner).distance(read_guide(guide)) == 0
    inside = here.coordinates.mean(0), here.coordinates.T @ np.array([0.2, 0.5, 0.3])
    flat = np.linalg.norm(inside[0] - inside[1])
    assert np.isclose(here.posterior(*inside[0]).distance(here.posterior(*inside[1])), flat)
    middle = (here.coordinates[1] + here.coordinates[2]) / 2
    on_edge = displacement(*guides[1:]).posterior(0.5)
    assert here.posterior(*middle).distance(on_edge) < 1e-9
    assert isinstance(here(*middle), kind)


def test_scales_stay_positive():
    here = plane(*three())
    far = 30 * here.coordinates[2]
    assert here.clipped(*here.coordinates.mean(0)) == 0
    shares = [here.clipped(*(sign * far)) for sign in (-1, 1)]
    assert max(shares) == 1, "somewhere all scales run into the floor"
    for sign in (-1, 1):
        _, scale = here.posterior(*(sign * far)).marginal("w")
        assert (scale >= 0.1 * 0.1 - 1e-9).all()


def test_losses_on_a_plane_are_the_paths():
    x, y = classifier_data()
    guides = three(classifier, (x, y))
    here = plane(*guides)
    surface = evaluate_plane(classifier, here, x, y, grid=(5, 4), num_samples=6, seed=3)
    assert surface["negative_elbo"].shape == (4, 5)
    assert surface.losses == ("expected_nll", "predictive_nll", "negative_elbo", "kl", "error_rate")

    class Edge:
        """A line of the grid as a path."""

        def posterior(self, tau):
            return here.posterior(surface.x[0] + tau * (surface.x[-1] - surface.x[0]), surface.y[2])

    row = evaluate_barrier(classifier, Edge(), x, y, taus=5, num_samples=6, seed=3)
    for loss in surface.losses:
        if loss == "error_rate":  # its bootstrap is the same as well
            assert np.array_equal(row[loss].value, surface[loss][2])
        assert np.allclose(row[loss].value, surface[loss][2], rtol=1e-9)
        assert np.allclose(row[loss].se, surface.se["data", loss][2], rtol=1e-7)
    assert (surface.clipped[:, 0] >= 0).all()
    again = evaluate_plane(classifier, here, x, y, grid=(5, 4), num_samples=6, seed=3)
    assert np.array_equal(surface["negative_elbo"], again["negative_elbo"])


def test_several_data_sets_and_losses_on_a_plane():
    x, y = linear_data()
    data = {"train": (x[:8], y[:8]), "test": (x[8:], y[8:])}
    surface = evaluate_plane(linear, plane(*three()), evaluation=data, grid=2, losses=["kl", "expected_nll"])
    assert surface.evaluations == ("train", "test")
    assert surface["test", "expected_nll"].shape == (2, 2)
    with pytest.raises(KeyError, match="no loss"):
        surface["negative_elbo"]


def test_bad_planes():
    x, y = linear_data()
    a, b, c = three()
    dense = make_guide(linear, x, y, guide_type=AutoMultivariateNormal)
    with pytest.raises(GuideError, match="mean-field Gaussians or point masses, got DenseNormal"):
        plane(dense, b, c)
    path = displacement(a, b)
    with pytest.raises(GuideError, match="span no plane"):
        plane(a, path.posterior(0.5), b)
    with pytest.raises(BarrierError, match="expected a plane"):
        evaluate_plane(linear, path, x, y)
    with pytest.raises(BarrierError, match="grid: expected"):
        evaluate_plane(linear, plane(a, b, c), x, y, grid=1)
    with pytest.raises(BarrierError, match="margin: expected"):
        evaluate_plane(linear, plane(a, b, c), x, y, margin=-1)


def test_a_point_mass_stays_in_its_support():
    def model():
        pyro.sample("s", dist.LogNormal(0.0, 1.0).expand([2]).to_event(1))

    def at(*value):
        with pyro.get_param_store().scope():
            init = pyro.infer.autoguide.init_to_value(values={"s": torch.tensor(value)})
            guide = AutoDelta(model, init_loc_fn=init)
            guide()
        return guide

    here = plane(at(1.0, 1.0), at(2.0, 1.0), at(1.0, 2.0))
    assert torch.allclose(here.posterior(0.5, 0.5).points["s"].value, torch.tensor([1.5, 1.5]))
    with pytest.raises(GuideError, match="the plane's point leaves its support"):
        here.posterior(-5.0, 0.0)


def test_the_figure_of_a_plane():
    plt = pytest.importorskip("matplotlib.pyplot")
    x, y = linear_data()
    surface = evaluate_plane(linear, plane(*three()), x, y, grid=5, losses=["expected_nll", "kl"])
    _, ax = plt.subplots()
    assert plots.plot_plane(surface, ax=ax, loss="kl", names=("one", "two", "three")) is ax
    assert ax.get_title() == "KL to the prior"
    marked = np.array([line.get_xydata()[0] for line in ax.get_lines() if len(line.get_xydata()) == 1])
    assert np.allclose(marked, surface.corners)
    assert [text.get_text() for text in ax.texts] == ["one", "two", "three"]
    assert "W2" in ax.get_xlabel()
    with pytest.raises(ValueError, match="no loss"):
        plots.plot_plane(surface, loss="negative_elbo")
    plt.close("all")
