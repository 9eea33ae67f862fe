"""What other people's test suites assert about their functions, asserted of ours on the same kind of input.

Of rebasin: a permuted network computes what it did, lies nearer, and a mean of models is that of their parameters; of
sinkhorn-rebasin: a planted permutation is found again; of label.switching: pivots keep their labels, and permutations
reorder parameters and allocations alike; of otfusion, which has no tests, what its code asserts as it runs.
"""

import copy

import pytest
import torch
from torch import nn

from pyro_align import SymmetrySpec, align, align_draws, align_many, find_symmetry
from pyro_align.objectives import Activations
from pyro_align.paths import reset_batch_norm


def mlp(width, depth, seed):
    torch.manual_seed(seed)
    layers = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, width))


def distance(one, other):
    parts = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return float(sum((a - b).double().square().sum() for a, b in parts)) ** 0.5


def test_a_long_perceptron_computes_what_it_did():
    """rebasin: test_long_mlp, 100 layers there."""
    a, b, x = mlp(6, 30, 0), mlp(6, 30, 1), torch.randn(5, 6)
    alignment = align(a, b, find_symmetry(a, x))
    assert torch.allclose(alignment.guide(x), b(x))
    moved = sum(int((p != q).sum()) for p, q in zip(alignment.guide.parameters(), b.parameters(), strict=True))
    assert moved > 0.1 * sum(p.numel() for p in b.parameters())


def test_an_aligned_network_lies_nearer():
    """rebasin: TestPermutationCoordinateDescent."""
    a, b, x = mlp(15, 3, 0), mlp(15, 3, 1), torch.randn(5, 15)
    before = distance(a, b)
    alignment = align(a, b, find_symmetry(a, x))
    assert distance(a, alignment.guide) < before
    assert alignment.distance == pytest.approx(distance(a, alignment.guide))
    assert distance(a, b) == before, "the network given stays as it was"


def test_the_mean_of_many_is_that_of_their_parameters():
    """rebasin: test_merge_many, get_mean_model."""
    x = torch.randn(5, 6)
    many = align_many([mlp(6, 1, seed) for seed in range(3)], find_symmetry(mlp(6, 1, 0), x))
    center = many.center_guide.state_dict()
    for name, value in center.items():
        assert torch.allclose(value, torch.stack([g.state_dict()[name] for g in many.guides]).mean(0))


def test_batch_normalization_is_measured_again():
    """rebasin: test_recalculate_batch_norms."""
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
    made = reset_batch_norm(network.eval(), [torch.randn(20, 3)])
    assert bool((made[1].running_mean != 0).all())
    assert bool((network[1].running_mean == 0).all()), "of the copy alone"
    assert not made.training


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_permutation_is_found_again(seed):
    """sinkhorn-rebasin: its alignment examples, a network against a permuted copy of itself."""
    a, x = mlp(12, 2, seed), torch.randn(5, 12)
    symmetry = find_symmetry(a, x)
    planted = symmetry.random(seed)
    b = mlp(12, 2, seed)
    b.load_state_dict(planted.apply(a.state_dict()))
    alignment = align(a, b, symmetry)
    assert alignment.permutation @ planted == symmetry.identity()
    assert alignment.distance == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("by", ["weights", "activations"])
def test_a_network_fused_with_itself_stays_what_it_is(by):
    """otfusion: plans whose rows and columns sum to one, a network averaged with itself, tensors of the same shapes."""
    a, x = mlp(8, 2, 0), torch.randn(50, 8)
    how = {"divergence": Activations(a, x)} if by == "activations" else {}
    alignment = align(a, copy.deepcopy(a), find_symmetry(a, x), **how)
    for index in alignment.permutation.indices.values():
        plan = nn.functional.one_hot(index.long(), len(index))
        assert bool((plan.sum(0) == 1).all())
        assert bool((plan.sum(1) == 1).all())
    fused = alignment.path(0.5)
    assert {k: v.shape for k, v in fused.named_parameters()} == {k: v.shape for k, v in a.named_parameters()}
    assert distance(a, fused) == 0.0
    assert torch.equal(fused[:2](x), a[:2](x))


@pytest.mark.parametrize("method", ["pivot", "ecr", "ecr_iterative_1", "ecr_iterative_2", "stephens"])
def test_parameters_and_allocations_are_reordered_alike(method):
    """label.switching: permute.mcmc on its own example's kind of input."""
    torch.manual_seed(0)
    loc = torch.tensor([-3.0, 0.0, 4.0]) + 0.1 * torch.randn(1, 40, 3)
    order = torch.rand(1, 40, 3).argsort(-1)
    switched, truth = loc.gather(-1, order), torch.arange(12) % 3
    z = order.argsort(-1)[:, :, truth]
    allocations = nn.functional.one_hot(z, 3).double() if method in ("stephens", "ecr_iterative_2") else z
    options = {} if method == "pivot" else {"allocations": allocations}
    aligned = align_draws({"loc": switched}, SymmetrySpec({"loc": ("k",)}), method=method, reference=(0, 7), **options)
    index = aligned.permutations["k"].long()
    assert torch.equal(aligned.draws["loc"], switched.gather(-1, index))
    named = aligned.relabel_allocations(z)
    assert bool((named == named[:, 7:8]).all())
    if method in ("pivot", "ecr"):
        assert torch.equal(index[0, 7], torch.arange(3)), "the pivot keeps its labels"
