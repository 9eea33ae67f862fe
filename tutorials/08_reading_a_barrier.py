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
# # Reading a barrier
#
# `evaluate_barrier` returns one curve for each loss and data set, with errors. Here is what each of them says, which
# of them mislead, how to tell a barrier from noise, and how to look at one point of the path with ArviZ. The page
# *Barriers* of the documentation derives the estimators.
#
# ## Two posteriors and a path
#
# Two Bayesian networks with two hidden layers of 32 units, fitted from two seeds to the 8x8 digits of scikit-learn, at
# temperature 1. The second is relabeled to lie nearest to the first.

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import pyro_align
from pyro_align import plots
from pyro_align.demo.network import bayesian_mlp, he_initialization

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ArviZ 0.23 announces its next version on import
    import arviz as az
warnings.simplefilter("ignore", DeprecationWarning)  # of pandas and Matplotlib, about how ArviZ calls them
torch.set_num_threads(1)
images, labels = load_digits(return_X_y=True)
train_images, test_images, train_labels, test_labels = train_test_split(
    images / 16, labels, test_size=0.2, random_state=0
)
x, y = torch.tensor(train_images).float(), torch.tensor(train_labels)
x_test, y_test = torch.tensor(test_images).float(), torch.tensor(test_labels)
model = bayesian_mlp([64, 32, 32, 10])


def fit(seed, steps=500, batch=256):
    pyro.set_rng_seed(seed)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.01 ** (1 / steps)})
    with pyro.get_param_store().scope():  # parameters of its own
        guide = AutoNormal(model, init_loc_fn=he_initialization, init_scale=0.01)
        svi = SVI(model, guide, optimizer, Trace_ELBO())
        for _ in range(steps):
            chosen = torch.randint(len(x), (batch,))
            svi.step(x[chosen], y[chosen], len(x))
    return guide


guides = [fit(seed) for seed in (0, 1)]
symmetry = pyro_align.find_symmetry(model, x[:32], y[:32])
alignment = pyro_align.align(*guides, symmetry)
path = pyro_align.displacement(guides[0], alignment.guide)

# %% [markdown]
# ## The table
#
# Training data and held-out data go in together, under names; all losses share each forward pass. The test set is told
# the number of training data, for which the KL was paid.

# %%
data = {"train": (x, y), "test": (x_test, y_test, len(x))}
barrier = pyro_align.evaluate_barrier(model, path, evaluation=data, taus=11)
table = barrier.summary(symmetry=symmetry)
table[["barrier", "se", "tau", "low", "high", "p_value", "start", "end", "peak"]].round(4)

# %% [markdown]
# All figures are per datum, in nats; the error rate is a fraction of data. `barrier` is the highest rise over the
# straight line between the ends, `se` its Monte Carlo standard error, `tau` where it sits. `low` and `high` are an
# interval for the barrier, `p_value` the probability of a rise like this were there none. `start`, `end` and `peak` are
# the losses themselves.
#
# ## Four losses, one forward pass
#
# The negative ELBO is the expected NLL plus the KL, so its excess over the chord is the sum of theirs:

# %%
middle = len(barrier.taus) // 2
excess = {
    loss: barrier["train", loss].excess[middle] for loss in ("expected_nll", "kl", "negative_elbo", "predictive_nll")
}
pd.Series(excess, name="excess at the midpoint, nats per datum").to_frame()

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
barrier.plot(axes[0], losses=["expected_nll", "predictive_nll", "kl", "negative_elbo"], evaluation="train")
barrier.plot(axes[1], losses="predictive_nll", evaluation="test")
plt.show()

# %% [markdown]
# - **Expected NLL** averages the log likelihood over draws. It punishes every bad draw, and wide posteriors most.
# - **Predictive NLL** averages the likelihood first: it is the loss of the predictions that one would use, and the one
#   to compare posteriors by.
# - **KL** to the prior falls in the middle. The midpoint of two posteriors that disagree has smaller locations than
#   either, and nothing in the KL minds that they explain the data worse.
# - **ELBO** adds the two, so that the fall of the KL hides much of the loss of likelihood. *A barrier of the ELBO alone
#   says little.* Where it is less than a tenth of the likelihood's, `summary()` warns.
#
# ## Is it there?
#
# The band in the figures holds the whole curve with probability 95%. Its errors are those of the excess: every draw of
# the noise is carried along the path, and most of its effect is common to the whole curve. A level is known less well:

# %%
curve = barrier["train", "expected_nll"]
print(f"standard error of the midpoint's level {curve.se[middle]:.4f}, of its excess {curve.excess_se[middle]:.4f}")
rows = table.loc[[("train", "predictive_nll"), ("test", "predictive_nll"), ("test", "error_rate")]]
rows[["barrier", "low", "high", "p_value"]].round(4)

# %% [markdown]
# A small barrier whose `low` is 0 may be noise: report `high`, below which it is known to lie. More draws
# (`num_samples`) narrow the interval; more data do not, as the errors take the data as given. That is why held-out data
# belong beside the training data.
#
# ## What warnings mean
#
# With too few draws, the average likelihood of some data rests on a draw or two. The table then warns that its bands
# are too narrow:


