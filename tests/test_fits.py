"""The studies' compiled fits against Pyro's SVI: the same gradient in expectation, the same fit, resumed or not."""

import sys
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.nn.functional import softplus

from pyro_align.demo.network import bayesian_mlp, he_initialization

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # studies are scripts of the repository

from studies import timing, training
from studies.elbo import LayerNoise, negative_elbo
from studies.networks import bayesian_lenet
from studies.step import Step


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def problem(name):
    torch.manual_seed(0)
    y = torch.tensor([0, 1, 2, 0, 1])
    if name == "lenet":
        return bayesian_lenet((2, 3, 4, 3), classes=3, side=16), torch.randn(5, 256), y
    return bayesian_mlp([4, 3, 3]), torch.randn(5, 4), y


def flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def raw_parameters(guide):
    """An AutoNormal's locations and its scales before softplus, by site."""
    named = {k.removesuffix("_unconstrained"): v for k, v in guide.named_parameters()}
    return {
        part: {k.removeprefix(f"{kind}."): v for k, v in named.items() if k.startswith(f"{kind}.")}
        for part, kind in (("locs", "locs"), ("roots", "scales"))
    }


@pytest.mark.parametrize(("name", "noise"), [("lenet", "weights"), ("lenet", "flipout"), ("mlp", "local")])
def test_gradients_are_those_of_pyro_in_expectation(name, noise):
    """Local reparameterization is exact for dense layers only."""
    model, x, y = problem(name)
    draws = 100
    with pyro.get_param_store().scope():
        guide = AutoNormal(model, init_loc_fn=he_initialization, init_scale=0.2)
        guide(x, y, 20)
        tensors = raw_parameters(guide)
        leaves = [leaf for part in tensors.values() for leaf in part.values()]
        pyros = torch.stack(
            [
                flat(torch.autograd.grad(Trace_ELBO().differentiable_loss(model, guide, x, y, 20), leaves))
                for _ in range(draws)
            ]
        )
    step, ours = Step(model, 20, noise=noise), []
    for _ in range(draws):
        loss = step(tensors, x, y, torch.tensor(1.0))
        ours.append(flat([leaf.grad for leaf in leaves]))
    ours = torch.stack(ours)
    assert loss.isfinite()
    error = ((pyros.var(0) + ours.var(0)) / draws).sqrt()
    z = (pyros.mean(0) - ours.mean(0)) / error.clamp_min(1e-12)
    assert z.square().mean() < 1.6
    assert z.abs().max() < 6
    assert ours.var(0).sum() < 1.2 * pyros.var(0).sum()
    assert ours.var(0).sum() > 0


def test_the_same_fit_as_by_svi():
    """After as many steps of Adam, on a problem that has one optimum."""
    torch.manual_seed(0)
    model, x = bayesian_mlp([2, 2]), torch.randn(200, 2)
    y = (x.sum(-1) + torch.randn(200) > 0).long()
    recipe = training.Recipe(epochs=80, batch_size=50, temperature=1.0, init_scale=0.2, decay=0.5)
    ours = training.fit(model, x, y, seed=1, recipe=recipe)
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        pyro.set_rng_seed(2)
        guide = AutoNormal(model, init_loc_fn=he_initialization, init_scale=0.2)
        adam = pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.02}, "gamma": 0.01 ** (1 / 160)}
        )
        svi = SVI(model, guide, adam, Trace_ELBO())
        for step in range(320):
            batch = torch.randperm(200)[:50]
            svi.step(x[batch], y[batch], 200)
            if step >= 160:
                adam.step()
        theirs = training.tensors_of(training.pyro_align.guides.read_guide(guide))
    losses = []
    for tensors in (training.tensors_of(ours), theirs, {"locs": theirs["locs"], "scales": half(theirs["scales"])}):
        torch.manual_seed(3)
        with torch.no_grad():
            made = [negative_elbo(model, (x, y, 200), tensors["locs"], tensors["scales"]) / 200 for _ in range(50)]
        losses.append(float(torch.stack(made).mean()))
    assert losses[0] == pytest.approx(losses[1], abs=0.008)
    assert losses[2] > losses[1] + 0.008  # what the tolerance tells apart


def half(tensors):
    return {k: v / 2 for k, v in tensors.items()}


