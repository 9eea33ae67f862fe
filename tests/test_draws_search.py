"""How hard draws are searched: nothing planted is missed, and the result says what a second search found."""

import pytest
import torch

from pyro_align import Symmetry, SymmetrySpec, align_draws
from pyro_align.axes import Odd, Product, Sum
from pyro_align.draws.search import UnitMatcher, least_loss
from pyro_align.draws.soft import StackGains, softening
from pyro_align.draws.stack import per_unit, unit_objective
from pyro_align.matching import elements

A, B = Odd("a"), Odd("b")
NETWORK = Symmetry.from_axes(
    {"w1": (A, None), "b1": (A,), "w2": (B, A), "b2": (B,), "w3": (None, B)},
    shapes={"w1": (8, 2), "b1": (8,), "w2": (8, 8), "b2": (8,), "w3": (1, 8)},
)
HEADS = Symmetry.from_axes(
    {"q": (Product("head", "dim"), "unit"), "o": (None, Product("head", "dim")), "u": ("unit", None), "g": ("head",)},
    shapes={"q": (12, 6), "o": (3, 12), "u": (6, 2), "g": (3,)},
    within={"dim": "head"},
)


def noisy(symmetry, units, noise, seed=0):
    """A point, draws around it, and the same draws relabeled at random."""
    g = torch.Generator().manual_seed(seed)
    point = {k: torch.randn(shape, generator=g) for k, shape in symmetry.shapes.items()}
    true = {k: v + noise * torch.randn(units, *v.shape, generator=g) for k, v in point.items()}
    move = per_unit(symmetry, units).random(g)
    return point, true, {k: move.apply_site(k, v) for k, v in true.items()}


@pytest.mark.parametrize("method", ["pivot", "barycenter"])
def test_hardly_a_draw_ends_farther_from_the_reference_than_planted(method):
    point, true, moved = noisy(NETWORK, 100, 0.5)
    aligned = align_draws({k: v[None] for k, v in moved.items()}, NETWORK, method=method, reference=point)
    reference = point if method == "pivot" else aligned.reference

    def score(draws):
        return sum((reference[k] * draws[k].double()).flatten(1).sum(1) for k in point)

    farther = score({k: v[0] for k, v in aligned.draws.items()}) < score(true) - 1e-4
    assert float(farther.double().mean()) <= 0.03  # a third of the draws without annealing
    assert 0 <= aligned.improved <= 0.05
    assert f"a second search improved {aligned.improved:.1%} of the draws" in str(aligned)
    assert aligned.report(modes=False).loc["(all sites)", "improved"] == aligned.improved


def test_atoms_beside_nested_ones_are_searched_too():
    assert softening(HEADS) == ("unit",)
    point, true, moved = noisy(HEADS, 40, 0.3)
    aligned = align_draws({k: v[None] for k, v in moved.items()}, HEADS, reference=point, restarts=4)
    found = torch.stack([(aligned.draws[k][0] - true[k]).abs().flatten(1).amax(1) for k in point]).amax(0)
    assert float((found > 1e-6).double().mean()) <= 0.05


def test_where_an_assignment_decides_there_is_no_second_search():
    mixture = Symmetry.from_axes({"loc": ("k",)}, shapes={"loc": (4,)})
    _, _, moved = noisy(mixture, 20, 0.1)
    assert align_draws({"loc": moved["loc"][None]}, mixture).improved is None


def test_gains_are_derivatives_of_the_objective():
    """Exchanging two units changes the objective by what the gains say, for every way of carrying an atom."""
    symmetry = Symmetry.from_axes(
        {"w": (Odd("a"), Product("b", 2)), "v": (Sum("a", 3), None), "c": ("b",)},
        shapes={"w": (4, 6), "v": (7, 2), "c": (3,)},
    )
    point, _, moved = noisy(symmetry, 5, 0.5)
    stack = per_unit(symmetry, 5)
    fixed, moving = {k: (v,) for k, v in point.items()}, {k: (v,) for k, v in moved.items()}
    p = stack.random(3)
    gains = StackGains.of(symmetry, fixed, moving, (True,))
    even, odd = gains.gains.expected("a", gains.hard(p))
    index = p.indices["a"].clone()
    index[:, [0, 1]] = index[:, [1, 0]]
    q = stack.permutation({**p.indices, "a": index}, p.signs)

    def value(indices, signs):
        places = indices["a"].unsqueeze(-1)
        signed = odd.gather(2, places).squeeze(-1) * signs["a"]
        return (even.gather(2, places).squeeze(-1) + signed).sum(1).double()

    change = unit_objective(q, fixed, moving, (True,)) - unit_objective(p, fixed, moving, (True,))
    torch.testing.assert_close(value(q.indices, q.signs) - value(p.indices, p.signs), change, rtol=1e-4, atol=1e-4)


