"""`match`: its input checks, starts, selection, margins and matchers with a loss of the caller's."""

import math
import weakref
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from matching_problems import STRUCTURES, features, relabel

from pyro_align.errors import MatchError
from pyro_align.matching import (
    MATCHERS,
    Coordinate,
    Exhaustive,
    Sinkhorn,
    StraightThrough,
    assignment,
    elements,
    match,
    objective,
)
from pyro_align.matching.assignment import assign
from pyro_align.matching.coordinate import make_updates
from pyro_align.matching.curvature import second_order, swap_curvature
from pyro_align.matching.descent import hard_values
from pyro_align.matching.labels import Labels, relabeled
from pyro_align.matching.problem import Problem
from pyro_align.matching.sinkhorn import project, soft_values
from pyro_align.matching.sums import UnitSums
from pyro_align.symmetry import SymmetrySpec
from pyro_align.symmetry.blocks import site_blocks
from pyro_align.symmetry.group import Symmetry


@pytest.fixture
def small():
    case = STRUCTURES["two layers"]
    return case.symmetry, features(case.symmetry, 0), features(case.symmetry, 1)


def changed(values, site, tensors):
    return {**values, site: tensors}


def test_a_missing_site_is_named(small):
    symmetry, fixed, moving = small
    with pytest.raises(MatchError, match="site 'w2' is missing from moving"):
        match(symmetry, fixed, {k: v for k, v in moving.items() if k != "w2"})


def test_sites_without_a_symmetry_are_ignored(small):
    symmetry, fixed, moving = small
    extra = {"free": (torch.ones(3),)}
    assert (
        match(symmetry, {**fixed, **extra}, {**moving, **extra}).objective == match(symmetry, fixed, moving).objective
    )


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (lambda v: (v[0],), "2 features in fixed=, 1 in moving="),
        (lambda v: v[0], "expected a sequence"),
        (lambda v: (v[0], v[1].T), r"expected shape \(3, 4\).*got \(4, 3\)"),
        (lambda v: (v[0], v[1].to(torch.complex128)), "real floating point"),
        (lambda v: (v[0], v[1].long()), "real floating point"),
        (lambda v: (v[0], v[1].to("meta")), "lies on meta"),
        (lambda v: (v[0], v[1].fill_(math.nan)), "12 of 12 values are NaN"),
        (lambda v: (v[0], v[1].index_fill(0, torch.tensor([1]), math.inf)), "4 of 12 values"),
        (lambda v: (v[0], v[1].numpy()), "got ndarray"),
    ],
)
def test_bad_features_are_named(small, tensors, message):
    symmetry, fixed, moving = small
    with pytest.raises(MatchError, match=message) as error:
        match(symmetry, fixed, changed(moving, "w2", tensors(moving["w2"])))
    assert "site 'w2'" in str(error.value)


def test_features_of_several_dtypes_are_compared_in_the_widest(small):
    symmetry, fixed, moving = small
    narrow = changed(moving, "w2", tuple(v.float() for v in moving["w2"]))
    found = match(symmetry, fixed, narrow)
    wide = match(symmetry, fixed, changed(moving, "w2", tuple(v.float().double() for v in moving["w2"])))
    assert found.permutation == wide.permutation
    assert found.objective == wide.objective


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matcher": "hungarian"}, "unknown matcher 'hungarian'"),
        ({"init": "best"}, "unknown init 'best'"),
        ({"max_sweeps": -1}, "max_sweeps >= 0"),
        ({"restarts": -1}, "restarts >= 0"),
        ({"wave": 0}, "wave >= 1"),
        ({"time_limit": "x"}, "time_limit > 0"),
        ({"restarts": 1.5}, "whole numbers"),
        ({"time_limit": 0.0}, "time_limit > 0"),
        ({"init": STRUCTURES["one layer"].symmetry.identity()}, "another symmetry"),
        ({"matcher": Exhaustive(limit=10)}, "more than limit=10"),
    ],
)
def test_bad_options_are_refused(small, options, message):
    with pytest.raises(MatchError, match=message):
        match(*small, **options)


def test_signs_need_to_know_which_features_are_odd():
    case = STRUCTURES["signs"]
    values = features(case.symmetry, 0)
    with pytest.raises(MatchError, match=r"odd=\(True, False\)"):
        match(case.symmetry, values, values)
    with pytest.raises(MatchError, match="one bool for each of its 2 features"):
        match(case.symmetry, values, values, odd=(True,))


