"""Discovery never invents a symmetry: random architectures, and the rules one by one."""

import pytest
import torch
from architectures import random_net, run

from pyro_align.discovery import find_symmetry


def holds(seed):
    net = random_net(seed)
    symmetry = find_symmetry(net, net.input, trials=2, seed=seed)
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


def test_the_generator_makes_symmetric_networks():
    """Soundness of empty answers would prove nothing."""
    free = [len(find_symmetry(net := random_net(seed), net.input, trials=1).atoms) for seed in range(12)]
    assert sum(n > 0 for n in free) >= 9
