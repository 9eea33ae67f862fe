"""Relabeling draws: laws over every kind of symmetry, and the methods on mixtures with known labels."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from draws_problems import MIXTURE, faithful, gibbs, planted, signed_network, simulate

from pyro_align import Symmetry, align_draws
from pyro_align.axes import Odd, Product, Sum
from pyro_align.draws.coordinates import coordinate
from pyro_align.draws.search import UnitMatcher
from pyro_align.draws.stack import per_unit, restricted, transpositions, unit_objective
from pyro_align.matching import elements

SYMMETRIES = {
    "mixture": Symmetry.from_axes({"a": ("k",), "b": ("k", None)}, shapes={"a": (4,), "b": (4, 2)}),
    "two layers": Symmetry.from_axes(
        {"w1": ("h1", None), "b1": ("h1",), "w2": ("h2", "h1"), "w3": (None, "h2")},
        shapes={"w1": (5, 3), "b1": (5,), "w2": (6, 5), "w3": (2, 6)},
    ),
    "signed": Symmetry.from_axes(
        {"w1": (Odd("h"), None), "b1": (Odd("h"),), "w2": (Odd("h"),), "s": ("h",)},
        shapes={"w1": (6, 3), "b1": (6,), "w2": (6,), "s": (6,)},
    ),
    "nested": Symmetry.from_axes(
        {"q": (Product("head", "dim"), None), "g": ("head",), "o": (None, Product("head", "dim"))},
        shapes={"q": (6, 4), "g": (2,), "o": (4, 6)},
        within={"dim": "head"},
    ),
    "markov": Symmetry.from_axes({"move": ("k", "k"), "loc": ("k",)}, shapes={"move": (4, 4), "loc": (4,)}),
    "sums": Symmetry.from_axes({"w": (Sum("k", "k"), None), "v": (Sum("k", 2),)}, shapes={"w": (8, 2), "v": (6,)}),
}


@pytest.mark.parametrize("name", SYMMETRIES)
@pytest.mark.parametrize("method", ["pivot", "barycenter"])
def test_planted_relabelings_are_undone(name, method):
    symmetry = SYMMETRIES[name]
    draws, point, moves = planted(symmetry)
    aligned = align_draws(draws, symmetry, method=method, reference=point)
    assert aligned.converged
    for c, chain in enumerate(moves):
        for d, move in enumerate(chain):
            assert aligned.permutation(c, d) @ move == symmetry.identity(), (c, d)


@pytest.mark.parametrize("name", SYMMETRIES)
def test_draws_are_the_given_ones_relabeled(name):
    symmetry = SYMMETRIES[name]
    draws, _, _ = planted(symmetry, noise=1.0)
    before = {k: v.clone() for k, v in draws.items()}
    aligned = align_draws(draws, symmetry, reference=(0, 3))
    for c, d in [(0, 0), (1, 7)]:
        moved = aligned.permutation(c, d).apply({k: v[c, d] for k, v in draws.items()})
        for k, v in moved.items():
            assert torch.equal(aligned.draws[k][c, d], v)
    assert all(torch.equal(draws[k], before[k]) for k in draws)
    assert aligned.permutation(0, 3) == symmetry.identity()


@pytest.mark.parametrize("name", SYMMETRIES)
def test_the_result_does_not_depend_on_the_labels_given(name):
    """Relabeling the input at random changes nothing but the permutations."""
    symmetry = SYMMETRIES[name]
    draws, point, _ = planted(symmetry, noise=0.2)
    shuffle = per_unit(symmetry, 30).random(5)
    again = {k: shuffle.apply_site(k, v.flatten(0, 1)).reshape(v.shape) for k, v in draws.items()}
    one, two = (align_draws(d, symmetry, reference=point) for d in (draws, again))
    for k in draws:
        torch.testing.assert_close(one.draws[k], two.draws[k])


@pytest.mark.parametrize("name", ["mixture", "signed", "nested", "markov", "sums"])
def test_every_draw_gets_the_best_relabeling_of_a_small_group(name):
    small = {
        "signed": Symmetry.from_axes({"w": (Odd("h"), None), "s": ("h",)}, shapes={"w": (3, 2), "s": (3,)}),
    }
    symmetry = restricted(small.get(name, SYMMETRIES[name]))
    g = torch.Generator().manual_seed(1)
    fixed = {s: (torch.randn(shape, generator=g),) for s, shape in symmetry.shapes.items()}
    moving = {s: (torch.randn(9, *shape, generator=g),) for s, shape in symmetry.shapes.items()}
    found = UnitMatcher(symmetry, (True,))(fixed, moving).permutation
    score = unit_objective(found, fixed, moving, (True,))
    best = torch.full((9,), -math.inf)
    for element in elements(symmetry):
        moved = [sum((fixed[s][0] * element.apply_site(s, moving[s][0][u])).sum() for s in fixed) for u in range(9)]
        best = torch.maximum(best, torch.stack(moved))
    torch.testing.assert_close(score, best)


def test_no_draw_is_left_worse_than_it_was():
    symmetry = SYMMETRIES["two layers"]
    draws, _, _ = planted(symmetry, noise=3.0, draws=40)
    aligned = align_draws(draws, symmetry, reference=(0, 0))
    pivot = {k: v[0, 0] for k, v in draws.items()}

    def distance(d):
        return sum((v - pivot[k]).square().flatten(2).sum(-1) for k, v in d.items())

    assert bool((distance(aligned.draws) <= distance(draws) + 1e-9).all())
    assert float(distance(aligned.draws).mean()) < float(distance(draws).mean())


def test_same_seed_same_answer_and_restarts_never_lose():
    symmetry = SYMMETRIES["two layers"]
    draws, point, _ = planted(symmetry, noise=2.0)
    one, two = (align_draws(draws, symmetry, reference=point, seed=3) for _ in range(2))
    more = align_draws(draws, symmetry, reference=point, seed=3, restarts=3)
    assert all(torch.equal(one.permutations[k], two.permutations[k]) for k in one.permutations)

    def distance(aligned):
        return sum((v - point[k]).square().flatten(2).sum(-1) for k, v in aligned.draws.items())

    assert bool((distance(more) <= distance(one) + 1e-9).all())


def test_slices_do_not_matter(monkeypatch):
    from pyro_align.draws import sources, units

    data = simulate([-3.0, 0.0, 3.0], 0.3)
    whole = align_draws(data.draws, MIXTURE, method="barycenter", weights="diagonal", reference=(0, 0))
    moved = whole.draws["loc"]
    monkeypatch.setattr(units, "_NUMBERS", 100)
    monkeypatch.setattr(sources, "_SLICE", 100)
    parts = align_draws(data.draws, MIXTURE, method="barycenter", weights="diagonal", reference=(0, 0))
    assert torch.equal(whole.permutations["k"], parts.permutations["k"])
    assert torch.equal(moved, parts.draws["loc"])


def test_one_relabeling_per_chain():
    data = simulate([-3.0, 0.0, 3.0], 0.3)
    orders = data.order[:, :1]
    draws = {k: v.gather(-1, orders.expand_as(v)) for k, v in data.clean.items()}
    aligned = align_draws(draws, MIXTURE, level="chain", reference=(0, 0))
    index = aligned.permutations["k"]
    assert bool((index == index[:, :1]).all())
    landed = orders.gather(-1, index[:, :1].long())
    assert bool((landed == landed[0]).all())


def test_a_chain_is_matched_as_its_mean():
    """What is best for the sum of a chain's draws, by trying all relabelings."""
    data = simulate([-1.0, 0.0, 1.0], 1.5, draws=20)
    aligned = align_draws(data.draws, MIXTURE, level="chain", reference=(0, 0))
    pivot = {k: v[0, 0] for k, v in data.draws.items()}
    for c in range(3):
        costs = {
            p: sum(float((v[c][:, list(p)] - pivot[k]).square().sum()) for k, v in data.draws.items())
            for p in permutations(range(3))
        }
        assert tuple(aligned.permutations["k"][c, 0].tolist()) == min(costs, key=costs.get)