# %%
def told(barrier, **options):
    """The warnings of a summary."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", pyro_align.errors.DiagnosticWarning)
        barrier.summary(**options)
    return "\n\n".join(str(warning.message) for warning in seen) or "no warning"


print("32 draws:", told(barrier, symmetry=symmetry))
for draws in (4, 6, 8, 12, 16):
    few = pyro_align.evaluate_barrier(model, path, x, y, taus=5, num_samples=draws, losses=["predictive_nll"])
    excess = few["predictive_nll"].barrier
    print(f"\n{draws} draws: {excess.height:.3f} +- {excess.se:.3f}, moves by {few['predictive_nll'].settling:.2f} se")
    print(told(few))

# %% [markdown]
# `settling` is how far the excess over the chord moves from half of the draws to all, in standard errors; above 0.4 the
# table warns. It is an estimate from few draws itself, so that a run with too few may go without a warning.

# %% [markdown]
# A second warning is of posteriors that have collapsed to the prior: units that do nothing are easy to align. Given the
# symmetry, `summary` counts the active units; below half of a layer, it warns. Here they are:

# %%
for guide in guides:
    print(pyro_align.effective_width(model, guide, symmetry, x[:32], y[:32]).active)

# %% [markdown]
# ## Where is the top?
#
# `tolerance` adds taus next to the highest one of every curve, until its neighbors are that close. With the same seed,
# taus that were there before keep their figures to the bit.

# %%
fine = pyro_align.evaluate_barrier(model, path, x, y, taus=5, tolerance=0.02, losses=["predictive_nll"])
print(fine.taus.round(3))
print(fine)

# %% [markdown]
# ## A learned path
#
# What remains after alignment may be avoided by a curved path. `learn_path` bends a Bezier curve between the two ends,
# starting from the straight path, and trains the bend on the negative ELBO.

# %%
learned = pyro_align.learn_path(
    model, guides[0], alignment.guide, x, y, max_steps=400, batch_size=256, learning_rate=0.02
)
bent = pyro_align.evaluate_barrier(model, learned, evaluation=data, taus=11)
axes = plots.plot_before_after(
    {"straight": barrier, "learned": bent},
    losses=["expected_nll", "predictive_nll", "negative_elbo"],
    evaluations="test",
)
plt.show()

# %%
print(told(bent))

# %% [markdown]
# The figure is of held-out data: the bend was trained on the training data. A path trained on the ELBO has no barrier
# in the ELBO; whether it has one in the likelihood is another question, which is why all are shown.
#
# ## One point in ArviZ
#
# `barrier.at(tau)` evaluates one tau again, with the same draws, and is a plain ArviZ object: log likelihood per datum,
# log joint and log density of the guide per draw, posterior, data. `barrier.to_arviz()` holds the curves and, on
# purpose, no log likelihood: `az.loo` would count the data of every tau. Leave-one-out wants more draws than a barrier:
# a few hundred. Draws of a guide are independent, which `reff=1.0` says.

# %%
many = pyro_align.evaluate_barrier(model, path, x, y, taus=3, num_samples=200)
points = {f"tau = {tau}": many.at(tau) for tau in (0.0, 0.5, 1.0)}
points["tau = 0.5"]["log_likelihood"]

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # of high Pareto shapes, which come next
    loos = {name: az.loo(point, pointwise=True, reff=1.0) for name, point in points.items()}
    ranks = az.compare(loos)
print(loos["tau = 0.5"])
ranks

# %% [markdown]
# `elpd_loo` (ArviZ 1.x: `elpd`) is the expected log predictive density of data left out, in nats over all data, from
# training data alone; `dse` is the error of the difference to the best. High Pareto shapes (open markers in the second
# figure tell their fraction) mark
# data for which it cannot be trusted: leaving them out would change the posterior more than its draws can tell.

# %%
_ = az.plot_khat(loos["tau = 0.5"])

# %%
_ = plots.plot_loo(many.loo(np.linspace(0, 1, 5)))

# %% [markdown]
# `barrier.compare()` ranks points of the path beside the mixture of its ends: the ensemble of the two posteriors, which
# is what one would use without a path. It takes two networks to make, where every other row takes one.

# %%
many.compare().round(3)

# %% [markdown]
# Leave-one-out from a guide's draws is that of the guide, not of the exact posterior. `guide_k` in `barrier.loo()` is
# the Pareto shape of the weights that would turn one into the other. Below 0.7, `correct=True` does so (with `pip
# install "pyro_align[loo]"`, or ArviZ 1.x). A mean-field guide of a network is far beyond:

# %%
many.loo([0.5]).round(2)

# %% [markdown]
# ## Keeping results
#
# - `barrier.to_arviz().to_netcdf("barrier.nc")` keeps curves, bands and draws.
# - `barrier.write_points("points")` writes every tau's log likelihood to Zarr, one tau in memory at a time.
# - `evaluate_barrier(..., checkpoint="run")` goes on where it was stopped, and gives the same bits.