@pytest.mark.parametrize("guide", ["normal", "delta"])
def test_an_interrupted_fit_goes_on(guide, tmp_path):
    """From the file that is written after each pass, to the same posterior."""
    torch.manual_seed(0)
    model, x, y = bayesian_mlp([3, 4, 2]), torch.randn(30, 3), torch.arange(30) % 2
    recipe = training.Recipe(epochs=4, batch_size=8, guide=guide, decay=0.5)
    whole = training.tensors_of(training.fit(model, x, y, seed=0, recipe=recipe))
    half = training.Training(model, x, y, seed=0, recipe=recipe)
    for _ in range(2):
        assert len(list(half)) == 4
    path = tmp_path / "fit.now"
    torch.save({**half.state(), "seconds": 1.0}, path)
    torch.manual_seed(9)
    resumed = training.tensors_of(training.fit(model, x, y, seed=0, recipe=recipe, checkpoint=path))
    assert set(resumed) == set(whole) == ({"locs", "scales"} if guide == "normal" else {"locs"})
    for part, sites in whole.items():
        for site, value in sites.items():
            assert torch.equal(resumed[part][site], value)
    assert torch.load(path, weights_only=True)["epoch"] == 4


def test_local_noise_has_the_moments_of_drawn_weights():
    """Mean and standard deviation of a layer's output over draws; data are independent given the posterior."""
    torch.manual_seed(0)
    x, loc, root = torch.randn(4, 3), torch.randn(2, 3), torch.full((2, 3), -0.4)
    scale, bias = softplus(root), torch.tensor([0.5, -0.5])
    drawn = torch.stack([torch.nn.functional.linear(x, loc + scale * torch.randn(2, 3), bias) for _ in range(2500)])
    for kind in ("local", "flipout"):
        made = []
        for _ in range(2500):
            weight = loc + scale * torch.randn(2, 3)
            with LayerNoise({id(weight): (loc, scale)}, kind):
                made.append(torch.nn.functional.linear(x, weight, bias))
        ours = torch.stack(made)
        assert torch.allclose(ours.mean(0), drawn.mean(0), atol=0.08)
        assert torch.allclose(ours.std(0), drawn.std(0), rtol=0.08)
        shared, apart = (torch.corrcoef(torch.stack([o[:, 0, 0], o[:, 1, 0]]))[0, 1] for o in (drawn, ours))
        assert abs(float(apart)) < 0.1 < abs(float(shared))


def test_augmented_images_are_mirrored_and_moved():
    """Channels together; what moves in is zero."""
    torch.manual_seed(0)
    images = torch.zeros(200, 3, 32, 32)
    images[:, :, 16, 10] = torch.tensor([1.0, 2.0, 3.0])
    moved = training.augmented(images.flatten(1)).view(200, 3, 32, 32)
    rows, columns = moved[:, 0].nonzero(as_tuple=True)[1:]
    assert len(rows) == 200
    assert (int(rows.min()), int(rows.max())) == (12, 20)
    assert set(columns.tolist()) == {*range(6, 15), *range(17, 26)}
    assert torch.equal(moved[:, 2], 3 * moved[:, 0])
    small = training.augmented(torch.ones(50, 3 * 8 * 8)).view(50, 3, 64).sum(-1)
    assert set(small.unique().tolist()) == {49.0, 56.0, 64.0}  # a quarter of the side, a quarter of the move


def test_bfloat16_is_near():
    """The network's products only; parameters and gradients stay as they are."""
    model, x, y = problem("lenet")
    x, leaves = x.float(), {}
    torch.set_default_dtype(torch.float32)
    for half in (False, True):
        training_ = training.Training(model, x, y, seed=0, recipe=training.Recipe(guide="delta", half=half))
        training_.step(training_.parameters, x, y, torch.tensor(0.1))
        leaves[half] = flat([v.grad for v in training_.parameters["locs"].values()])
    assert leaves[True].dtype == torch.float32
    assert 0 < float((leaves[True] - leaves[False]).norm() / leaves[False].norm()) < 0.05


def test_steps_are_timed():
    """Each way to draw weights beside the plain network and Pyro's SVI."""
    torch.set_default_dtype(torch.float32)
    with pyro.get_param_store().scope():
        found = timing.main(["--networks", "LeNet", "--batch", "4", "--repeats", "1"])
    assert found["step"].is_unique
    assert len(found) == 6
    assert (found["CPU seconds"].astype(float) > 0).all()
