# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own guide
#
# Not every guide is an `AutoNormal`. This tutorial aligns two kinds that the library has no rule for: one written by
# hand, and a normalizing flow. The first turns out to be a mean-field guide and is treated as one; the second is
# *wrapped*, which works for any guide whatever. Then both are saved to a file and read back.

# %%
import tempfile
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal
from sklearn.datasets import load_wine

import pyro_align

# few draws keep this page fast; with more, the warning about their errors goes
warnings.simplefilter("ignore", pyro_align.errors.DiagnosticWarning)

torch.set_num_threads(1)
features, cultivar = load_wine(return_X_y=True)
x, y = torch.tensor(features).float(), torch.tensor(cultivar)
x = (x - x.mean(0)) / x.std(0)

# %% [markdown]
# ## A model
#
# Thirteen chemical measurements of 178 wines from three cultivars, and a Bayesian network with five hidden units to
# distinguish them. How much the units speak to the output is learned: `gain` is positive, one for each unit.

# %%
UNITS, CLASSES = 5, 3


def model(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 0.3).expand([13, UNITS]).to_event(2))
    with pyro.plate("units", UNITS):
        gain = pyro.sample("gain", dist.LogNormal(0.0, 0.5))
    v = pyro.sample("v", dist.Normal(0.0, 1.0).expand([UNITS, CLASSES]).to_event(2))
    logits = torch.relu(x @ w) * gain @ v
    with pyro.plate("wines", len(x)):
        pyro.sample("y", dist.Categorical(logits=logits), obs=y)


symmetry = pyro_align.find_symmetry(model, x, y)
print(symmetry)

# %% [markdown]
# ## A guide written by hand
#
# Plain `pyro.param` statements under names of our own. All incoming weights of a unit share one scale, which no
# autoguide offers.


# %%
def guide(x, y=None):
    w_loc = pyro.param("w_loc", lambda: 0.3 * torch.randn(13, UNITS))
    w_scale = pyro.param("w_scale", torch.full((UNITS,), 0.05), constraint=constraints.positive)
    pyro.sample("w", dist.Normal(w_loc, w_scale).to_event(2))
    with pyro.plate("units", UNITS):
        gain_loc = pyro.param("gain_loc", torch.zeros(UNITS))
        gain_scale = pyro.param("gain_scale", torch.full((UNITS,), 0.05), constraint=constraints.positive)
        pyro.sample("gain", dist.LogNormal(gain_loc, gain_scale))
    v_loc = pyro.param("v_loc", lambda: torch.randn(UNITS, CLASSES))
    v_scale = pyro.param("v_scale", torch.full((UNITS, CLASSES), 0.05), constraint=constraints.positive)
    pyro.sample("v", dist.Normal(v_loc, v_scale).to_event(2))


# %% [markdown]
# Its parameters live in Pyro's global store, under the names above, so two fits need two stores. `mean_field_guide`
# runs the guide, sees that every site is drawn from a normal (or a log-normal) of its own, and takes a snapshot. A
# guide that is not mean-field is refused, with the name of the site.


# %%
def fit(guide, seed, read, steps=800, lr=0.03):
    pyro.set_rng_seed(seed)
    optimizer = pyro.optim.ClippedAdam({"lr": lr, "lrd": 0.01 ** (1 / steps)})
    with pyro.get_param_store().scope():
        svi = SVI(model, guide, optimizer, Trace_ELBO())
        for _ in range(steps):
            svi.step(x, y)
        return read(guide, x, y)  # a snapshot, taken while the store is the fit's own


first, second = (fit(guide, seed, pyro_align.mean_field_guide) for seed in (0, 1))
print(type(first).__name__)
for what, value in zip(("location", "scale"), first.marginal("gain"), strict=True):
    print(f"{what} of log gain: {[round(v, 3) for v in value.tolist()]}")

# %% [markdown]
# A snapshot goes wherever a guide goes. What comes back is an `AutoNormal` with the same posterior.

# %%
alignment = pyro_align.align(first, second, symmetry)
print(type(alignment.guide).__name__)
alignment.summary().round(3)

