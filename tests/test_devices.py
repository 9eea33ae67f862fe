"""What is computed on the host says so, and everything else lives where its inputs live.

With ``meta`` as default device, a tensor made without naming a device has no values: mixing it with the inputs, or
looking at it, fails. So these tests fail where code relies on the default device, on machines without an accelerator,
too.
"""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal, init_to_sample
from test_guides_laws import GUIDES, SYMMETRY

from pyro_align import (
    Symmetry,
    align,
    align_draws,
    align_many,
    displacement,
    evaluate_barrier,
    find_symmetry,
    permute_guide,
    symmetrize,
)
from pyro_align.guides import read_guide
from pyro_align.objectives import Activations


def check_on_host(guide):
    assert {t.device.type for t in guide.state_dict().values()} == {"cpu"}


@pytest.mark.parametrize("name", GUIDES)
def test_guides_do_not_depend_on_the_default_device(name):
    a, b = GUIDES[name](0), GUIDES[name](1)
    with torch.device("meta"):
        p = SYMMETRY.random(torch.Generator().manual_seed(0))
        q = read_guide(b).permute(p)
        _, log_prob = q.push_with_log_prob(q.noise(3))
        moved, aligned = permute_guide(b, p), align(a, b, SYMMETRY)
        middle = displacement(a, b)(0.5)
    assert bool(torch.isfinite(log_prob).all())
    for guide in (moved, aligned.guide, middle):
        check_on_host(guide)


def adam_needs_the_default_device():
    weight = torch.zeros(2, requires_grad=True)
    weight.grad = torch.ones(2)
    with torch.device("meta"):
        try:
            torch.optim.Adam([weight]).step()
        except RuntimeError:
            return True
    return False


@pytest.mark.parametrize("matcher", ["coordinate", "frank_wolfe", "sinkhorn", "straight_through", "exhaustive"])
def test_matchers_do_not_depend_on_the_default_device(matcher):
    if matcher in ("sinkhorn", "straight_through") and adam_needs_the_default_device():
        pytest.skip("this PyTorch's Adam keeps its count of steps on the default device")
    a, b = GUIDES["AutoNormal"](0), GUIDES["AutoNormal"](1)
    expected = align(a, b, SYMMETRY, matcher=matcher, restarts=2).permutation
    with torch.device("meta"):
        found = align(a, b, SYMMETRY, matcher=matcher, restarts=2).permutation
    assert all(torch.equal(found.indices[k], expected.indices[k]) for k in SYMMETRY.atoms)


def test_many_guides_do_not_depend_on_the_default_device():
    guides = [GUIDES["AutoNormal"](seed) for seed in range(3)]
    with torch.device("meta"):
        many = align_many(guides, SYMMETRY)
    for guide in (*many.guides, many.center.to_guide()):
        check_on_host(guide)


# -- models, draws, barriers -------------------------------------------------------------------------------------------


def network(x, y=None):
    """Every tensor is made where the data lies, as a model on an accelerator has to."""
    one = x.new_ones(())
    w1 = pyro.sample("w1", dist.Normal(0 * one, one).expand([UNITS, x.shape[1]]).to_event(2))
    w2 = pyro.sample("w2", dist.Normal(0 * one, one).expand([UNITS]).to_event(1))
    with pyro.plate("data", len(x), device=x.device):
        pyro.sample("y", dist.Normal((torch.tanh(x @ w1.mT) @ w2.unsqueeze(-1)).squeeze(-1), one), obs=y)


UNITS = 5
UNIT = Symmetry.from_axes({"w1": ("h", None), "w2": ("h",)}, shapes={"w1": (UNITS, 2), "w2": (UNITS,)})


def data(device):
    x = torch.linspace(-1, 1, 12).reshape(6, 2)
    return x.to(device), torch.sin(x.sum(-1)).to(device)


def fitted(seed, device):
    """Made on the host and moved: a device draws other numbers from the same seed."""
    pyro.set_rng_seed(seed)
    with pyro.get_param_store().scope():
        guide = AutoNormal(network, init_loc_fn=init_to_sample)
        guide(*data("cpu"))
    return guide.to(device)


def draws_on(device):
    g = torch.Generator().manual_seed(0)
    return {k: torch.randn(2, 8, *shape, generator=g).to(device) for k, shape in UNIT.shapes.items()}


def devices_of(values):
    return {value.device.type for value in values}


def check_model_side(device, default):
    """Discovery, alignment by weights and by activations, barriers, draws and symmetrized guides.

    Args:
        device: Where model, data, guides and draws live.
        default: The default device while the library runs.
    """
    x, y = data(device)
    a, b, draws = fitted(0, device), fitted(1, device), draws_on(device)
    with torch.device(default):
        symmetry = find_symmetry(network, x, y)
        (unit,) = symmetry.atoms
        alignment = align(a, b, symmetry)
        by_activation = align(a, b, symmetry, divergence=Activations(network, x, y))
        path = displacement(a, alignment.guide)
        barrier = evaluate_barrier(network, path, x, y, taus=3, num_samples=4)
        aligned = {m: align_draws(draws, UNIT, method=m, model=network, args=(x, y)) for m in ("pivot", "barycenter")}
        moved = [v for q in aligned.values() for v in q.draws.values()]
        values, log_q = symmetrize(a, symmetry, components=3).sample(4)
    assert unit
    assert np.isfinite(barrier["negative_elbo"].draws).all()
    there = [*alignment.guide.state_dict().values(), *by_activation.guide.state_dict().values()]
    there += [*path(0.5).state_dict().values(), *moved, *values.values(), log_q]
    assert devices_of(there) == {device}


def test_models_and_draws_do_not_depend_on_the_default_device():
    check_model_side("cpu", default="meta")