# -- methods -----------------------------------------------------------------------------------------------------------

VALUE_METHODS = [("pivot", "equal"), ("pivot", "diagonal"), ("barycenter", "pooled"), ("barycenter", "diagonal")]
ALLOCATION_METHODS = ["stephens", "ecr", "ecr_iterative_1", "ecr_iterative_2"]


@pytest.mark.parametrize(("method", "weights"), VALUE_METHODS)
def test_separate_components_are_never_mistaken_by_value(method, weights):
    data = simulate([-6.0, 0.0, 6.0, 12.0], 0.5)
    aligned = align_draws(data.draws, MIXTURE, method=method, weights=weights)
    assert data.wrong(aligned) == 0.0


@pytest.mark.parametrize("method", ALLOCATION_METHODS)
def test_separate_components_are_never_mistaken_by_allocation(method):
    data = simulate([-6.0, 0.0, 6.0, 12.0], 0.5)
    p = data.probabilities()
    aligned = align_draws(data.draws, MIXTURE, method=method, allocations=p)
    assert data.wrong(aligned) == 0.0
    if method != "stephens":  # hard allocations are enough
        again = align_draws(data.draws, MIXTURE, method=method, allocations=p.argmax(-1))
        assert torch.equal(aligned.permutations["k"], again.permutations["k"])