def test_a_spec_takes_its_sizes_from_the_features():
    found = match(SymmetrySpec({"w": ("h",)}), {"w": (torch.arange(3.0),)}, {"w": (torch.tensor([2.0, 0.0, 1.0]),)})
    assert found.permutation.indices["h"].tolist() == [1, 2, 0]


def test_not_a_symmetry_is_refused():
    with pytest.raises(TypeError, match="Symmetry"):
        match({"w": ("h",)}, {}, {})


@pytest.mark.parametrize("name", STRUCTURES)
def test_sites_may_be_worked_on_in_runs(name, monkeypatch):
    case = STRUCTURES[name]
    fixed, moving = features(case.symmetry, 3), features(case.symmetry, 4)
    whole = match(case.symmetry, fixed, moving, odd=case.odd)
    monkeypatch.setattr("pyro_align.symmetry.blocks._RUN", 3)
    pieces = match(case.symmetry, fixed, moving, odd=case.odd)
    assert pieces.permutation == whole.permutation
    assert pieces.objective == pytest.approx(whole.objective, rel=1e-12)


def test_runs_cover_a_block_and_leave_nested_axes_whole():
    case = STRUCTURES["one layer"]
    (block,) = site_blocks("w1", case.symmetry.sites["w1"])
    value = torch.arange(4.0 * 300000).reshape(4, 300000)
    wide = [run for run, _ in block.runs(value.repeat(4, 1), value.repeat(4, 1))]
    assert len(wide) > 1
    assert torch.equal(torch.cat(wide, 1), value.repeat(4, 1))


class CountedLooks(dict):
    """Features that say how many sites were ever held at once."""

    def __init__(self, values):
        super().__init__(values)
        self.alive = self.most = 0

    def __getitem__(self, site):
        made = tuple(t.clone() for t in super().__getitem__(site))
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(made[0], self._gone)
        return made

    def _gone(self):
        self.alive -= 1


def test_features_are_read_site_by_site():
    symmetry = Symmetry.from_axes(
        {f"w{i}": (f"h{i}", None) for i in range(20)}, shapes={f"w{i}": (3, 4) for i in range(20)}
    )
    fixed, moving = (CountedLooks(features(symmetry, s)) for s in (0, 1))
    found = match(symmetry, fixed, moving)
    assert found.status == "optimal"  # each atom is settled by one assignment
    assert max(fixed.most, moving.most) <= 3


def test_statuses_and_counts(small):
    none = match(*small, max_sweeps=0)
    assert (none.status, none.sweeps, len(none.history)) == ("max_sweeps", 0, 1)
    assert match(*small).status == "optimal"
    done = match(*small, matcher=Coordinate(prove=False))
    assert done.status == "converged"
    assert done.sweeps == len(done.history) - 1 >= 1
    assert set(done.seconds) == {"gain", "assignment", "rest"}


def test_progress_reports_each_sweep(small, capsys):
    seen = []
    found = match(*small, progress=lambda sweep, value: seen.append(sweep))
    assert seen == list(range(found.sweeps + 1))
    match(*small, progress=True)
    assert f"objective={found.objective:.8g}" in capsys.readouterr().err


def test_float32_stays_float32():
    case = STRUCTURES["one layer"]
    fixed, moving = (features(case.symmetry, s, dtype=torch.float32) for s in (0, 1))
    problem = Problem(case.symmetry, fixed, moving)
    update = make_updates(problem)[0]
    assert update.gain(Labels(case.symmetry.identity(), problem.device)).dtype == torch.float32
    assert match(case.symmetry, fixed, moving).status == "optimal"


def test_a_pair_that_is_aligned_already_is_searched_once():
    """What it gives as it is and where the search ends are summed in another order, and differ by rounding."""
    symmetry = Symmetry.from_axes({"w": ("h", None), "v": (None, "h")}, shapes={"w": (300, 500), "v": (40, 300)})
    moving = features(symmetry, 0, dtype=torch.float32)
    fixed = relabel(moving, symmetry.identity(), noise=0.05)
    sweeps = []
    found = match(symmetry, fixed, moving, progress=lambda sweep, value: sweeps.append(sweep))
    assert found.permutation == symmetry.identity()
    assert sweeps == [0, 1]


@pytest.mark.parametrize("name", STRUCTURES)
def test_blocks_relabel_as_permutations_do(name):
    case = STRUCTURES[name]
    permutation = case.symmetry.random(3)
    labels = Labels(permutation, torch.device("cpu"))
    for site, (value, _) in features(case.symmetry, 0).items():
        out = torch.full_like(value, math.nan)
        for block in site_blocks(site, case.symmetry.sites[site]):
            block.view(out).copy_(relabeled(block, block.view(value), labels))
        assert torch.equal(out, permutation.apply_site(site, value))


