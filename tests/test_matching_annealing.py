"""Mean-field annealing: soft relabelings, expected gains, when it is made and what it gains."""

import itertools
import math

import pytest
import torch
from matching_problems import STRUCTURES, features, relabel

from pyro_align.matching import Coordinate, match, objective
from pyro_align.matching.annealing import Soft, Sparse, _expected_gains, anneal, crowded, soften
from pyro_align.matching.coordinate import anchored_pass, make_updates
from pyro_align.matching.evidence import Gains
from pyro_align.matching.labels import Labels
from pyro_align.matching.matcher import Clock, Run
from pyro_align.matching.problem import Problem
from pyro_align.symmetry.group import Symmetry


def fitted_like(symmetry, seed, units=48):
    """A chain of layers whose units lie around a few common directions, with norms that differ widely."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.Generator().manual_seed(99)
    mix = {}
    for name in ("a", "b"):
        directions = torch.randn(units, 6, generator=generator, dtype=torch.float64)
        mix[name] = directions * torch.randn(units, 1, generator=generator, dtype=torch.float64).exp()
    into, core, out = (torch.randn(shape, generator=common, dtype=torch.float64) for shape in ((6, 40), (6, 6), (5, 6)))
    clean = {"w1": mix["a"] @ into, "w2": mix["b"] @ core @ mix["a"].T, "w3": out @ mix["b"].T}
    return {
        k: (v + 0.1 * v.std() * torch.randn(v.shape, generator=generator, dtype=v.dtype),) for k, v in clean.items()
    }


@pytest.fixture
def chain():
    return Symmetry.from_axes(
        {"w1": ("a", None), "w2": ("b", "a"), "w3": (None, "b")},
        shapes={"w1": (48, 40), "w2": (48, 48), "w3": (5, 48)},
    )


def start(symmetry, fixed, moving, odd=None):
    problem = Problem(symmetry, fixed, moving, odd)
    labels = Labels(symmetry.identity(), problem.device)
    run = Run(problem, labels, Clock(), torch.Generator().manual_seed(0), 100)
    order = []
    assert anchored_pass(run, make_updates(problem), order=order)
    return run, order


def test_a_soft_relabeling_is_doubly_stochastic_and_sharpens_to_the_assignment():
    gain = torch.randn(1, 12, 12)
    warm = soften(Gains({"h": gain}), "h", 2.0)
    torch.testing.assert_close(warm.even.sum(0), torch.ones(12), atol=0.2, rtol=0)
    torch.testing.assert_close(warm.even.sum(1), torch.ones(12), atol=0.2, rtol=0)  # small entries are left out
    order = torch.randperm(12)
    cold = soften(Gains({"h": gain + 15 * torch.nn.functional.one_hot(order, 12)}), "h", 0.3)
    hard = torch.nn.functional.one_hot(order, 12).double()
    torch.testing.assert_close(cold.even @ torch.eye(12), hard, atol=0.02, rtol=0)


def test_the_expected_sign_is_that_of_both_signs_weighed():
    even, odd, temperature = torch.randn(1, 6, 6), torch.randn(1, 6, 6), 1.5
    found = soften(Gains({"h": even}, {"h": odd}), "h", temperature)
    plus, minus = ((even + s * odd)[0].div(temperature).exp() for s in (1, -1))
    kernel = plus + minus
    for _ in range(10):
        column = 1 / kernel.sum(0)
        kernel = kernel * column
        kernel = kernel / kernel.sum(1, keepdim=True)
    kept = found.even > 0
    torch.testing.assert_close(found.even[kept], kernel[kept], atol=0.02, rtol=0.05)
    torch.testing.assert_close(found.odd, found.even * (plus - minus) / (plus + minus))


def test_few_entries_are_gathered_as_the_whole_matrix_would():
    matrix = torch.eye(300)[torch.randperm(300)] * 0.7
    matrix[3] = 0.0  # a unit without a likely partner
    matrix[5, :3] = 0.1
    rows, columns = matrix.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=300)
    sparse = Sparse(columns, counts.cumsum(0) - counts, matrix[rows, columns])
    value = torch.randn(4, 300, 3)
    torch.testing.assert_close(Soft(sparse, sparse).apply(value, 1, False), Soft(matrix, matrix).apply(value, 1, False))


@pytest.mark.parametrize("name", STRUCTURES)
def test_expected_gains_at_a_relabeling_are_its_gains(name):
    case = STRUCTURES[name]
    problem = Problem(case.symmetry, features(case.symmetry, 0), features(case.symmetry, 1), case.odd)
    labels = Labels(case.symmetry.random(2), problem.device)
    updates = [u for u in make_updates(problem) if u.softens]
    soft = {}
    for update in updates:
        one = torch.nn.functional.one_hot(labels.indices[update.name], update.atom.size).double()
        sign = labels.signs.get(update.name, torch.ones(update.atom.size)).double()
        soft[update.name] = Soft(one, one * sign.unsqueeze(1))
    for update in updates:
        total = _expected_gains(update, labels, soft).total(update.name)
        torch.testing.assert_close(total, update.gain(labels))


def test_annealing_pays_where_units_crowd(chain):
    gaps = []
    for seed in range(4):
        fixed, moving = fitted_like(chain, 2 * seed), fitted_like(chain, 2 * seed + 1)
        _, order = start(chain, fixed, moving)
        assert crowded(order)
        plain = match(chain, fixed, moving, matcher=Coordinate(anneal=0)).objective
        gaps.append(match(chain, fixed, moving).objective / plain - 1)
    assert sum(gaps) > 0


def test_independent_units_do_not_crowd():
    wide = Symmetry.from_axes({"w": ("h", None), "v": (None, "h")}, shapes={"w": (400, 800), "v": (5, 400)})
    assert not crowded(start(wide, features(wide, 0), features(wide, 1))[1])


def test_copies_need_no_annealing(chain):
    moving = features(chain, 1)
    run, order = start(chain, relabel(moving, chain.random(3), noise=0.01), moving)
    before = run.labels.indices
    assert anneal(run, order, 4)
    assert run.labels.indices is before  # nothing to weigh: left as it was


def test_a_time_limit_leaves_the_relabeling_as_it_was(chain):
    run, order = start(chain, fitted_like(chain, 0), fitted_like(chain, 1))
    before = run.labels.permutation()
    run.clock = Clock(1e-9)
    assert not anneal(run, order, 4)
    assert run.labels.permutation() == before


@pytest.mark.parametrize("name", [n for n, s in STRUCTURES.items() if s.symmetry.log_order <= math.log(3000)])
def test_annealed_matches_are_valid_and_never_above_the_oracle(name):
    case = STRUCTURES[name]
    fixed, moving = features(case.symmetry, 4), features(case.symmetry, 5)
    found = match(case.symmetry, fixed, moving, odd=case.odd, matcher=Coordinate(anneal=4, prove=False))
    best = match(case.symmetry, fixed, moving, odd=case.odd, matcher="exhaustive").objective
    assert found.objective <= best + 1e-9
    assert found.objective == pytest.approx(
        objective(case.symmetry, fixed, moving, found.permutation, odd=case.odd), rel=1e-12
    )
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(found.history))


def test_annealing_without_evidence_begins_with_all_partners_alike():
    symmetry = STRUCTURES["only quadratic"].symmetry
    fixed, moving = features(symmetry, 0), features(symmetry, 1)
    found = match(symmetry, fixed, moving, matcher=Coordinate(anneal=4, prove=False))
    assert found.status == "converged"
