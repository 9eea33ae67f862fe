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
# # Two posteriors
#
# Two Bayesian networks, fitted to the same images from two seeds. Before alignment, a barrier lies between them.
# We find the model's symmetry, relabel the second posterior, and look at the barrier again.

# %%
import warnings

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_sample
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import pyro_align

torch.set_num_threads(1)
images, labels = load_digits(return_X_y=True)
train_images, test_images, train_labels, test_labels = train_test_split(
    images / 16, labels, test_size=0.2, random_state=0
)
x, y = torch.tensor(train_images).float(), torch.tensor(train_labels)
x_test, y_test = torch.tensor(test_images).float(), torch.tensor(test_labels)

# %% [markdown]
# ## A model
#
# One hidden layer of 64 units on the 8x8 digits of scikit-learn. The prior of each weight matrix is Normal with
# variance 2 / fan-in. Nothing in the model says which of its axes are interchangeable.

# %%
HIDDEN = 64


def normal(name, *shape, fan_in):
    prior = dist.Normal(0.0, (2 / fan_in) ** 0.5)
    return pyro.sample(name, prior.expand(shape).to_event(len(shape)))


def model(x, y=None):
    w1, b1 = normal("w1", 64, HIDDEN, fan_in=64), normal("b1", HIDDEN, fan_in=64)
    w2, b2 = normal("w2", HIDDEN, 10, fan_in=HIDDEN), normal("b2", 10, fan_in=HIDDEN)
    logits = torch.relu(x @ w1 + b1) @ w2 + b2
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=logits), obs=y)


# %% [markdown]
# ## Two fits
#
# Plain Pyro. Each fit gets a parameter store of its own, since two guides of one class otherwise share their
# parameters, and starts from a draw of the prior, since Pyro's default starts every seed from the same point.
# The learning rate falls by a factor of 100 over the fit.


# %%
def fit(seed, steps=800):
    pyro.set_rng_seed(seed)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.01 ** (1 / steps)})
    with pyro.get_param_store().scope():
        guide = AutoNormal(model, init_loc_fn=init_to_sample, init_scale=0.01)
        svi = SVI(model, guide, optimizer, Trace_ELBO())
        for _ in range(steps):
            svi.step(x, y)
    return guide


guide_a, guide_b = fit(seed=0), fit(seed=1)

# %% [markdown]
# ## The symmetry
#
# `find_symmetry` reads the model's log joint and finds the axes that can be relabeled together without
# changing it: the columns of `w1`, the entries of `b1` and the rows of `w2`. Pixels and classes are tied to the
# data and stay where they are. What it returns has been checked on this model and these data by relabeling at
# random and comparing log joints.

# %%
symmetry = pyro_align.find_symmetry(model, x, y)
print(symmetry)

# %% [markdown]
# ## Before
#
# Between two Gaussians, the path of optimal transport is linear in the locations and in the standard
# deviations. Along it, from the first posterior to the second before alignment, the loss rises far above that of
# either end.

# %%
before = pyro_align.evaluate_barrier(model, pyro_align.displacement(guide_a, guide_b), x, y)
before.summary()

# %% [markdown]
# ## Align
#
# `align` looks for the relabeling of the second posterior that lies nearest to the first. The guide it returns
# is new, with the same draws as the old one except for the numbering of the units.

# %%
alignment = pyro_align.align(guide_a, guide_b, symmetry)
alignment

# %% [markdown]
# ## After

# %%
path = pyro_align.displacement(guide_a, alignment.guide)
after = pyro_align.evaluate_barrier(model, path, x, y)
with warnings.catch_warnings(record=True) as noted:
    warnings.simplefilter("always")
    table = after.summary()
print(*(note.message for note in noted))
table

# %% [markdown]
# The summary comes with a warning, and it is worth reading: the barrier of the ELBO is zero only because the KL
# divergence from the prior dips in the middle of the path and makes up for what the likelihood loses there. So look at
# the likelihood's own barriers, which are small but not zero.

# %%
axes = after.plot()

# %% [markdown]
# Two posteriors that looked like two modes are neighbors. Every point on the path is a Pyro guide: here is how
# often the posterior predictive of the midpoint is right on the test images.

# %%
predictive = pyro.infer.Predictive(model, guide=path(0.5), num_samples=50)
votes = torch.nn.functional.one_hot(predictive(x_test)["y"].reshape(50, -1), 10).sum(0)
round((votes.argmax(-1) == y_test).float().mean().item(), 3)

# %% [markdown]
# `after.to_arviz()` hands the result to ArviZ.