# %%
evaluation = {"evaluation": {"train": (x, y)}, "losses": ["expected_nll", "predictive_nll"]}
columns = ["barrier", "se", "low", "high"]
before = pyro_align.evaluate_barrier(model, pyro_align.displacement(first, second), **evaluation)
after = pyro_align.evaluate_barrier(model, pyro_align.displacement(first, alignment.guide), **evaluation)
before.summary()[columns].round(4)

# %%
after.summary()[columns].round(4)

# %% [markdown]
# ## A guide without a rule
#
# `AutoIAFNormal` pushes normal noise through an inverse autoregressive flow. No relabeling of its parameters gives
# the relabeled posterior: the flow has an order of its own. But its *draws* can be relabeled, and that is exact.
# `wrap_guide` takes a private copy of a guide, lets it draw, and hands on the relabeled draws with their log density.


# %%
def flow():
    return AutoIAFNormal(model, hidden_dim=[100])


flow_a, flow_b = (fit(flow(), seed, pyro_align.wrap_guide, steps=600, lr=0.01) for seed in (0, 1))
print(type(flow_a).__name__, list(flow_a.sites))

# %% [markdown]
# `permute_guide` relabels by a permutation that you choose. Here are all units moved by one place; with the same seed,
# the relabeled guide makes the same draw with its columns in the new order, and has the same ELBO.

# %%
shift = symmetry.permutation({name: [1, 2, 3, 4, 0] for name in symmetry.atoms})
shifted = pyro_align.permute_guide(flow_b, shift)
for name, wrapped in {"before": flow_b.to_guide(), "after": shifted}.items():
    pyro.set_rng_seed(3)
    draw = wrapped(x, y)
    pyro.set_rng_seed(3)
    print(f"{name:8} gain {[round(value, 3) for value in draw['gain'].tolist()]}")
    print(f"{'':8} negative ELBO {Trace_ELBO(num_particles=20).loss(model, wrapped, x, y):.4f}")

# %% [markdown]
# `align` finds the relabeling. Distances between guides of which only draws are known are those of Gaussian marginals
# with the moments of 256 draws of either, with a standard error.

# %%
flows = pyro_align.align(flow_a, flow_b, symmetry)
print(flows)

# %% [markdown]
# There is no formula for the path either. `displacement` fits a map on draws of both guides and moves draws along it.
# A point of the path is a `SampledGuide`: it can be drawn from without limit, and it has a density, hence an ELBO.

# %%
path = pyro_align.displacement(flow_a, flows.guide)
for name, way in {"as fitted": pyro_align.displacement(flow_a, flow_b), "aligned": path}.items():
    pyro.set_rng_seed(0)
    labels = Predictive(model, guide=way(0.5), num_samples=200)(x)["y"].reshape(200, -1)
    votes = torch.nn.functional.one_hot(labels, CLASSES).float().mean(0)
    chance = votes.gather(1, y.unsqueeze(1)).mean().item()
    print(f"{name:10} {type(way(0.5)).__name__}, probability of the right cultivar half-way: {chance:.3f}")

# %%
for name, end in {"as fitted": flow_b, "aligned": flows.guide}.items():
    barrier = pyro_align.evaluate_barrier(model, pyro_align.displacement(flow_a, end), **evaluation)
    print(name)
    print(barrier.summary()[columns].round(4), "\n")

# %% [markdown]
# ## Save and load
#
# A file holds numbers and a relabeling, and no code: nothing in it is executed when it is read. So the model and the
# guide are yours to bring, as `like=`. Any guide of the same kind over the same model will do; it stays as it is.

# %%
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "aligned.safetensors"
    pyro_align.save(file, alignment)
    like = first.to_guide()  # in another process: an AutoNormal(model) that has run once
    again = pyro_align.load(file, like=like)
    print("by hand:", again.permutation == alignment.permutation, again.distance == alignment.distance)

    pyro_align.save(file, flows)
    with pyro.get_param_store().scope():
        fresh = flow()
        fresh(x, y)
    again = pyro_align.load(file, like=fresh)

losses = []
for guide in (flows.guide, again.guide):
    pyro.set_rng_seed(0)
    losses.append(Trace_ELBO().loss(model, guide, x, y))
print("flow:", again.permutation == flows.permutation, losses[0] == losses[1])

# %% [markdown]
# A guide of your own that you use often deserves a rule, so that `read_guide` knows it and no wrapper is needed: one
# file, described under "A rule for a new guide" in the guides' page.
