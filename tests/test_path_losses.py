"""Losses on a path: figures to choose by, gradients to search by."""

import numpy as np
import pytest
import torch
from perceptron import MODEL, X, Y, make_guide
from pyro.infer.autoguide import AutoDelta

import pyro_align
from pyro_align.errors import GuideError, MatchError
from pyro_align.guides import read_guide
from pyro_align.matching import Sinkhorn, StraightThrough
from pyro_align.objectives import MidpointLoss, PathLoss
from pyro_align.paths.geodesic import Path


@pytest.fixture(scope="module")
def symmetry():
    return pyro_align.find_symmetry(MODEL, X, Y)


def test_path_loss_is_the_barriers_loss_at_its_middle():
    path = pyro_align.displacement(make_guide(1), make_guide(2))
    for loss in ("predictive_nll", "expected_nll", "negative_elbo"):
        barrier = pyro_align.evaluate_barrier(MODEL, path, X, Y, taus=3, num_samples=4, seed=2, temperature=0.5)
        found = PathLoss(MODEL, X, Y, loss=loss, num_samples=4, seed=2, temperature=0.5)(path)
        assert found == pytest.approx(float(barrier[loss].value[1]), rel=1e-12)


def test_midpoint_loss_is_the_negative_elbo_at_the_middle():
    a, b = read_guide(make_guide(1)), read_guide(make_guide(2, 0.5))
    loss = MidpointLoss(MODEL, a, X, Y, num_samples=400, temperature=0.5)
    found = float(loss(b.features("w2", "moving")))
    draws = [
        PathLoss(MODEL, X, Y, loss="negative_elbo", num_samples=40, temperature=0.5, seed=s)(Path(a, b))
        for s in range(10)
    ]
    assert found == pytest.approx(np.mean(draws), abs=4.5 * np.std(draws) / 10**0.5 * 2**0.5)
    alone = MidpointLoss(MODEL, a, X, Y, tau=0.0, temperature=0.5)
    assert float(alone(b.features("w2", "moving"))) == float(alone(a.features("w2", "moving"))), "tau = 0 is the start"


@pytest.mark.parametrize("matcher", [Sinkhorn, StraightThrough])
def test_gradient_matchers_lower_the_midpoint_loss(symmetry, matcher):
    a, b = read_guide(make_guide(1, 0.3)), read_guide(make_guide(2, 0.3))
    state = torch.get_rng_state()
    loss = MidpointLoss(MODEL, a, X, Y, num_samples=4)
    nearest = pyro_align.align(a, b, symmetry)
    found = pyro_align.align(a, b, symmetry, matcher=matcher(loss=loss, max_steps=40))
    values = [float(loss(q.posterior.features("w2", "moving"))) for q in (nearest, found)]
    assert values[1] < values[0]
    assert found.distance >= nearest.distance - 1e-9
    assert torch.equal(state, torch.get_rng_state())


def test_midpoint_loss_refuses_what_it_cannot_blend(symmetry):
    a, b = make_guide(1), make_guide(2)
    matcher = Sinkhorn(loss=MidpointLoss(MODEL, a, X, Y), max_steps=1)
    with pytest.raises(MatchError, match=r"'layer0.weight'.*divergence='w2'"):
        pyro_align.align(a, b, symmetry, matcher=matcher, divergence="means")
    with pytest.raises(MatchError, match="num_samples"):
        MidpointLoss(MODEL, a, X, Y, num_samples=0)
    with pytest.raises(GuideError, match="mean-field"):
        MidpointLoss(MODEL, make_guide(guide_type=AutoDelta), X, Y)


def test_restarts_can_be_chosen_by_the_loss_on_the_path(symmetry):
    guides = make_guide(1, 0.3), make_guide(2, 0.3)
    loss = PathLoss(MODEL, X, Y, num_samples=4)
    seen = []

    def select(path):
        seen.append(loss(path))
        return seen[-1]

    alignment = pyro_align.align(*guides, symmetry, restarts=6, max_sweeps=0, select=select)
    assert len(seen) == 7
    assert len(set(seen)) > 1
    assert loss(pyro_align.displacement(guides[0], alignment.guide)) == pytest.approx(min(seen), rel=1e-12)
    assert alignment.match.loss == min(seen)


def test_a_loss_that_cannot_be_called_is_refused(symmetry):
    with pytest.raises(GuideError, match=r"select: expected a callable path -> loss.*got int"):
        pyro_align.align(make_guide(1), make_guide(2), symmetry, select=3)