def test_the_second_best_labeling_is_found():
    mixture = Symmetry.from_axes({"w": (Odd("k"), None)}, shapes={"w": (3, 2)})
    point, _, moved = noisy(mixture, 6, 0.5)
    fixed, moving = {"w": (point["w"],)}, {"w": (moved["w"],)}
    matcher = UnitMatcher(mixture, (True,))
    p = matcher(fixed, moving).permutation
    every = torch.stack(
        [(point["w"] * e.apply_site("w", moved["w"], batch_dims=1)).flatten(1).sum(1) for e in elements(mixture)]
    ).double()
    best, second = every.topk(2, dim=0).values
    torch.testing.assert_close(least_loss(matcher, fixed, moving, p), best - second, rtol=1e-4, atol=1e-5)


def test_ambiguous_draws_are_counted():
    g = torch.Generator().manual_seed(0)
    far = torch.tensor([-6.0, 0.0, 6.0]) + torch.randn(2, 100, 3, generator=g)
    near = torch.tensor([-6.0, 0.0, 0.4]) + torch.randn(2, 100, 3, generator=g)
    symmetry = SymmetrySpec({"loc": ("k",)})
    clear, doubtful = (align_draws({"loc": v}, symmetry, method="barycenter") for v in (far, near))
    assert clear.ambiguous().mean() < 0.05
    assert doubtful.ambiguous().mean() > 0.5
    assert doubtful.report(modes=False).loc["(all sites)", "ambiguous"] == doubtful.ambiguous().mean()
    with pytest.raises(ValueError, match="odds must lie between"):
        clear.ambiguous(2.0)
    ordered = align_draws({"loc": far}, symmetry, method="ordering", by="loc")
    with pytest.raises(ValueError, match="does not compare labelings"):
        ordered.ambiguous()


def test_an_interrupt_is_not_swallowed(monkeypatch):
    from pyro_align.matching import coordinate

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(coordinate, "sweep_until_converged", interrupt)
    point, _, moved = noisy(NETWORK, 10, 0.5)
    with pytest.raises(KeyboardInterrupt):
        align_draws({k: v[None] for k, v in moved.items()}, NETWORK, reference=point)


@pytest.mark.parametrize("method", ["stephens", "ecr", "ecr_iterative_1", "ecr_iterative_2"])
def test_components_beside_those_that_are_exchanged(method):
    """A chain that starts in its first state: the other two are exchanged, and allocations are to all three."""
    g = torch.Generator().manual_seed(0)
    symmetry = SymmetrySpec({"loc": (Sum(1, "state"),)})
    order = torch.stack([torch.tensor([0, 1, 2]) if k % 2 else torch.tensor([0, 2, 1]) for k in range(40)]).reshape(
        2, 20, 3
    )
    loc = (torch.tensor([0.0, -5.0, 5.0]) + 0.1 * torch.randn(2, 20, 3, generator=g)).gather(-1, order)
    truth = torch.tensor([0, 1, 2, 2, 1, 0, 1])
    z = order.argsort(-1).gather(-1, truth.expand(2, 20, -1))
    p = 0.05 + 0.85 * torch.nn.functional.one_hot(z, 3)
    for given in (p, z) if method != "stephens" else (p,):
        aligned = align_draws(
            {"loc": loc, "z": z}, symmetry, method=method, allocations=given, reference=(0, 1), labels={"z": "state"}
        )
        assert float(aligned.draws["loc"].std((0, 1)).max()) < 0.3
        assert bool((aligned.draws["z"] == truth).all())
