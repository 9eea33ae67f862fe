"""Runs of a traced graph: in the network's own dtype, no further than asked, going on from other values where told."""

import pytest
import torch
from barrier_problems import make_guide

from pyro_align import displacement, find_symmetry, repair
from pyro_align.demo.network import bayesian_mlp
from pyro_align.discovery import preactivations, probe_activations
from pyro_align.discovery.graphs import Running

MODEL = bayesian_mlp([4, 9, 8, 3])


def data():
    return torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3


def hidden(values, x):
    first = torch.relu(x @ values["layer0.weight"].T + values["layer0.bias"])
    return first, torch.relu(first @ values["layer1.weight"].T + values["layer1.bias"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_run_is_in_the_dtype_of_the_trace_and_goes_no_further_than_asked(dtype):
    torch.set_default_dtype(dtype)  # conftest restores it
    x, y = data()
    probe = probe_activations(MODEL, x, y, symmetry=find_symmetry(MODEL, x, y))
    traced, (first, second) = probe._traced, probe._nodes.values()
    values = {k: torch.full_like(v, 0.1).double() for k, v in traced.values.items()}
    run = Running(traced, values)
    expected = hidden({k: v.to(dtype) for k, v in values.items()}, x)
    assert run.until(first).dtype == dtype
    assert torch.allclose(run.until(second), expected[1])
    assert len(list(run._waiting)) > 5, "the likelihood is left out"
    for mean, square in probe([values]).values():
        assert mean.dtype == square.dtype == torch.float64


def test_what_follows_sees_what_was_put():
    x, y = data()
    probe = probe_activations(MODEL, x, y, symmetry=find_symmetry(MODEL, x, y))
    first, second = probe._nodes.values()
    values = probe._traced.values
    run, plain = Running(probe._traced, {}), Running(probe._traced, {})
    run.put(first, 2 * run.until(first))
    expected = torch.relu(2 * hidden(values, x)[0] @ values["layer1.weight"].T + values["layer1.bias"])
    assert torch.allclose(run.until(second), expected)
    plain.until(second)
    with pytest.raises(AssertionError, match="before the node asked for last"):
        plain.until(first)


def test_repair_runs_the_network_once_for_each_draw(monkeypatch):
    made = []

    class Counted(Running):
        def __init__(self, *args):
            made.append(1)
            super().__init__(*args)

    monkeypatch.setattr(preactivations, "Running", Counted)
    x, y = data()
    path = repair(MODEL, displacement(*(make_guide(MODEL, x, y, seed=s) for s in (1, 2))), x, y, num_samples=3)
    assert len(path.layers) == 2
    path.posterior(0.5)
    assert len(made) == 9, "both endpoints, and the point"
    path.posterior(0.25)
    assert len(made) == 12, "the endpoints are kept"
