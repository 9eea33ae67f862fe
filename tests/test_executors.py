"""A Dask cluster as executor: the result is the same as without."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal, init_to_sample

import pyro_align
from pyro_align import Symmetry

distributed = pytest.importorskip("distributed")


def model():
    pyro.sample("w", dist.Normal(0.0, 1.0).expand([6, 3]).to_event(2))


def make_guide(seed):
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(seed)
        guide = AutoNormal(model, init_loc_fn=init_to_sample)
        guide()
    return guide


@pytest.mark.filterwarnings("default")  # Dask warns of ports and of its own clean-up
def test_a_dask_cluster_gives_the_same_alignments():
    guides = [make_guide(seed) for seed in range(3)]
    symmetry = Symmetry.from_axes({"w": ("h", None)}, shapes={"w": (6, 3)})
    here = pyro_align.align_many(guides, symmetry)
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        there = pyro_align.align_many(guides, symmetry, executor=client.get_executor())
    assert here.permutations == there.permutations
    assert here.history == there.history


def regression(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


@pytest.mark.filterwarnings("default")
def test_a_dask_cluster_gives_the_same_barrier():
    x, y = torch.randn(30, 4), torch.randn(30)
    ends = []
    for seed in (0, 1):
        with pyro.get_param_store().scope():
            pyro.set_rng_seed(seed)
            guide = AutoNormal(regression, init_loc_fn=init_to_sample)
            guide(x, y)
        ends.append(guide)
    path = pyro_align.displacement(*ends)
    how = {"evaluation": {"data": [(x[:20], y[:20]), (x[20:], y[20:])]}, "taus": 5, "num_samples": 6}
    here = pyro_align.evaluate_barrier(regression, path, **how)
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        there = pyro_align.evaluate_barrier(regression, path, **how, executor=client.get_executor(), shards=2)
    assert here.curves.keys() == there.curves.keys()
    for key, curve in here.curves.items():
        assert np.array_equal(curve.draws, there[key].draws), key
    assert np.array_equal(here.log_q, there.log_q)
