"""Laws of every registered matcher, over problems of every structure."""

import functools
import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
from matching_problems import STRUCTURES, features, relabel

from pyro_align.matching import MATCHERS, FrankWolfe, Sinkhorn, StraightThrough, match, objective
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry

# the gradient matchers with few steps: the laws hold from the first
QUICK = {
    "frank_wolfe": FrankWolfe(max_steps=10),
    "sinkhorn": Sinkhorn(max_steps=4, iterations=5, round_every=2),
    "straight_through": StraightThrough(max_steps=3),
}
SEARCHES = [pytest.param(QUICK.get(name, name), id=name) for name in sorted(MATCHERS) if name != "exhaustive"]
ALL = [pytest.param(QUICK.get(name, name), id=name) for name in sorted(MATCHERS)]
SMALL = {name: s for name, s in STRUCTURES.items() if s.symmetry.log_order <= math.log(3000)}


def independent(name, seed=1):
    case = STRUCTURES[name]
    return case, features(case.symmetry, seed), features(case.symmetry, seed + 100)


@functools.cache
def independent_oracle(name):
    case, fixed, moving = independent(name, 2)
    return match(case.symmetry, fixed, moving, odd=case.odd, matcher="exhaustive").objective


@functools.cache
def planted_oracle(name, seed):
    case = STRUCTURES[name]
    moving = features(case.symmetry, seed)
    fixed = relabel(moving, case.symmetry.random(seed + 10), case.odd, noise=0.05, seed=seed)
    best = match(case.symmetry, fixed, moving, odd=case.odd, matcher="exhaustive").objective
    return case, fixed, moving, best


def reference(case, fixed, moving, permutation):
    """The objective in its plainest form."""
    total = 0.0
    for site in case.symmetry.sites:
        for k, (f, m) in enumerate(zip(fixed[site], moving[site], strict=True)):
            odd = case.odd[k] if case.odd else False
            total += float((f * permutation.apply_site(site, m, signs=odd)).sum())
    return total


@pytest.mark.parametrize("matcher", SEARCHES)
@pytest.mark.parametrize("name", STRUCTURES)
def test_valid_monotone_and_exact(name, matcher):
    case, fixed, moving = independent(name)
    found = match(case.symmetry, fixed, moving, odd=case.odd, matcher=matcher)
    assert isinstance(found.permutation, Permutation)  # which checks that every index is a permutation
    assert found.status in ("converged", "optimal")
    assert found.objective == pytest.approx(reference(case, fixed, moving, found.permutation), rel=1e-12)
    assert all(b >= a - 1e-9 for a, b in zip(found.history, found.history[1:], strict=False))
    assert found.history[-1] == pytest.approx(found.objective, rel=1e-12)
    assert found.objective >= reference(case, fixed, moving, case.symmetry.identity()) - 1e-9


@pytest.mark.parametrize("matcher", SEARCHES)
@pytest.mark.parametrize("name", SMALL)
def test_never_above_the_oracle(name, matcher):
    case, fixed, moving = independent(name, 2)
    found = match(case.symmetry, fixed, moving, odd=case.odd, matcher=matcher)
    assert found.objective <= independent_oracle(name) + 1e-9


@pytest.mark.parametrize("matcher", SEARCHES)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("seed", range(3))
def test_planted_equals_the_oracle(name, matcher, seed):
    case, fixed, moving, best = planted_oracle(name, seed)
    found = match(
        case.symmetry, fixed, moving, odd=case.odd, matcher=matcher, restarts=20 if case.quadratic_only else 0
    )
    assert found.objective == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("matcher", SEARCHES)
@pytest.mark.parametrize("name", [n for n, s in STRUCTURES.items() if not s.quadratic_only])
def test_a_relabeled_copy_is_recovered_exactly(name, matcher):
    case = STRUCTURES[name]
    moving = features(case.symmetry, 5)
    fixed = relabel(moving, case.symmetry.random(6), case.odd)
    found = match(case.symmetry, fixed, moving, odd=case.odd, matcher=matcher)
    again = relabel(moving, found.permutation, case.odd)
    for site in case.symmetry.sites:
        for a, b in zip(fixed[site], again[site], strict=True):
            assert torch.equal(a, b), site


