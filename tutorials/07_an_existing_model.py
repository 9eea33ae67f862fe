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
# # An existing model
#
# The models of this tutorial come with Pyro itself, and were not written with symmetries in mind. We look at one from
# causal inference without changing it, and take a network of `pyro.nn` the whole way: find the symmetry, fit twice,
# align, walk from one posterior to the other.

# %%
import warnings

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.contrib import cevae
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_sample
from pyro.nn import AutoRegressiveNN, PyroSample
from pyro.nn.module import to_pyro_module_
from sklearn.datasets import load_diabetes, load_wine

import pyro_align
import pyro_align.plots

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ArviZ 0.23 announces its next version on import
    import arviz as az

torch.set_num_threads(1)


def standardized(values):
    values = torch.tensor(values).float()
    return (values - values.mean(0)) / values.std(0)


# %% [markdown]
# ## Looking at a model
#
# `pyro.contrib.cevae` estimates the effect of a treatment in the presence of a hidden confounder `z` (Louizos et al.
# 2017). Four networks lead from `z` to the covariates, to the treatment, and to the outcome with and without
# treatment. Their weights are parameters, not sample sites; `parameters=True` makes them take part. As data we take
# scikit-learn's patients with diabetes, with a high body mass index as the treatment.

# %%
covariates, progression = load_diabetes(return_X_y=True)
x, y = standardized(covariates), standardized(progression)
t = (x[:, 2] > 0).float()

pyro.set_rng_seed(0)
causal = cevae.Model({"feature_dim": 10, "latent_dim": 5, "hidden_dim": 20, "num_layers": 2, "outcome_dist": "normal"})
confounded = pyro_align.find_symmetry(causal, x, t, y, parameters=True)
for name, atom in confounded.atoms.items():
    print(f"{name:12} {atom.size:3}  {', '.join(f'{site}[{axis}]' for site, axis in confounded.carriers[name])}")

# %% [markdown]
# The five dimensions of the confounder are one set of indices that all four networks share: whoever compares two fits
# of this model, or averages them, must renumber them in all four at once. Every hidden layer is a set of its own. The
# picture shows it: a row for each site with its axes, and a line for each set with a dot at every site that carries it.

# %%
axes = confounded.plot()

# %% [markdown]
# ## A density of wines
#
# Now a whole analysis. `AutoRegressiveNN` (Germain et al. 2015) turns a vector into the mean and the log scale of each
# of its entries, given those before it. Masks on the weights see to that. We make it Bayesian in the usual way,
# each parameter a sample site with a Normal prior, and use it as a density of the thirteen measurements on 178 wines.

# %%
wines = standardized(load_wine().data)
order = torch.randperm(len(wines), generator=torch.Generator().manual_seed(0))
train, test = wines[order[:128]], wines[order[128:]]

network = AutoRegressiveNN(13, [256], permutation=torch.arange(13))
to_pyro_module_(network)
for module in network.modules():
    for name, value in list(module.named_parameters(recurse=False)):
        scale = value.shape[-1] ** -0.5 if value.dim() > 1 else 1.0  # weights by their fan-in
        setattr(module, name, PyroSample(dist.Normal(0.0, scale).expand(value.shape).to_event(value.dim())))


def model(x):
    mean, log_scale = network(x)
    with pyro.plate("wines", len(x)):
        pyro.sample("x", dist.Normal(mean, log_scale.exp()).to_event(1), obs=x)


# %% [markdown]
# ## The symmetry
#
# The 256 hidden units are not all alike. A unit may see the first measurement, or the first two, and so on; the masks
# say which. The masks are constants in the model's graph, and `find_symmetry` looks at them: units with equal masks may
# be renumbered among each other, and with no others. Hence the axis of the units is a *sum* of twelve sets. Had we
# told the library "256 hidden units" by hand, the certificate would have refused it.

# %%
symmetry = pyro_align.find_symmetry(model, train)
print({name: atom.size for name, atom in symmetry.atoms.items()})
print(symmetry.certificate)
axes = symmetry.plot()

# %%
by_hand = pyro_align.SymmetrySpec(
    {
        "layers.0.weight": ("unit", None),
        "layers.0.bias": ("unit",),
        "layers.1.weight": (None, "unit"),
    }
)
try:
    pyro_align.certify(model, by_hand, train)
except pyro_align.errors.SymmetryError as error:
    print(error)

# %% [markdown]
# ## Two fits


# %%
def fit(seed, steps=1000):
    pyro.set_rng_seed(seed)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.01 ** (1 / steps)})
    with pyro.get_param_store().scope():
        guide = AutoNormal(model, init_loc_fn=init_to_sample, init_scale=0.02)
        svi = SVI(model, guide, optimizer, Trace_ELBO())
        losses = [svi.step(train) / len(train) for _ in range(steps)]
    print(f"seed {seed}: negative ELBO {np.mean(losses[-100:]):.2f} nats a wine")
    return guide


guide_a, guide_b = fit(seed=0), fit(seed=1)

# %% [markdown]
# ## Align, and walk

# %%
alignment = pyro_align.align(guide_a, guide_b, symmetry)
print(f"W2 distance {alignment.distance_before:.2f} -> {alignment.distance:.2f}")

data = {"train": (train,), "test": (test,)}
losses = ["predictive_nll", "expected_nll"]
before, after = (
    pyro_align.evaluate_barrier(
        model, pyro_align.displacement(guide_a, other), evaluation=data, losses=losses, num_samples=128
    )
    for other in (guide_b, alignment.guide)
)
axes = pyro_align.plots.plot_before_after({"before": before, "after": after}, losses="predictive_nll")

# %%
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always", pyro_align.errors.DiagnosticWarning)
    tables = {"before": before.summary(symmetry=symmetry), "after": after.summary(symmetry=symmetry)}
pd.concat(tables)[["barrier", "se", "tau", "low", "high", "start", "end"]].round(3)

# %%
for message in dict.fromkeys(str(warning.message) for warning in told):
    print(message, end="\n\n")

# %% [markdown]
# Most of the barrier was the numbering of the units. The table comes with warnings, and they matter. Most units have
# been pruned: at temperature 1 the posterior leaves them at the prior, and of the twenty or so that share a mask at
# most six are active in either fit. With so few there is little to choose from, and what is left may be a true
# difference between the two (see *Width on digits*). The bands of the predictive loss on the test data are a little
# too narrow: single wines' likelihoods differ much between draws.
#
# ## In ArviZ
#
# The path's midpoint is a posterior that nobody fitted, and an ArviZ object like any other: draws, the log likelihood
# of every wine, the data.

# %%
middle = after.at(0.5, evaluation="test")
middle

# %%
az.summary(middle, var_names=["layers.1.bias"], kind="stats").head(6)
