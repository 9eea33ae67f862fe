"""`match_many`: planted relabelings, agreement of round trips, the oracle on small groups, refusals."""

import itertools

import pytest
import torch
from matching_problems import STRUCTURES, features, relabel

from pyro_align.errors import MatchError
from pyro_align.matching import elements, match, match_many

NAMES = ["one layer", "two layers", "convolution flattened", "heads", "recurrent", "signs"]


def moved(case, values, permutation):
    return relabel(values, permutation, case.odd)


def pairs(sets):
    """The objective in its plainest form."""
    return sum(
        float((x * y).sum())
        for a, b in itertools.combinations(sets, 2)
        for s in a
        for x, y in zip(a[s], b[s], strict=True)
    )


@pytest.mark.parametrize("name", NAMES)
def test_planted_sets_are_found(name):
    case = STRUCTURES[name]
    first = features(case.symmetry, 1)
    sets = [first, *(relabel(first, case.symmetry.random(s), case.odd, noise=0.01, seed=s) for s in (2, 3))]
    found = match_many(case.symmetry, sets, odd=case.odd)
    again = [moved(case, v, p) for v, p in zip(sets, found.permutations, strict=True)]
    assert found.permutations[0].is_identity
    assert found.objective == pytest.approx(pairs(again), rel=1e-12)
    assert found.objective >= 0.98 * pairs([first] * 3)
    assert found.status == "converged"


@pytest.mark.parametrize("name", NAMES)
def test_history_never_falls_and_each_set_is_at_its_optimum(name):
    case = STRUCTURES[name]
    sets = [features(case.symmetry, s) for s in range(4)]
    found = match_many(case.symmetry, sets, odd=case.odd)
    again = [moved(case, v, p) for v, p in zip(sets, found.permutations, strict=True)]
    assert found.objective == pytest.approx(pairs(again), rel=1e-12)
    assert found.objective >= pairs(sets)
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(found.history))


def test_two_layers_of_three_sets_come_near_the_oracle():
    case = STRUCTURES["one layer"]
    sets = [features(case.symmetry, s) for s in range(3)]
    group = list(elements(case.symmetry))
    images = [[moved(case, v, p) for p in group] for v in sets[1:]]
    best = max(pairs([sets[0], a, b]) for a in images[0] for b in images[1])
    found = match_many(case.symmetry, sets)
    assert 0.9 * best <= found.objective <= best + 1e-9


def test_frank_wolfe_climbs_from_where_all_are_equally_likely():
    case = STRUCTURES["two layers"]
    sets = [features(case.symmetry, s) for s in range(3)]
    assert match_many(case.symmetry, sets).steps > 0
    assert match_many(case.symmetry, sets, steps=0).steps == 0


def test_two_sets_are_no_worse_than_a_match():
    case = STRUCTURES["two layers"]
    sets = [features(case.symmetry, s) for s in range(2)]
    assert match_many(case.symmetry, sets).objective >= match(case.symmetry, *sets).objective - 1e-12


def test_time_limit_and_sweeps_give_valid_relabelings():
    case = STRUCTURES["two layers"]
    sets = [features(case.symmetry, s) for s in range(3)]
    assert match_many(case.symmetry, sets, time_limit=1e-9).status == "time_limit"
    assert match_many(case.symmetry, sets, max_sweeps=0).status == "max_sweeps"


def test_one_set_is_refused():
    case = STRUCTURES["one layer"]
    with pytest.raises(MatchError, match="two sets or more, got 1"):
        match_many(case.symmetry, [features(case.symmetry, 0)])


def test_inputs_are_left_alone():
    case = STRUCTURES["two layers"]
    sets = [features(case.symmetry, s) for s in range(3)]
    before = [{s: tuple(t.clone() for t in v) for s, v in values.items()} for values in sets]
    match_many(case.symmetry, sets)
    assert all(
        torch.equal(x, y) for a, b in zip(before, sets, strict=True) for s in a for x, y in zip(a[s], b[s], strict=True)
    )
