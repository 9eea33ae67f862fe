"""Learned paths: exact ends, the displacement at the start, lower barriers after training."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from barrier_problems import NOISE, PRIOR, classifier, classifier_data, linear, linear_data, make_guide
from pyro.infer.autoguide import AutoDelta, AutoNormal, init_to_value

from pyro_align import align, find_symmetry
from pyro_align.barrier import evaluate_barrier
from pyro_align.demo.network import bayesian_mlp
from pyro_align.demo.training import Recipe, fit
from pyro_align.errors import GuideError
from pyro_align.guides import read_guide
from pyro_align.paths.geodesic import displacement
from pyro_align.paths.learned import Batches, learn_path


def ring(y):
    """A posterior on a circle: the straight path between two of its points leaves it."""
    z = pyro.sample("z", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z.norm(), 0.5), obs=y)


def at(point):
    with pyro.get_param_store().scope():
        guide = AutoNormal(ring, init_loc_fn=init_to_value(values={"z": torch.tensor(point)}), init_scale=0.1)
        guide(torch.zeros(2))
    return guide


@pytest.mark.parametrize("kind", ["bezier", "chain"])
def test_a_bend_goes_around_the_barrier(kind):
    y = 3 + 0.1 * torch.randn(5)
    a, b = at([3.0, 0.0]), at([0.0, 3.0])
    state = torch.get_rng_state()
    path = learn_path(ring, a, b, y, kind=kind, max_steps=300, learning_rate=0.05)
    assert torch.equal(state, torch.get_rng_state())
    assert not list(pyro.get_param_store().keys())
    straight, bent = (
        evaluate_barrier(ring, p, y, taus=9, losses=["expected_nll"])["expected_nll"].barrier
        for p in (displacement(a, b), path)
    )
    assert straight.height > 1
    assert bent.height < 0.5 * straight.height
    for tau, guide in ((0.0, a), (1.0, b)):
        assert path.posterior(tau).distance(read_guide(guide)) == 0
    assert isinstance(path(0.3), AutoNormal)
    again = learn_path(ring, a, b, y, kind=kind, max_steps=300, learning_rate=0.05)
    assert path.losses == again.losses


@pytest.mark.parametrize("kind", ["bezier", "chain"])
def test_an_untrained_bend_is_the_displacement(kind):
    x, y = classifier_data()
    a, b = make_guide(classifier, x, y, seed=1), make_guide(classifier, x, y, seed=2, scale=0.3)
    path, straight = learn_path(classifier, a, b, x, y, kind=kind, max_steps=1, learning_rate=0.0), displacement(a, b)
    for tau in np.linspace(0, 1, 5):
        assert path.posterior(tau).distance(straight.posterior(tau)) < 1e-9


def hierarchical(x, y):
    """A prior that depends on another latent, which has a support of its own."""
    spread = pyro.sample("spread", dist.Gamma(3.0, 2.0))
    w = pyro.sample("w", dist.Normal(0.0, spread).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)


@pytest.mark.parametrize("model", [linear, hierarchical])
def test_the_training_loss_is_the_negative_elbo(model):
    x, y = linear_data()
    a, b = make_guide(model, x, y, seed=1), make_guide(model, x, y, seed=2)
    path = learn_path(model, a, b, x, y, max_steps=600, learning_rate=0.0, temperature=0.5)
    curve = evaluate_barrier(model, path, x, y, taus=21, num_samples=100, temperature=0.5)["negative_elbo"]
    mean = float(torch.trapezoid(torch.as_tensor(curve.value), torch.as_tensor(curve.taus))) * len(x)
    trained = np.array(path.losses)
    assert abs(trained.mean() - mean) < 4.5 * trained.std() / 600**0.5


def test_weights_that_the_data_do_not_touch_add_no_noise():
    def model(x, y):
        pyro.sample("idle", dist.Normal(0.0, 1.0).expand([10_000]).to_event(1))
        linear(x, y)

    x, y = linear_data()
    a, b = make_guide(model, x, y, seed=1), make_guide(model, x, y, seed=1)
    without = learn_path(
        linear, *(make_guide(linear, x, y, seed=1) for _ in "ab"), x, y, max_steps=50, learning_rate=0.0
    )
    path = learn_path(model, a, b, x, y, max_steps=50, learning_rate=0.0)
    # a single draw's log q - log p of 10,000 weights would scatter by tens of nats
    assert np.std(path.losses) < np.std(without.losses) + 5


def subsampling(x, y):
    w = pyro.sample("w", dist.Normal(0.0, PRIOR).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", len(x), subsample_size=4) as rows:
        pyro.sample("y", dist.Normal(x[rows] @ w, NOISE), obs=y[rows])


def scaling(x, y, size):
    w = pyro.sample("w", dist.Normal(0.0, PRIOR).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", size, subsample=x):
        pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)


@pytest.mark.parametrize("how", ["plain", "scaled by the model", "subsampled by the model"])
def test_batches_stand_for_all_data(how):
    """Without a step, the mean training loss is that of all data, whoever scales the likelihood."""
    x, y = linear_data()
    a, b = make_guide(linear, x, y, seed=1), make_guide(linear, x, y, seed=2)
    model, args, size = {
        "plain": (linear, (x, y), 4),
        "scaled by the model": (scaling, (x, y, 12), 4),
        "subsampled by the model": (subsampling, (x, y), None),
    }[how]
    batches = np.array(learn_path(model, a, b, *args, max_steps=300, learning_rate=0.0, batch_size=size).losses)
    whole = np.array(learn_path(linear, a, b, x, y, max_steps=300, learning_rate=0.0).losses)
    error = np.hypot(batches.std(), whole.std()) / 300**0.5
    assert abs(batches.mean() - whole.mean()) < 4.5 * error
    assert batches.std() > 1.05 * whole.std(), "batches differ from step to step"
    assert abs(batches.mean() / 3 - whole.mean()) > 9 * error, "a batch that counts once would be told"


def test_batches_of_keyword_arguments_leave_the_rest_alone():
    x, y, other = torch.arange(10.0)[:, None], torch.arange(10), torch.arange(3)
    batches = Batches.of(lambda *args, **kwargs: None, (x,), {"y": y, "other": other, "size": 10}, 4)
    (drawn,), named = batches.draw(torch.Generator().manual_seed(0))
    assert drawn.shape == (4, 1)
    assert torch.equal(drawn[:, 0].long(), named["y"]), "rows stay together"
    assert len(set(named["y"].tolist())) == 4
    assert named["other"] is other
    assert named["size"] == 10


@pytest.mark.slow
def test_a_learned_path_is_lower_on_digits():
    """At temperature 1, two hidden layers leave a barrier after alignment; a bend trained on batches avoids most."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16), torch.tensor(labels)
    x, y, held_out = x[:1400], y[:1400], (x[1400:], y[1400:], 1400)
    model, recipe = bayesian_mlp([64, 32, 32, 10]), Recipe(epochs=80, learning_rate=0.03)
    a, b = (fit(model, x, y, seed=s, recipe=recipe, progress=False) for s in (0, 1))
    aligned = align(a, b, find_symmetry(model, x[:32], y[:32])).guide
    learned = learn_path(model, a, aligned, x, y, max_steps=400, learning_rate=0.02, batch_size=256)
    options = {"evaluation": {"train": (x, y), "test": held_out}, "taus": 7}
    straight, bent = (evaluate_barrier(model, p, **options) for p in (displacement(a, aligned), learned))
    for data in ("train", "test"):
        before, after = (p[data, "predictive_nll"] for p in (straight, bent))
        assert after.band().interval[1] < 0.5 * before.band().interval[0], data
    assert bent["train", "negative_elbo"].barrier.height < 0.01


def test_bad_input():
    x, y = linear_data()
    guide = make_guide(linear, x, y)
    with pyro.get_param_store().scope():
        delta = AutoDelta(linear)
        delta(x, y)
    other = make_guide(linear, x, y, seed=2)
    with pytest.raises(GuideError, match="needs mean-field Gaussians, got Point"):
        learn_path(linear, delta, other, x, y)
    with pytest.raises(ValueError, match="expected one of bezier, chain"):
        learn_path(linear, guide, other, x, y, kind="spline")
    with pytest.raises(ValueError, match="at least 1"):
        learn_path(linear, guide, other, x, y, max_steps=0)
    for size in (0, 13):
        with pytest.raises(ValueError, match=f"batch_size: expected 1 to 12.*got {size}"):
            learn_path(linear, guide, other, x, y, batch_size=size)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        learn_path(linear, guide, other, x, y, max_steps=1).posterior(1.5)
