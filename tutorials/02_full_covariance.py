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
# # Full covariance
#
# A mean-field guide knows how uncertain each weight is; a full-covariance guide also knows which weights are uncertain
# *together*. Relabeling such a posterior has to move the correlations along with the units, and the distance between
# two of them is no longer a sum over weights. This tutorial aligns two `AutoMultivariateNormal` guides, and then two
# Laplace approximations, of a small Bayesian network.

# %%
import warnings
from dataclasses import replace

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoLaplaceApproximation, AutoMultivariateNormal, init_to_sample
from sklearn.datasets import load_diabetes

import pyro_align

# few draws keep this page fast; with more, the warning about their errors goes
warnings.simplefilter("ignore", pyro_align.errors.DiagnosticWarning)

torch.set_num_threads(1)
features, progression = (torch.tensor(a).float() for a in load_diabetes(return_X_y=True, scaled=False))
features = (features - features.mean(0)) / features.std(0)
progression = (progression - progression.mean()) / progression.std()
order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
train, test = order[:350], order[350:]
x, y = features[train], progression[train]

# %% [markdown]
# ## A model
#
# Ten measurements of 442 diabetes patients, and how far the disease had gone a year later. Six tanh units, standard
# priors, and an unknown noise level.

# %%
UNITS = 6


def model(x, y=None):
    w1 = pyro.sample("w1", dist.Normal(0.0, 1 / 3).expand([10, UNITS]).to_event(2))
    b1 = pyro.sample("b1", dist.Normal(0.0, 1.0).expand([UNITS]).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([UNITS]).to_event(1))
    b2 = pyro.sample("b2", dist.Normal(0.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(-0.5, 0.5))
    mean = torch.tanh(x @ w1 + b1) @ w2 + b2
    with pyro.plate("patients", len(x)):
        pyro.sample("y", dist.Normal(mean, noise), obs=y)


# %% [markdown]
# ## The symmetry, with signs
#
# tanh is odd: turning the signs of a unit's incoming and outgoing weights changes nothing either.
# `find_symmetry(model, x, y, signs=True)` finds that; here the symmetry is written by hand, to show how: `Odd` marks an
# axis along which values turn their sign with the unit. `certify` puts it to the same test in float64 as one that was
# found. Six units can then be relabeled in $6! \cdot 2^6 = 46080$ ways, whose logarithm is $\log |G|$ of the group.

# %%
unit = pyro_align.axes.Odd("unit")
by_hand = pyro_align.SymmetrySpec({"w1": (None, unit), "b1": (unit,), "w2": (unit,)})
symmetry = pyro_align.certify(model, by_hand, x, y)
print(symmetry)

# %% [markdown]
# ## Two fits
#
# One Gaussian over all 74 unknowns, with its full covariance. `noise` is positive, so Pyro fits its logarithm. A full
# covariance takes more steps than a diagonal one: correlations that are not yet fitted do not agree between two fits.


# %%
def fit(guide_class, seed, steps=1000, **options):
    pyro.set_rng_seed(seed)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.01 ** (1 / steps)})
    with pyro.get_param_store().scope():  # a store of its own for each fit
        guide = guide_class(model, init_loc_fn=init_to_sample, **options)
        svi = SVI(model, guide, optimizer, Trace_ELBO())
        for _ in range(steps):
            svi.step(x, y)
        if isinstance(guide, AutoLaplaceApproximation):
            guide = guide.laplace_approximation(x, y)
    return guide


guide_a, guide_b = (fit(AutoMultivariateNormal, seed, steps=2000, init_scale=0.05) for seed in (0, 1))

# %% [markdown]
# ## Align
#
# Between Gaussians with covariances $\Sigma_0$ and $\Sigma_1$ the squared Wasserstein-2 distance is
#
# $$
# |m_0 - m_1|^2 + \operatorname{tr}\!\big(\Sigma_0 + \Sigma_1 - 2 (\Sigma_0^{1/2} \Sigma_1 \Sigma_0^{1/2})^{1/2}\big) .
# $$
#
# The last term, the Bures distance of the covariances, is a minimum over couplings of the two Gaussians. `align`
# alternates: the best coupling for the relabeling it has, then the best relabeling for that coupling, until neither
# changes. The distance falls at every step, and what is printed is the true W2, not that of the diagonals.

# %%
alignment = pyro_align.align(guide_a, guide_b, symmetry)
print(alignment)

