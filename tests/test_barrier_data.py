"""The data of an evaluation: the same for every tau, with the random state of the process left alone."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from barrier_problems import linear, linear_data, make_guide, make_path
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_sample
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, WeightedRandomSampler

from pyro_align import displacement, evaluate_barrier
from pyro_align.errors import BarrierError, DiagnosticWarning


class Augmented(Dataset):
    """Inputs with noise from each of the global generators, new at every read."""

    def __init__(self, own=None):
        self.x, self.y = linear_data(n=30)
        self.own = own

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        noise = torch.randn(3) + torch.as_tensor(np.random.randn(3)) + random.gauss(0, 1)  # noqa: NPY002
        if self.own is not None:
            noise = noise + torch.as_tensor(self.own.standard_normal(3))
        return self.x[i] + noise, self.y[i]


def states():
    return torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002


def test_augmented_data_are_the_same_for_every_tau():
    data = Augmented()
    guide = make_guide(linear, data.x, data.y)
    path = displacement(guide, make_guide(linear, data.x, data.y))
    before = states()
    barrier, again = (
        evaluate_barrier(linear, path, evaluation={"a": DataLoader(data, 10)}, taus=5, num_samples=4) for _ in range(2)
    )
    after = states()
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    assert before[2] == after[2]
    curve = barrier["expected_nll"]
    assert np.ptp(curve.draws, axis=0).max() == pytest.approx(0.0, abs=1e-12), "of one posterior with itself"
    assert np.array_equal(curve.draws, again["expected_nll"].draws)


def samplers(data):
    generator = torch.Generator().manual_seed(3)
    return [
        DataLoader(data, 10, sampler=SubsetRandomSampler(range(20), generator=generator)),
        DataLoader(data, 10, sampler=WeightedRandomSampler([1.0] * 30, 30)),
        DataLoader(data, 10, sampler=SubsetRandomSampler(range(20)), generator=generator),
    ]


@pytest.mark.parametrize("which", range(3))
def test_samplers_give_every_tau_the_same(which):
    x, y = linear_data(n=30)
    loader = samplers(torch.utils.data.TensorDataset(x, y))[which]
    generator = getattr(loader.sampler, "generator", None) or loader.generator
    before = None if generator is None else generator.get_state()
    path = displacement(make_guide(linear, x, y), make_guide(linear, x, y))
    curve = evaluate_barrier(linear, path, evaluation={"a": loader}, taus=5, num_samples=4)["expected_nll"]
    assert np.ptp(curve.draws, axis=0).max() == pytest.approx(0.0, abs=1e-12)
    if generator is not None:
        assert torch.equal(generator.get_state(), before)


def test_data_that_change_by_themselves_are_noticed():
    data = Augmented(own=np.random.default_rng(0))
    path = make_path(linear, data.x, data.y)
    with pytest.raises(BarrierError, match="batch 0 holds other data than when it was read before"):
        evaluate_barrier(linear, path, evaluation={"a": DataLoader(data, 10)}, taus=3)


# -- parameters beside the guide ---------------------------------------------------------------------------------------


def with_parameter(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    sd = pyro.param("sd", torch.tensor(20.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, sd), obs=y)


def test_a_learned_parameter_out_of_scope_is_told():
    x, y = linear_data()
    with pyro.get_param_store().scope() as learned:
        guide = AutoNormal(with_parameter, init_loc_fn=init_to_sample)
        svi = SVI(with_parameter, guide, pyro.optim.Adam({"lr": 0.3}), Trace_ELBO())
        for _ in range(60):
            svi.step(x, y)
    path = displacement(guide, make_guide(with_parameter, x, y))
    with pytest.warns(DiagnosticWarning, match=r"parameters \['sd'\] have no value in the param store"):
        lost = evaluate_barrier(with_parameter, path, x, y, taus=3)
    with pyro.get_param_store().scope(learned):
        found = evaluate_barrier(with_parameter, path, x, y, taus=3)
    assert found["expected_nll"].value[0] < lost["expected_nll"].value[0] - 0.5


class Net(PyroModule):
    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))
        self.sd = PyroParam(torch.tensor(1.0), dist.constraints.positive)

    def forward(self, x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w + self.offset, self.sd), obs=y)


def test_parameters_that_a_module_holds_are_its_own():
    x, y = linear_data()
    net, layer = Net(), nn.Linear(3, 3)

    def over_a_module(x, y=None):
        pyro.module("layer", layer)
        linear(layer(x), y)

    for model in (net, over_a_module):
        assert evaluate_barrier(model, make_path(model, x, y), x, y, taus=3).num_data == {"data": 12}
