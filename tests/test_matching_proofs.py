"""Proven optima: the least cover is enumerated, and every other atom is settled by assignments."""

import math

import pytest
import torch
from matching_problems import STRUCTURES, features

from pyro_align import Symmetry
from pyro_align.axes import Odd
from pyro_align.matching import Coordinate, Exhaustive, elements, match
from pyro_align.matching.enumeration import least_cover, tables
from pyro_align.matching.problem import Problem

SMALL = [name for name, case in STRUCTURES.items() if case.symmetry.log_order <= math.log(5000)]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("seed", range(3))
def test_small_groups_are_enumerated(name, seed):
    case = STRUCTURES[name]
    fixed, moving = (features(case.symmetry, 2 * seed + k) for k in (0, 1))
    best = match(case.symmetry, fixed, moving, odd=case.odd, matcher=Exhaustive()).objective
    found = match(case.symmetry, fixed, moving, odd=case.odd)
    assert found.status == "optimal"
    assert found.objective == pytest.approx(best, rel=1e-12, abs=1e-12)


def network(*sizes):
    layers = range(len(sizes) - 1)
    names = [None, *(f"h{i}" for i in layers[:-1]), None]
    axes = {f"w{i}": (names[i + 1], names[i]) for i in layers}
    return Symmetry.from_axes(axes, shapes={f"w{i}": (sizes[i + 1], sizes[i]) for i in layers})


@pytest.mark.parametrize(
    ("sizes", "cover"),
    [((3, 50, 2), ()), ((3, 5, 5, 5, 2), ("h1",)), ((3, 40, 6, 40, 2), ("h1",)), ((3, 9, 9, 2), None)],
)
def test_the_cover_is_the_least_that_will_do(sizes, cover):
    symmetry = network(*sizes)
    values = features(symmetry, 0)
    assert least_cover(Problem(symmetry, values, values)) == cover


def test_a_wide_network_with_a_narrow_waist_is_solved():
    """No search from anywhere finds more; a group of 10^70 elements."""
    symmetry = network(3, 30, 5, 30, 2)
    fixed, moving = (features(symmetry, k) for k in (0, 1))
    proven = match(symmetry, fixed, moving)
    assert proven.status == "optimal"
    searched = match(symmetry, fixed, moving, matcher=Coordinate(prove=False), restarts=20)
    assert searched.status == "converged"
    assert proven.objective >= searched.objective - 1e-9
    assert proven.objective == pytest.approx(
        sum(
            float((f * proven.permutation.apply_site(s, m)).sum())
            for s in fixed
            for f, m in zip(fixed[s], moving[s], strict=True)
        )
    )


def test_tables_list_the_whole_group():
    symmetry = Symmetry.from_axes(
        {"w": ("g", Odd("u")), "v": ("g",)}, within={"u": "g"}, shapes={"w": (2, 2), "v": (2,)}
    )
    count = round(math.exp(symmetry.log_order))
    indices, signs = tables(symmetry, tuple(symmetry.atoms), torch.arange(count))
    listed = {str([t[k].tolist() for t in (indices["g"], indices["u"], signs["u"])]) for k in range(count)}
    ones = torch.ones(2, 2, dtype=torch.int8)
    known = {
        str([p.indices["g"].tolist(), p.indices["u"].tolist(), p.signs.get("u", ones).tolist()])
        for p in elements(symmetry)
    }
    assert listed == known
    assert symmetry.permutation({k: v[0] for k, v in indices.items()}, {k: v[0] for k, v in signs.items()}).is_identity


def test_restarts_say_what_they_found():
    symmetry = network(4, 12, 12, 3)
    fixed, moving = (features(symmetry, k) for k in (0, 1))
    alone, more = (match(symmetry, fixed, moving, restarts=r) for r in (0, 6))
    assert alone.rises == ()
    assert len(more.rises) == 6
    assert more.objective == pytest.approx(alone.objective + sum(more.rises))
    assert "of 6 restarts" in str(more)


def test_restarts_end_where_every_search_finds_the_planted_copy():
    symmetry = network(4, 12, 12, 3)
    fixed, p = features(symmetry, 0), symmetry.random(3)
    g = torch.Generator().manual_seed(5)
    noisy = {k: tuple(f + 0.5 * torch.randn(f.shape, generator=g, dtype=f.dtype) for f in v) for k, v in fixed.items()}
    moving = {k: tuple(p.apply_site(k, f) for f in v) for k, v in noisy.items()}
    found = match(symmetry, fixed, moving, restarts=6)
    assert found.permutation == p.inverse()
    assert found.rises == (0.0,)
    assert match(symmetry, fixed, moving, restarts=3, select=lambda p: 0.0).rises != (0.0,)


@pytest.mark.parametrize("name", ["two layers", "recurrent", "gates"])
def test_margins_are_what_the_cheapest_swap_costs(name):
    """Against the objective itself, also where an atom is on two axes of a site."""
    case = STRUCTURES[name]
    symmetry = case.symmetry
    fixed, moving = (features(symmetry, k) for k in (0, 1))
    problem = Problem(symmetry, fixed, moving)
    found = match(symmetry, fixed, moving, with_margins=True)
    for atom, index in found.permutation.indices.items():
        n = len(index)
        for i in range(n):
            falls = []
            for k in set(range(n)) - {i}:
                swapped = index.clone()
                swapped[[i, k]] = index[[k, i]]
                other = symmetry.permutation({**found.permutation.indices, atom: swapped})
                falls.append(found.objective - problem.objective(other))
            assert float(found.margins[atom][i]) == pytest.approx(min(falls), abs=1e-9)