@pytest.mark.parametrize("name", STRUCTURES)
def test_soft_relabeling_at_a_vertex_is_hard(name):
    case = STRUCTURES[name]
    values = features(case.symmetry, 0)
    problem = Problem(case.symmetry, values, values, case.odd)
    labels = Labels(case.symmetry.random(5), problem.device)
    soft = {k: torch.nn.functional.one_hot(v, v.shape[-1]).double() for k, v in labels.indices.items()}
    relaxed = soft_values(problem, soft, {k: v.double() for k, v in labels.signs.items()})
    hard = hard_values(problem, labels)
    for site in values:
        for a, b in zip(relaxed[site], hard[site], strict=True):
            torch.testing.assert_close(a, b)


def test_incremental_gains_equal_fresh_ones():
    symmetry = Symmetry.from_axes(
        {"w1": ("a", None), "w2": ("b", "a"), "w3": (None, "b")}, shapes={"w1": (20, 3), "w2": (30, 20), "w3": (2, 30)}
    )
    problem = Problem(symmetry, features(symmetry, 0), features(symmetry, 1))
    labels = Labels(symmetry.identity(), problem.device)
    update = make_updates(problem)[0]
    assert update.name == "a"
    update.gain(labels)
    for count in (2, 30):  # a few units of the neighbor, then all
        index = labels.indices["b"].clone()
        index[:count] = index[:count].roll(1)
        labels.replace({"b": index}, {})
        torch.testing.assert_close(update.gain(labels), make_updates(problem)[0].gain(labels))


def test_gains_made_anew_equal_incremental_ones():
    """Of a recurrent atom all gains change with every move: few units, then nearly all."""
    case = STRUCTURES["gates"]
    problem = Problem(case.symmetry, features(case.symmetry, 0), features(case.symmetry, 1))
    labels = Labels(case.symmetry.identity(), problem.device)
    update = make_updates(problem)[0]
    for index in ([0, 1, 3, 2], [3, 0, 1, 2], [1, 2, 3, 0]):
        labels.replace({"h": torch.tensor(index)}, {})
        torch.testing.assert_close(update.gain(labels), make_updates(problem)[0].gain(labels))


def test_the_curvature_of_swaps_is_that_of_the_moves():
    symmetry = Symmetry.from_axes(
        {"w": (["h"] * 2, "h"), "v": ("h", "h", None), "p": ("h", None)},
        shapes={"w": (12, 6), "v": (6, 6, 2), "p": (6, 2)},
    )
    problem = Problem(symmetry, features(symmetry, 0), features(symmetry, 1))
    blocks = [b for b in problem.touching["h"] if len(b.positions("h")) == 2]
    labels = Labels(symmetry.random(1), problem.device)
    pairs = torch.tensor([0, 2, 5]), torch.tensor([4, 3, 1])
    found = swap_curvature(problem, blocks, "h", labels, pairs)
    for value, i, k in zip(found.tolist(), *(p.tolist() for p in pairs), strict=True):
        swapped = labels.copy()
        index = labels.indices["h"].clone()
        index[i], index[k] = labels.indices["h"][k], labels.indices["h"][i]
        swapped.replace({"h": index}, {})
        assert value == pytest.approx(second_order(problem, blocks, "h", labels, swapped))


def test_sums_by_unit_do_not_depend_on_how_a_site_is_cut(monkeypatch):
    symmetry = Symmetry.from_axes({"w": ("a", "b", None), "v": (None, "a")}, shapes={"w": (7, 5, 3), "v": (4, 7)})
    problem = Problem(symmetry, features(symmetry, 0), features(symmetry, 1))
    labels = Labels(symmetry.random(2), problem.device)
    whole = UnitSums(problem)
    monkeypatch.setattr("pyro_align.symmetry.blocks._SLAB", 30)
    pieces = UnitSums(problem)
    for block in problem.blocks:
        assert pieces.value(block, labels) == pytest.approx(whole.value(block, labels), rel=1e-12)
        for a, b in zip(
            (*pieces.norms(block), pieces.products(block, labels)),
            (*whole.norms(block), whole.products(block, labels)),
            strict=True,
        ):
            assert a.keys() == b.keys() == set(block.free)
            for place in a:
                torch.testing.assert_close(a[place], b[place])


