"""Discovery never invents a symmetry: random architectures, and the rules one by one."""

import pytest
import torch
from architectures import ACTIVATIONS, SIGNED_ACTIVATIONS, random_net, run

from pyro_align.discovery import find_symmetry


def holds(seed, activations=ACTIVATIONS, **options):
    net = random_net(seed, activations)
    symmetry = find_symmetry(net, net.input, trials=2, seed=seed, **options)
    values = {k: v.detach() for k, v in net.named_parameters()}
    p = symmetry.random(seed)
    before, after = run(net, values), run(net, p.apply(values))
    torch.testing.assert_close(
        after, before, rtol=1e-8, atol=1e-9 * (1 + float(before.abs().max())), msg=str(net.program)
    )


@pytest.mark.parametrize("seed", range(50))
def test_random_architectures(seed):
    holds(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50, 1050))
def test_many_random_architectures(seed):
    holds(seed)


@pytest.mark.parametrize("seed", range(50))
def test_signs_of_random_architectures(seed):
    holds(seed, SIGNED_ACTIVATIONS, signs=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50, 1050))
def test_signs_of_many_random_architectures(seed):
    holds(seed, SIGNED_ACTIVATIONS, signs=True)


def test_the_generator_makes_signs():
    """Soundness of empty answers would prove nothing."""
    nets = [random_net(seed, SIGNED_ACTIVATIONS) for seed in range(12)]
    odd = [len(find_symmetry(net, net.input, trials=1, signs=True).signed) for net in nets]
    assert sum(n > 0 for n in odd) >= 8


def test_the_generator_makes_symmetric_networks():
    """Soundness of empty answers would prove nothing."""
    free = [len(find_symmetry(net := random_net(seed), net.input, trials=1).atoms) for seed in range(12)]
    assert sum(n > 0 for n in free) >= 9
