"""A run leaves modules, param store and random state as they were; threads do not disturb each other."""

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from barrier_problems import classifier, classifier_data, make_path
from torch import nn

from pyro_align import evaluate_barrier, find_symmetry, learn_path
from pyro_align.model.guards import untouched
from pyro_align.model.reached import reached_modules


class Restless(nn.Module):
    """Everything that a forward pass may change about its module."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.calls, self.log = 0, []
        self.plain = torch.zeros(2)
        self.cache = {}

    def forward(self, x):
        self.calls += 1
        self.log.append(self.calls)
        self.plain += 1
        self.cache["last"] = self.norm(x)
        self.grid = torch.arange(3.0)
        self.eval()
        return x + self.grid


GLOBAL = Restless().double()


def over_a_global(x):
    return GLOBAL(x)


def over_a_closure():
    net = Restless()

    def model(x):
        return net(x)

    return model, net


def over_another_function():
    model, net = over_a_closure()
    return lambda x: next(f(x) for f in (model,)), net


def registered():
    net = Restless()

    def model(x):
        return pyro.module("net", net)(x)

    return model, net


def in_a_partial():
    net = Restless()
    return functools.partial(lambda n, x: n(x), net), net


def in_a_handler():
    model, net = over_a_closure()
    return pyro.poutine.scale(model, scale=0.5), net


def in_an_object():
    class Model:
        def __init__(self):
            self.parts = {"net": Restless()}

        def __call__(self, x):
            return self.parts["net"](x)

    model = Model()
    return model, model.parts["net"]


def bound():
    class Model:
        def __init__(self):
            self.net = Restless()

        def run(self, x):
            return self.net(x)

    model = Model()
    return model.run, model.net


CASES = [
    lambda: (over_a_global, GLOBAL),
    over_a_closure,
    over_another_function,
    registered,
    in_a_partial,
    in_a_handler,
    in_an_object,
    bound,
]


@pytest.mark.parametrize("case", CASES)
def test_modules_that_a_run_touches_are_put_back(case):
    model, net = case()
    before = dict(net.__dict__)
    statistics = {k: v.clone() for k, v in net.state_dict().items()}
    store = dict(pyro.get_param_store()._params)
    with untouched(model, seed=0):
        model(torch.randn(4, 3) + 5)
        assert net.calls == 1
        assert not net.training
    assert net.__dict__.keys() == before.keys()
    assert all(net.__dict__[k] is v for k, v in before.items())
    assert (net.calls, net.log, net.cache, net.training, net.norm.training) == (0, [], {}, True, True)
    assert torch.equal(net.plain, torch.zeros(2))
    assert all(torch.equal(v, statistics[k]) for k, v in net.state_dict().items())
    assert pyro.get_param_store()._params == store


def test_data_are_not_searched():
    net = nn.Linear(2, 2)
    assert reached_modules([torch.zeros(2)] * 5, {"net": net}) == [net]
    assert reached_modules([None] * 10_000 + [net]) == []
    assert reached_modules(pyro.sample, torch.relu, 3, "x") == []


def normed():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(net(x) @ w, 1.0), obs=y)

    return model, net


def test_a_function_over_a_module():
    x, y = torch.randn(12, 3), torch.randn(12)
    model, net = normed()
    path = make_path(model, x, y)
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    evaluate_barrier(model, path, x, y, taus=3, num_samples=4)
    learn_path(model, path.start, path.end, x, y, max_steps=2)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    net(x).sum().backward()


def test_what_a_run_makes_can_be_trained_with():
    """A constant made at the first call: under inference mode it would be of no use to training ever after."""
    kept = []

    def model(x, y=None):
        if not kept:
            kept.append(torch.arange(3.0))
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ (w * kept[0]), 1.0), obs=y)

    x, y = torch.randn(5, 3), torch.randn(5)
    path = make_path(model, x, y)
    kept.clear()
    evaluate_barrier(model, path, x, y, taus=3, num_samples=4)
    (torch.ones(3, requires_grad=True) * kept[0]).sum().backward()


def test_ten_threads_give_what_one_gives():
    x, y = classifier_data()
    path = make_path(classifier, x, y)

    def work(i):
        if i % 3 == 2:
            return float(find_symmetry(classifier, x, y).log_order)
        barrier = evaluate_barrier(classifier, path, x, y, taus=3, num_samples=4, seed=i % 2)
        return np.concatenate([barrier[loss].draws for loss in barrier.losses])

    expected = [work(i) for i in range(6)]
    validation = torch.distributions.Distribution._validate_args
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(work, range(30)))
    for i, value in enumerate(found):
        assert np.array_equal(value, expected[i % 6]), i
    assert torch.distributions.Distribution._validate_args == validation
    assert not pyro.poutine.runtime._PYRO_STACK