def test_a_certified_assignment_is_the_best_one():
    symmetry = Symmetry.from_axes(
        {"w1": ("a", None), "w2": ("b", "a"), "w3": (None, "b")},
        shapes={"w1": (30, 200), "w2": (40, 30), "w3": (20, 40)},
    )
    moving = features(symmetry, 1)
    fixed = relabel(moving, symmetry.random(2), noise=0.02)
    problem = Problem(symmetry, fixed, moving)
    labels = Labels(match(symmetry, fixed, moving).permutation, problem.device)
    evidence = make_updates(problem)[0].linear
    first = max(evidence.parts, key=lambda p: p.shape[2])
    evidence.bring(labels, [first])
    assert evidence.pending()
    assert evidence.certifies(labels, labels.indices["a"])
    assert evidence.pending()  # and it did so without adding what was left
    wrong = labels.indices["a"].roll(1)
    assert not evidence.certifies(labels, wrong)


@pytest.mark.parametrize("solver", ["lapx", "scipy"])
def test_assign_is_optimal(solver, monkeypatch):
    if solver == "lapx":
        pytest.importorskip("lap")
        monkeypatch.setattr(assignment, "_EASY", -1.0)
    else:
        monkeypatch.setattr(assignment, "_fast_solver", lambda: None)
    gain = torch.randn(4, 5, 5)
    best = assign(gain)
    for matrix, index in zip(gain, best, strict=True):
        orders = [element.indices["a"] for element in elements(Symmetry.from_axes({"w": ("a",)}, shapes={"w": (5,)}))]
        assert matrix[torch.arange(5), index].sum() == max(matrix[torch.arange(5), o].sum() for o in orders)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["random", "ties", "all alike", "same wish"])
def test_the_solvers_agree(kind, dtype):
    """`lapx` and SciPy reach the same total, also where the best assignment is not unique."""
    pytest.importorskip("lap")
    generator = torch.Generator().manual_seed(0)
    gain = torch.randn(100, 100, generator=generator, dtype=dtype)
    if kind == "ties":
        gain = gain.round()
    elif kind == "all alike":
        gain = torch.zeros_like(gain)
    elif kind == "same wish":
        gain = gain[0].abs().exp() * gain[:, :1].abs()
    found = [assignment._solve(gain, wanted) for wanted in (0.0, 1.0)]
    totals = [float(gain.double()[torch.arange(100), torch.from_numpy(f)].sum()) for f in found]
    assert sorted(found[1].tolist()) == list(range(100))
    assert totals[0] == pytest.approx(totals[1], rel=1e-6, abs=1e-6)


def test_exhaustive_counts_the_group():
    for name in ("one layer", "heads", "signs", "nested twice"):
        symmetry = STRUCTURES[name].symmetry
        assert sum(1 for _ in elements(symmetry)) == round(math.exp(symmetry.log_order))


def test_anchoring_beats_plain_sweeps_on_a_deep_problem():
    symmetry = Symmetry.from_axes(
        {f"w{i}": (f"h{i + 1}" if i < 3 else None, f"h{i}" if i else None) for i in range(4)},
        shapes={"w0": (40, 60), "w1": (40, 40), "w2": (40, 40), "w3": (5, 40)},
    )
    gaps = []
    for seed in range(3):
        fixed, moving = features(symmetry, 2 * seed), features(symmetry, 2 * seed + 1)
        plain = match(symmetry, fixed, moving, matcher=Coordinate(anchored=False))
        gaps.append(match(symmetry, fixed, moving).objective - plain.objective)
    assert np.mean(gaps) > 0


def test_spectral_start_recovers_a_copy():
    symmetry = STRUCTURES["only quadratic"].symmetry
    moving = features(symmetry, 4)
    fixed = relabel(moving, symmetry.random(5))
    found = match(symmetry, fixed, moving, init="spectral", max_sweeps=0)
    assert objective(symmetry, fixed, moving, found.permutation) == pytest.approx(
        sum(float(v.square().sum()) for v in fixed["transition"])
    )


@pytest.mark.parametrize("init", ["identity", "random"])
def test_named_starts(small, init):
    assert match(*small, init=init, max_sweeps=0).permutation == (
        small[0].identity() if init == "identity" else small[0].random(0)
    )


def test_select_chooses_by_the_callers_loss(small):
    symmetry, fixed, moving = small
    seen = []

    def loss(permutation):
        seen.append(-objective(symmetry, fixed, moving, permutation))
        return -seen[-1]  # the worst objective has the lowest loss

    found = match(*small, matcher=Coordinate(anchored=False), restarts=5, select=loss)
    assert len(seen) == 6
    assert found.loss == min(-s for s in seen)


