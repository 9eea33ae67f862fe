"""The relabeled model: the same joint density under new labels, symmetric model or not."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import PROBLEMS, normal, observe
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_align import Symmetry
from pyro_align.model.density import Density
from pyro_align.model.effects import TemperMessenger
from pyro_align.model.effects.permute import permute_model

MODELS = [p for p in PROBLEMS.values() if not p.is_module]


def any_symmetry(shapes):
    """Every axis of every site relabeled on its own: far from a symmetry of the model."""
    sizes = {s: tuple(f"{s}.{i}" for i in range(len(shape))) for s, shape in shapes.items()}
    return Symmetry.from_axes(sizes, shapes=shapes)


def is_simplex(site):
    return "Simplex" in str(site.support)


@pytest.mark.parametrize("problem", MODELS, ids=lambda p: p.name)
def test_the_joint_density_moves_along(problem):
    model, args = problem.build()
    parameters = problem.options.get("parameters", False)
    density = Density(model, args, parameters=parameters)
    symmetry = any_symmetry({k: s.shape for k, s in density.latents.items()})
    p = symmetry.random(4)
    moved = Density(permute_model(model, p), args, parameters=parameters)
    values = density.initial_values(seed=1, scale=0.3)
    torch.testing.assert_close(moved.log_joint(p.apply(values)), density.log_joint(values), rtol=1e-12, atol=1e-10)


def shifted_model(x):
    w1 = pyro.sample("w1", dist.Normal(torch.arange(12.0).view(4, 3), 1.0).to_event(2))
    with pyro.plate("units", 4):
        scale = pyro.sample("scale", dist.Uniform(torch.zeros(4), torch.arange(1.0, 5.0)))
    observe(torch.tanh(x @ w1.T * scale) @ normal("w2", 2, 4).T)


SYMMETRY = {"w1": ("h", None), "scale": ("h",), "w2": (None, "h")}
SHAPES = {"w1": (4, 3), "scale": (4,), "w2": (2, 4)}


def test_draws_and_supports_are_relabeled():
    p = Symmetry.from_axes(SYMMETRY, shapes=SHAPES).random(1)
    x = torch.randn(5, 3)
    pyro.set_rng_seed(3)
    before = pyro.poutine.trace(shifted_model).get_trace(x)
    pyro.set_rng_seed(3)
    after = pyro.poutine.trace(permute_model(shifted_model, p)).get_trace(x)
    for site in SHAPES:
        torch.testing.assert_close(after.nodes[site]["value"], p.apply_site(site, before.nodes[site]["value"]))
    bounds = after.nodes["scale"]["fn"].support.upper_bound
    torch.testing.assert_close(bounds, torch.arange(1.0, 5.0)[p.indices["h"]])
    torch.testing.assert_close(after.log_prob_sum(), before.log_prob_sum())


def test_it_trains_like_any_model():
    p = Symmetry.from_axes(SYMMETRY, shapes=SHAPES).random(1)
    x, model = torch.randn(5, 3), permute_model(shifted_model, Symmetry.from_axes(SYMMETRY, shapes=SHAPES).random(1))
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(150)]
    assert sum(losses[-20:]) < sum(losses[:20])
    means = guide.median()["w1"][p.inverse().indices["h"]]
    assert (means - torch.arange(12.0).view(4, 3)).abs().mean() < (
        guide.median()["w1"] - torch.arange(12.0).view(4, 3)
    ).abs().mean()


def test_particles_may_be_vectorized():
    p = Symmetry.from_axes(SYMMETRY, shapes=SHAPES).random(1)

    def model():
        with pyro.plate("units", 4):
            pyro.sample("scale", dist.Normal(torch.arange(4.0), 1.0))

    def guide():
        with pyro.plate("units", 4):
            pyro.sample("scale", dist.Normal(torch.arange(4.0)[p.indices["h"]], 1.0))

    loss = Trace_ELBO(num_particles=7, vectorize_particles=True, max_plate_nesting=1).loss(
        permute_model(model, p), guide
    )
    assert abs(loss) < 1e-10


def test_signs_are_flipped_too():
    from pyro_align.axes import Odd

    symmetry = Symmetry.from_axes({"z": (Odd("k"),)}, shapes={"z": (3,)})
    p = symmetry.permutation({"k": [1, 2, 0]}, {"k": [-1, 1, -1]})

    def model():
        pyro.sample("z", dist.Normal(torch.arange(3.0), 1.0).to_event(1))

    z = torch.randn(3)
    before = Density(model).log_joint({"z": z})
    torch.testing.assert_close(Density(permute_model(model, p)).log_joint(p.apply({"z": z})), before)


def test_tempering_weighs_latent_sites_alone():
    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("penalty", -z.square())
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    trace = pyro.poutine.trace(TemperMessenger(0.1)(model)).get_trace(torch.zeros(()))
    assert {name: trace.nodes[name]["scale"] for name in ("z", "penalty", "y")} == {"z": 0.1, "penalty": 1.0, "y": 1.0}
    with pytest.raises(ValueError, match="temperature"):
        TemperMessenger(0.0)