@pytest.mark.parametrize("matcher", SEARCHES)
@pytest.mark.parametrize("name", STRUCTURES)
def test_same_seed_same_result(name, matcher):
    case, fixed, moving = independent(name, 3)
    state = torch.get_rng_state()
    runs = [match(case.symmetry, fixed, moving, odd=case.odd, matcher=matcher, seed=4, restarts=1) for _ in range(2)]
    assert runs[0].permutation == runs[1].permutation
    assert runs[0].history == runs[1].history
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("matcher", SEARCHES)
def test_an_optimum_given_as_start_is_kept(matcher):
    case, fixed, moving = independent("two layers", 7)
    best = match(case.symmetry, fixed, moving, matcher="exhaustive").permutation
    found = match(case.symmetry, fixed, moving, matcher=matcher, init=best)
    assert found.permutation == best


@pytest.mark.parametrize("matcher", SEARCHES)
@pytest.mark.parametrize("name", STRUCTURES)
def test_never_below_its_start(name, matcher):
    case, fixed, moving = independent(name, 8)
    start = case.symmetry.random(3)
    found = match(case.symmetry, fixed, moving, odd=case.odd, matcher=matcher, init=start)
    assert found.objective >= objective(case.symmetry, fixed, moving, start, odd=case.odd) - 1e-9


@pytest.mark.parametrize("matcher", ALL)
def test_an_expired_time_limit_gives_a_valid_start(matcher):
    case, fixed, moving = independent("two layers")
    found = match(case.symmetry, fixed, moving, matcher=matcher, time_limit=1e-9)
    assert found.status == "time_limit"
    assert found.objective >= objective(case.symmetry, fixed, moving, case.symmetry.identity()) - 1e-9


@pytest.mark.parametrize("matcher", SEARCHES)
def test_restarts_never_lose(matcher):
    case, fixed, moving = independent("only quadratic", 9)
    one = match(case.symmetry, fixed, moving, matcher=matcher)
    many = match(case.symmetry, fixed, moving, matcher=matcher, restarts=6)
    assert many.objective >= one.objective - 1e-12


@pytest.mark.parametrize("name", STRUCTURES)
def test_two_restarts_never_end_below_frank_wolfe(name):
    for seed in range(4):
        case, fixed, moving = independent(name, seed)
        joint = match(case.symmetry, fixed, moving, odd=case.odd, matcher="frank_wolfe", seed=seed)
        found = match(case.symmetry, fixed, moving, odd=case.odd, restarts=2, seed=seed)
        assert found.objective >= joint.objective - 1e-12
        assert found.matcher == "coordinate"


@pytest.mark.parametrize("matcher", SEARCHES)
def test_an_interrupt_gives_the_best_so_far(matcher):
    case, fixed, moving = independent("two layers")

    def interrupt(sweep, value):
        raise KeyboardInterrupt

    found = match(case.symmetry, fixed, moving, matcher=matcher, progress=interrupt)
    assert found.status == "interrupted"
    assert found.objective == pytest.approx(reference(case, fixed, moving, found.permutation), rel=1e-12)


@pytest.mark.parametrize("matcher", SEARCHES)
def test_inputs_are_left_alone(matcher):
    case, fixed, moving = independent("heads")
    before = {s: tuple(t.clone() for t in v) for s, v in moving.items()}
    match(case.symmetry, fixed, moving, matcher=matcher)
    assert all(torch.equal(a, b) for s in moving for a, b in zip(before[s], moving[s], strict=True))


def test_every_speed_trick_of_the_benchmark_can_be_switched_off(monkeypatch):
    """What is switched off by name is still there under that name, and matching does without it."""
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    for name in ("problems", "ablation"):  # the tests have problems of their own under that name
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        monkeypatch.setitem(sys.modules, name, importlib.util.module_from_spec(spec))
        spec.loader.exec_module(sys.modules[name])
    ablation = sys.modules["ablation"]

    axes, shapes = {"w1": ("h", None), "w2": ("g", "h")}, {"w1": (40, 300), "w2": (40, 40)}
    fixed, moving = ({k: (torch.randn(s),) for k, s in shapes.items()} for _ in range(2))
    expected = match(Symmetry.from_axes(axes, shapes=shapes), fixed, moving).objective
    for trick in ablation.TRICKS.values():
        with trick():  # how sites are cut is kept with a symmetry
            found = match(Symmetry.from_axes(axes, shapes=shapes), fixed, moving).objective
        assert found > 0.9 * expected