@pytest.mark.parametrize("matcher", [Sinkhorn, StraightThrough])
def test_gradient_matchers_lower_the_callers_loss(matcher):
    case = STRUCTURES["one layer"]
    moving = features(case.symmetry, 1, count=1)
    other = features(case.symmetry, 2, count=1)  # the objective's target, which the loss does not know
    wanted = relabel(moving, case.symmetry.random(9))

    def loss(values):
        return sum((a - b).square().sum() for s in wanted for a, b in zip(values[s], wanted[s], strict=True))

    before = match(case.symmetry, other, moving)
    found = match(case.symmetry, other, moving, matcher=matcher(loss=loss, max_steps=60))
    after = {s: tuple(found.permutation.apply_site(s, v) for v in t) for s, t in moving.items()}
    start = {s: tuple(before.permutation.apply_site(s, v) for v in t) for s, t in moving.items()}
    assert loss(after) < loss(start)


def test_sinkhorn_projects_to_doubly_stochastic():
    matrix = project(torch.randn(3, 6, 6), 200)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(3, 6))
    torch.testing.assert_close(matrix.sum(-2), torch.ones(3, 6))


def test_margins_are_the_cost_of_the_cheapest_swap(small):
    symmetry, fixed, moving = small
    found = match(*small, with_margins=True)
    best = found.permutation
    for name, atom in symmetry.atoms.items():
        for i in range(atom.size):
            costs = []
            for k in set(range(atom.size)) - {i}:
                index = best.indices[name].clone()
                index[[i, k]] = index[[k, i]]
                swapped = symmetry.permutation({**best.indices, name: index})
                costs.append(found.objective - objective(symmetry, fixed, moving, swapped))
            assert float(found.margins[name][i]) == pytest.approx(min(costs), abs=1e-9)


def test_exchangeable_units_have_no_margin():
    symmetry = Symmetry.from_axes({"w": ("h", None)}, shapes={"w": (3, 2)})
    twins = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    found = match(symmetry, {"w": (twins,)}, {"w": (twins,)}, with_margins=True)
    assert found.margins["h"].tolist()[:2] == [0.0, 0.0]
    assert found.margins["h"][2] > 0


def test_every_matcher_has_its_name():
    assert all(cls.name == name for name, cls in MATCHERS.items())


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_heads_and_dimensions_are_matched_jointly(share):
    """Heads whose dimensions are shuffled look alike to a matcher that moves heads as blocks."""
    symmetry = Symmetry.from_axes(
        {"q": (("heads", "dims"), None), "k": (("heads", "dims"), None), "s": ("heads",)},
        shapes={"q": (24, 12), "k": (24, 12), "s": (4,)},
        within={"dims": "heads"},
    )
    for seed in range(3):
        moving = features(symmetry, seed)
        truth = symmetry.random(seed + 50)
        fixed = relabel(moving, truth, noise=share)
        assert match(symmetry, fixed, moving).permutation == truth


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_restarts_find_the_same_on_an_executor(pool):
    case = STRUCTURES["signs"]
    fixed, moving = features(case.symmetry, 3), features(case.symmetry, 4)
    options = {"odd": case.odd, "restarts": 6, "wave": 3, "seed": 5, "matcher": Coordinate(prove=False)}
    here = match(case.symmetry, fixed, moving, **options)
    with pool(2) as executor:
        there = match(case.symmetry, fixed, moving, **options, executor=executor)
    assert there.permutation == here.permutation
    assert there.history == here.history


def test_restarts_on_an_executor_are_chosen_by_the_loss(small):
    losses = []

    def loss(permutation):
        losses.append(float(len(losses)))
        return -losses[-1]

    with ThreadPoolExecutor(2) as executor:
        found = match(*small, restarts=5, wave=3, select=loss, executor=executor)
    assert found.loss == -5.0
    assert len(losses) == 6


def test_an_interrupt_while_restarts_run_elsewhere_keeps_the_best(small):
    class Interrupted(ThreadPoolExecutor):
        def submit(self, *args, **kwargs):
            future = super().submit(*args, **kwargs)

            def interrupt(timeout=None):
                raise KeyboardInterrupt

            future.result = interrupt
            return future

    with Interrupted(1) as executor:
        found = match(*small, restarts=5, wave=3, executor=executor, matcher=Coordinate(prove=False))
    assert found.status == "interrupted"
    assert found.objective == pytest.approx(match(*small).objective, rel=1e-12)  # a proof adds in another order
