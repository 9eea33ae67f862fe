"""Small problems searched as a population: its gains and values are those of the problem, its members climb."""

import pytest
import torch
from matching_problems import STRUCTURES, features

from pyro_align import Symmetry
from pyro_align.matching import match
from pyro_align.matching.coordinate import make_updates
from pyro_align.matching.labels import Labels
from pyro_align.matching.matcher import Clock, Run
from pyro_align.matching.population import Members, Population, fits, fittest, search
from pyro_align.matching.problem import Problem
from pyro_align.matching.soft import soften
from pyro_align.matching.starts import kicked

TABLES = ("indices", "signs")


def problem_of(name):
    case = STRUCTURES[name]
    return Problem(case.symmetry, features(case.symmetry, 0), features(case.symmetry, 1), case.odd)


FITTING = [name for name, case in STRUCTURES.items() if case.symmetry.atoms and fits(problem_of(name))]


def members_of(problem, seeds):
    labels = [Labels(problem.symmetry.random(seed), problem.device) for seed in seeds]
    tables = ({k: torch.stack([getattr(x, t)[k] for x in labels]) for k in getattr(labels[0], t)} for t in TABLES)
    return labels, Members(*tables)


def test_nested_atoms_and_large_sites_do_not_fit():
    assert {"two layers", "gates"} <= set(FITTING) < set(STRUCTURES)
    for name in FITTING:
        assert not any(a.within for a in STRUCTURES[name].symmetry.atoms.values())
    wide = Symmetry.from_axes({"w": ("h", None)}, shapes={"w": (200, 100)})
    assert not fits(Problem(wide, features(wide, 0), features(wide, 1)))


@pytest.mark.parametrize("name", FITTING)
def test_values_are_objectives_up_to_a_factor_and_a_constant(name):
    problem = problem_of(name)
    population = Population(problem)
    labels, members = members_of(problem, range(4))
    factor = population.scales[0] * population.scales[1]
    exact = torch.tensor([problem.objective(x.permutation()) for x in labels], dtype=torch.float64)
    values = population.values(members) * factor
    torch.testing.assert_close(values - values[0], exact - exact[0], rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("name", FITTING)
def test_members_climb_to_where_no_move_raises_the_objective(name):
    problem = problem_of(name)
    population = Population(problem)
    labels, members = members_of(problem, range(3))
    before = population.values(members)
    population.climb(members)
    after = population.values(members)
    assert bool((after >= before - 1e-5 * before.abs()).all())
    for k, start in enumerate(labels):
        start.replace(*({n: v[k] for n, v in t.items()} for t in (members.indices, members.signs)))
        value = problem.objective(start.permutation())
        for update in make_updates(problem):
            if not update.move.exact:
                continue  # where an atom is on two axes, sweeps also try swaps
            trial = start.copy()
            trial.replace(*update.decide(update.linear.bring(trial), trial))
            assert problem.objective(trial.permutation()) <= value + 1e-5 * abs(value)


def test_soft_matrices_are_doubly_stochastic_when_warm_and_hard_when_cold():
    gain = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    price = None
    for heat in (4.0, 2.0, 1.0):
        (even, odd), price = soften((gain, None), torch.full((2, 1, 1), heat), price)
    assert odd is even
    torch.testing.assert_close(even.sum(1), torch.ones(2, 6), atol=0.05, rtol=0)
    for step in range(20):
        (even, _), price = soften((gain, None), torch.full((2, 1, 1), 0.8**step), price)
    assert float(even.amax(2).min()) > 0.9


def test_kicks_shuffle_some_units_of_every_copy():
    new = kicked(torch.arange(20).expand(5, 20), 0.2, torch.Generator().manual_seed(0))
    assert torch.equal(new.sort(1).values, torch.arange(20).expand(5, 20))
    assert bool(((new != torch.arange(20)).sum(1) <= 4).all())
    assert not torch.equal(new[0], new[1])


@pytest.mark.parametrize("name", FITTING)
def test_children_are_relabelings(name):
    problem = problem_of(name)
    population, generator = Population(problem), torch.Generator().manual_seed(0)
    _, members = members_of(problem, range(3))
    _, others = members_of(problem, range(3, 5))
    for mates in (members, others) * 3:  # kicked ones and crossed ones
        children = population.children(members, mates, generator)
        for index in children.indices.values():
            assert torch.equal(index.sort(1).values, torch.arange(index.shape[1]).expand_as(index))
        assert children.signs.keys() == members.signs.keys()


def test_a_population_passes_many_climbs():
    """On three layers of 16 units the search is ahead of twenty climbs from random relabelings."""
    sites = {"w": ("a", None), "v": ("b", "a"), "u": ("c", "b"), "o": (None, "c")}
    shapes = {"w": (16, 4), "v": (16, 16), "u": (16, 16), "o": (3, 16)}
    symmetry = Symmetry.from_axes(sites, shapes=shapes)
    for seed in range(3):
        fixed, moving = features(symmetry, seed), features(symmetry, 10 + seed)
        problem = Problem(symmetry, fixed, moving)
        population = Population(problem)
        labels, members = members_of(problem, range(20))
        population.climb(members)
        best = int(population.values(members).argmax())
        labels[best].replace({n: v[best] for n, v in members.indices.items()}, {})
        assert match(symmetry, fixed, moving).objective > problem.objective(labels[best].permutation())


def test_a_restart_leaves_the_best_of_each_search():
    problem = problem_of("two layers")
    labels, members = members_of(problem, range(6))
    population = Population(problem)
    population.climb(members)
    earlier = fittest([(members, population.values(members))])
    generator = torch.Generator().manual_seed(0)
    run = Run(problem, labels[0], Clock(None), generator, 10, random_order=True, pool=earlier)
    assert search(run)
    left, values = run.pool
    found = population.values(Members({k: v.unsqueeze(0) for k, v in run.labels.indices.items()}))
    expected = torch.cat([earlier[1], found]).sort(descending=True).values
    apart = torch.cat([torch.ones(1, dtype=torch.bool), expected[:-1] - expected[1:] > 1e-6 * expected[1:].abs()])
    torch.testing.assert_close(values, expected[apart])
    torch.testing.assert_close(population.values(left), values)


def test_scale_and_dtype_do_not_matter():
    symmetry = Symmetry.from_axes({"w": ("a", None), "v": ("b", "a")}, shapes={"w": (12, 3), "v": (12, 12)})
    fixed, moving = features(symmetry, 0), features(symmetry, 1)
    found = match(symmetry, fixed, moving, seed=1)
    huge = {k: tuple(1e30 * f for f in v) for k, v in fixed.items()}
    assert match(symmetry, huge, moving, seed=1).permutation == found.permutation
    assert found.permutation == match(symmetry, fixed, moving, seed=1).permutation
