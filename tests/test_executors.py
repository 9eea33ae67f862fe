"""A Dask cluster as executor: the result is the same as without."""

import pyro
import pyro.distributions as dist
import pytest
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