# %% [markdown]
# ## Correlations move along
#
# `read_guide` takes a snapshot of a guide's posterior. From its root $R$, with covariance $R R^\top$, here are the
# correlations of all unknowns: of the first posterior, of the second as fitted, and of the second relabeled. Nothing
# was fitted again: the right picture is the middle one with rows and columns put in another order, and some signs
# flipped. Now it can be compared with the left one.

# %%
first, second = pyro_align.guides.read_guide(guide_a), pyro_align.guides.read_guide(guide_b)


def correlations(posterior):
    covariance = posterior.root @ posterior.root.T
    scale = covariance.diagonal().sqrt()
    return covariance / scale / scale.unsqueeze(-1)


figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
shown = {"first": first, "second": second, "second, aligned": alignment.posterior}
for ax, (title, posterior) in zip(axes, shown.items(), strict=True):
    image = ax.imshow(correlations(posterior), vmin=-0.6, vmax=0.6, cmap="RdBu")
    ax.set(title=title, xticks=[], yticks=[])
figure.colorbar(image, ax=axes, label="correlation")
plt.show()

# %% [markdown]
# The same as one number: how well the off-diagonal correlations of the two posteriors agree.

# %%
below = torch.ones(len(first.loc), len(first.loc)).tril(-1).bool()
for title, posterior in shown.items():
    both = torch.stack([correlations(q)[below] for q in (first, posterior)])
    print(f"{title:16} agreement with the first: {both.corrcoef()[0, 1].item():.3f}")

# %% [markdown]
# ## The path is not linear in Cholesky factors
#
# `displacement` walks the geodesic of this distance. Half-way, both ends are equally far, and the two halves add up to
# the whole. The obvious alternative, averaging the Cholesky factors, is a detour.

# %%
path = pyro_align.displacement(guide_a, alignment.guide)
middle, end = path.posterior(0.5), alignment.posterior
averaged = replace(first, loc=(first.loc + end.loc) / 2, root=(first.tril + end.tril) / 2, stored=None)
for name, point in {"geodesic": middle, "averaged Cholesky factors": averaged}.items():
    print(f"{name:26} {first.distance(point):.4f} + {point.distance(end):.4f}, the distance is {path.length:.4f}")

# %% [markdown]
# ## Barriers
#
# Two data sets, before and after. Read `predictive_nll`, the loss of the averaged prediction, in nats per patient;
# `low` and `high` are the limits of a 95% interval for the barrier.

# %%
evaluation = {"train": (x, y), "test": (features[test], progression[test])}


def barriers(start, end):
    path = pyro_align.displacement(start, end)
    losses = ["expected_nll", "predictive_nll"]
    barrier = pyro_align.evaluate_barrier(model, path, evaluation=evaluation, losses=losses, num_samples=64)
    return barrier.summary()[["barrier", "se", "low", "high"]].round(4)


barriers(guide_a, guide_b)

# %%
barriers(guide_a, alignment.guide)

# %% [markdown]
# What looked like two modes is one, seen twice: the barrier has all but gone. Every point of the path is an
# `AutoMultivariateNormal` and works wherever Pyro takes a guide. The negative ELBO per patient at the two ends, and
# half-way:

# %%
for tau in (0.0, 1.0, 0.5):
    pyro.set_rng_seed(0)
    guide = path(tau)
    print(tau, type(guide).__name__, round(Trace_ELBO(num_particles=100).loss(model, guide, x, y) / len(x), 3))

# %% [markdown]
# ## A Laplace approximation
#
# `AutoLaplaceApproximation` finds the mode; `laplace_approximation` then adds the covariance, the inverse of the
# Hessian, and returns an `AutoMultivariateNormal`. It is aligned like any other.

# %%
laplace_a, laplace_b = (fit(AutoLaplaceApproximation, seed) for seed in (0, 1))
laplace = pyro_align.align(laplace_a, laplace_b, symmetry)
print(laplace)

# %%
barriers(laplace_a, laplace_b)

# %%
barriers(laplace_a, laplace.guide)

# %% [markdown]
# Alignment takes most of this barrier away, but not all. Is the rest a matter of the covariances, or of the modes?

# %%
mode_a, mode_b = pyro_align.guides.read_guide(laplace_a).loc, laplace.posterior.loc
print(f"{((mode_a - mode_b).norm() / laplace.distance).square():.0%} of the squared distance lies between the modes")

# %% [markdown]
# The two searches ended on two modes that differ by more than labels. A Laplace approximation looks at one mode and
# its curvature; the variational guides above had to put up with the whole posterior, and found one place for both.
# What remains after alignment is a statement about the two approximations, and worth reporting.