@pytest.mark.parametrize("loc", [[-2.0, 0.0, 2.0], [0.0, 1.0, 4.0]])
def test_overlapping_components(loc):
    """Draws that overlap: the methods that average mistake fewer units than an artificial order does.

    All labels are known, so the best that any method could do is known: to assign by the true means.
    """
    data = simulate(loc, 0.8, draws=400, n=90)
    p = data.probabilities()
    wrong = {
        "ordering": data.wrong(align_draws(data.draws, MIXTURE, method="ordering", by="loc")),
        "barycenter": data.wrong(align_draws(data.draws, MIXTURE, method="barycenter", weights="diagonal")),
        **{m: data.wrong(align_draws(data.draws, MIXTURE, method=m, allocations=p)) for m in ALLOCATION_METHODS},
    }
    truth = {k: v.flatten(0, 1).mean(0) for k, v in data.clean.items()}
    ideal = data.wrong(align_draws(data.draws, MIXTURE, reference=truth))
    best = min(wrong[m] for m in ALLOCATION_METHODS)
    assert ideal <= wrong["ordering"] + 0.01
    assert wrong["barycenter"] <= best + 0.01, wrong
    assert wrong["barycenter"] <= wrong["ordering"] + 0.01, wrong


def test_stephens_is_the_algorithm_of_the_paper():
    """Algorithm 2 of Stephens (2000), written out: all relabelings, one draw at a time, until nothing changes."""
    data = simulate([-1.0, 0.0, 1.5], 0.8, chains=1, draws=60, n=25)
    p = data.probabilities()[0]
    q = p[7]
    for _ in range(50):
        chosen = []
        for draw in p:
            costs = {
                order: float((draw[:, list(order)] * (draw[:, list(order)] / q).log()).sum())
                for order in permutations(range(3))
            }
            chosen.append(min(costs, key=costs.get))
        new = torch.stack([draw[:, list(order)] for draw, order in zip(p, chosen, strict=True)]).mean(0)
        if torch.allclose(new, q):
            break
        q = new
    aligned = align_draws(data.draws, MIXTURE, method="stephens", allocations=p[None], reference=(0, 7))
    assert [tuple(i) for i in aligned.permutations["k"][0].tolist()] == chosen
    torch.testing.assert_close(aligned.reference["allocations"], q, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["ecr", "ecr_iterative_1", "ecr_iterative_2"])
