"""`max_memory` bounds what the model's intermediate tensors take, whatever the number of draws and data."""

import os
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from barrier_problems import make_path

from pyro_align.barrier import evaluate_barrier
from pyro_align.errors import DiagnosticWarning
from pyro_align.model import many
from pyro_align.model.many import peak_bytes

MIB = 2**20


def wide(x, y=None):
    """Intermediate tensors, of 200 units a datum, are much larger than everything else."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1], 200]).to_event(2))
    hidden = torch.tanh(x @ w)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(torch.relu(hidden).square().sum(1), 1.0), obs=y)


@pytest.fixture
def problem(monkeypatch):
    monkeypatch.setattr(many, "CPU_CACHE", 2**40)  # else a CPU's chunks are smaller anyway
    x, y = torch.randn(500, 2), torch.randn(500)
    return make_path(wide, x, y), x, y


def test_the_peak_is_counted():
    assert peak_bytes(lambda: torch.zeros(1000, dtype=torch.float64)) == 8000
    assert peak_bytes(lambda: (torch.zeros(1000) + 1).sum()) >= 16_000, "two at a time"
    kept = torch.zeros(1000)
    assert peak_bytes(lambda: kept[:10].sum()) < 100, "views take nothing"


@pytest.mark.parametrize("limit", [8 * MIB, 32 * MIB])
def test_peak_memory_stays_under_the_limit(problem, limit):
    path, x, y = problem
    draws = 64
    peak = peak_bytes(lambda: evaluate_barrier(wide, path, x, y, taus=3, num_samples=draws, max_memory=limit).curves)
    beyond = draws * 500 * 8 * 12  # log likelihoods of one batch, and what losses make of them; draws; noise
    assert peak < limit + beyond
    whole = peak_bytes(lambda: evaluate_barrier(wide, path, x, y, taus=3, num_samples=draws, chunk=draws).curves)
    assert whole > 1.5 * (limit + beyond) or limit > 8 * MIB, "without a limit it takes more"


def test_a_batch_too_large_for_the_limit_is_told(problem):
    path, x, y = problem
    one = 500 * 200 * 8
    with pytest.warns(
        DiagnosticWarning, match=r"one draw of the model.*MiB, more than max_memory, 0.763 MiB.*smaller"
    ) as seen:
        evaluate_barrier(wide, path, x, y, taus=3, num_samples=4, max_memory=one)
    assert len(seen) == 1
    batches = [(x[lo : lo + 50], y[lo : lo + 50]) for lo in range(0, 500, 50)]
    evaluate_barrier(wide, path, evaluation={"train": batches}, taus=3, num_samples=4, max_memory=one)


def test_a_tighter_limit_gives_the_same_figures(problem):
    path, x, y = problem
    loose, tight = (
        evaluate_barrier(wide, path, x, y, taus=3, num_samples=16, max_memory=limit) for limit in (2**30, 4 * MIB)
    )
    for key, curve in loose.curves.items():
        assert torch.allclose(torch.tensor(curve.draws), torch.tensor(tight[key].draws), rtol=1e-9), key


SCRIPT = """
import resource, sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from barrier_problems import make_path
from test_barrier_memory import wide
from pyro_align.barrier import evaluate_barrier
from pyro_align.model import many
many.CPU_CACHE = 2**40
x, y = torch.randn(20_000, 2), torch.randn(20_000)
path = make_path(wide, x, y)
evaluate_barrier(wide, path, x[:8], y[:8], taus=3, num_samples=2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
evaluate_barrier(wide, path, x, y, taus=3, num_samples=16, max_memory=int(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_the_process_grows_by_no_more(tmp_path):
    """Seen from outside: resident memory, which tracing of Python's own allocations does not see."""
    here, script, limit = Path(__file__).parent, tmp_path / "script.py", 200 * MIB
    script.write_text(SCRIPT.format(paths=[str(here), str(here.parent)]))

    def growth(limit):
        command = [sys.executable, str(script), str(limit)]
        returned = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MIB)}  # glibc keeps what is freed, now more, now less
        return 1024 * int(subprocess.run(command, capture_output=True, text=True, check=True, env=returned).stdout)

    assert growth(limit) < limit + 16 * 20_000 * 4 * 24, "and the log likelihoods"
    assert growth(2**34) > 2 * limit, "without a limit it takes more"
