"""What every test starts from: float64, one thread, fixed seeds, an empty param store; and what it leaves behind."""

import gc
import os
import random

os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pyro
import pytest
import torch

from pyro_align.guides.families import draws
from pyro_align.model.guards import seed_everywhere

SEED = 0

torch.set_num_threads(1)  # one thread a worker: the workers of pytest-xdist share the cores


def pytest_collection_finish():
    """What imports have made stays: no collection of garbage looks through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def clean_slate():
    """Float64, fixed seeds and an empty param store around each test."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    seed_everywhere(SEED)
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 - what other libraries draw from
    yield
    pyro.clear_param_store()
    torch.set_default_dtype(dtype)


@pytest.fixture
def few_draws(monkeypatch):
    """What is known by its draws makes 48 in place of 256: for tests that do not look at how near moments are."""
    monkeypatch.setattr(draws, "NUM_DRAWS", 48)


@pytest.fixture
def generator():
    """A generator of its own, for code that takes one."""
    return torch.Generator().manual_seed(SEED)