def test_ecr_agrees_with_its_pivot_as_often_as_possible(method):
    data = simulate([-1.0, 0.0, 1.5], 0.8, chains=1, draws=60, n=25)
    p = data.probabilities()[0]
    aligned = align_draws(data.draws, MIXTURE, method=method, allocations=p[None], reference=(0, 7))
    pivot = aligned.reference["allocations"].argmax(-1)
    if method == "ecr":
        assert torch.equal(pivot, p[7].argmax(-1))
    else:
        index = aligned.permutations["k"][0].long()
        moved = torch.stack([d[:, i] for d, i in zip(p, index, strict=True)])
        hard = torch.nn.functional.one_hot(moved.argmax(-1), 3).double()
        mean = hard.mean(0) if method == "ecr_iterative_1" else moved.mean(0)
        assert torch.equal(pivot, mean.argmax(-1))
    for draw, index in zip(p, aligned.permutations["k"][0].tolist(), strict=True):
        agree = {o: int((draw[:, list(o)].argmax(-1) == pivot).sum()) for o in permutations(range(3))}
        assert agree[tuple(index)] == max(agree.values())


def test_ordering_orders():
    data = simulate([-1.0, 0.0, 1.0], 1.0)
    aligned = align_draws(data.draws, MIXTURE, method="ordering", by="loc")
    assert bool((aligned.draws["loc"].diff(dim=-1) >= 0).all())
    torch.testing.assert_close(aligned.draws["scale"].sum(-1), data.draws["scale"].sum(-1))


def test_allocation_labels_move_with_their_components():
    data = simulate([-6.0, 0.0, 6.0], 0.5)
    aligned = align_draws(data.draws, MIXTURE, reference=(0, 0))
    labels = data.probabilities().argmax(-1)
    again = data.probabilities(aligned.draws).argmax(-1)
    assert torch.equal(aligned.relabel_allocations(labels), again)


def test_a_published_mixture_of_two_normals():
    """Old Faithful: the estimates of Benaglia et al. (2009, mixtools), from draws whose labels switch at every step.

    They are maximum likelihood estimates; under weak priors the posterior means of relabeled draws lie near them.
    """
    y = faithful()
    draws = [gibbs(y, 2, draws=600, warmup=100, seed=s) for s in range(2)]
    draws = {k: torch.stack([d[k] for d in draws]) for k in draws[0]}
    supports = {"scale": torch.distributions.constraints.positive, "weights": torch.distributions.constraints.simplex}
    raw = {k: v.flatten(0, 1).mean(0) for k, v in draws.items()}
    assert float((raw["loc"][0] - raw["loc"][1]).abs()) < 5  # as they are, both components have the mean of all
    for method in ("pivot", "barycenter"):
        aligned = align_draws(draws, MIXTURE, method=method, weights="pooled", supports=supports)
        first = int(aligned.draws["loc"][0, 0].argmin())
        order = [first, 1 - first]
        mean = {k: v.flatten(0, 1).mean(0)[order] for k, v in aligned.draws.items()}
        torch.testing.assert_close(mean["loc"], torch.tensor([54.61489, 80.09109]), atol=0.25, rtol=0)
        torch.testing.assert_close(mean["scale"], torch.tensor([5.871241, 5.867718]), atol=0.35, rtol=0)
        torch.testing.assert_close(mean["weights"], torch.tensor([0.3608868, 0.6391132]), atol=0.01, rtol=0)


# -- figures -----------------------------------------------------------------------------------------------------------


def test_transpositions_count_swaps():
    for p in permutations(range(4)):
        swaps, q = 0, list(p)
        for i in range(4):
            while q[i] != i:
                j = q[i]
                q[i], q[j] = q[j], q[i]
                swaps += 1
        assert int(transpositions(torch.tensor(p))) == swaps
    big = torch.rand(3, 2, 50, generator=torch.Generator().manual_seed(0)).argsort(-1)
    assert transpositions(big).shape == (3, 2)
    assert int(transpositions(torch.arange(50).roll(1))) == 49


def test_report_before_and_after():
    data = simulate([-6.0, 0.0, 6.0], 0.3)
    aligned = align_draws({**data.draws, "other": torch.randn(3, 200)}, MIXTURE, reference=(0, 0))
    frame = aligned.report()
    assert set(frame.index) == {"weights", "loc", "scale", "other", "(all sites)"}
    total = frame.loc["(all sites)"]
    assert total["rhat"] < 1.05
    assert total["relabeled"] == int(aligned.relabeled.sum()) == frame.loc["loc", "relabeled"]
    assert frame.loc["other", "relabeled"] == 0
    expected = transpositions(aligned.permutations["k"]).double().mean()
    assert frame.loc["loc", "transpositions"] == pytest.approx(float(expected))
    assert total["modes"] == 1
    assert frame.loc["other", "rhat"] == frame.loc["other", "rhat before"]


def test_rhat_falls_where_chains_are_labeled_differently():
    data = simulate([-6.0, 0.0, 6.0], 0.3, draws=400)
    order = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 0, 2]])[:, None].expand(3, 400, 3)
    draws = {k: v.gather(-1, order) for k, v in data.clean.items()}
    frame = align_draws(draws, MIXTURE).report()
    assert frame.loc["(all sites)", "rhat before"] > 1.5
    assert frame.loc["(all sites)", "rhat"] < 1.02


def test_modes_that_relabeling_leaves():
    """Two explanations of the data, 3 to 1, that no relabeling turns into each other."""
    one, two = simulate([-6.0, 0.0, 6.0], 0.3, draws=300), simulate([-9.0, 6.0, 14.0], 0.3, draws=100, seed=1)
    draws = {k: torch.cat([one.draws[k], two.draws[k]], 1) for k in one.draws}
    modes = align_draws(draws, MIXTURE, reference=(0, 0)).modes()
    assert len(modes) == 2
    assert modes.weights == pytest.approx((0.75, 0.25))
    center = np.sort(modes.centers[1]["loc"])
    np.testing.assert_allclose(center, [-9, 6, 14], atol=0.2)
    assert bool((modes.labels[:, :300] == 0).all())
    assert bool((modes.labels[:, 300:] == 1).all())


def test_modes_of_a_model_without_units():
    """Every site is looked at, single numbers too."""
    symmetry = Symmetry.from_axes({"scale": (), "w": (None,)}, shapes={"scale": (), "w": (2,)})
    scale = torch.cat([torch.randn(2, 300) - 9, torch.randn(2, 100) + 9], 1)
    draws = {"scale": scale, "w": scale.unsqueeze(-1) + torch.randn(2, 400, 2)}
    assert align_draws(draws, symmetry).modes().weights == (0.75, 0.25)


def test_entropy_correction_is_the_log_of_the_group():
    data = simulate([-6.0, 0.0, 6.0], 0.3)
    assert align_draws(data.draws, MIXTURE).entropy_correction == pytest.approx(math.log(6))
    draws, point, _ = planted(signed_network().bind({"w1": (3, 2), "b1": (3,), "w2": (3,)}))
    aligned = align_draws(draws, signed_network(), reference=point)
    assert aligned.entropy_correction == pytest.approx(math.log(6) + 3 * math.log(2))


def test_coordinates_commute_with_relabeling():
    order = torch.tensor([2, 0, 3, 1])
    supports = torch.distributions.constraints
    values = {
        supports.positive: torch.rand(5, 4) + 0.1,
        supports.unit_interval: torch.rand(5, 4),
        supports.simplex: torch.softmax(torch.randn(5, 4), -1),
        supports.real: torch.randn(5, 4),
        supports.independent(supports.interval(0.0, 2.0), 1): 2 * torch.rand(5, 4),
    }
    for support, value in values.items():
        to = coordinate(support)
        torch.testing.assert_close(to(value[:, order]), to(value)[:, order])
    assert bool(coordinate(supports.positive)(torch.zeros(1)).isfinite().all())
    assert bool(coordinate(supports.positive)(torch.tensor([torch.nan])).isnan().all())
