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
# # Label switching in a mixture
#
# Four chains of NUTS sample the same mixture. All of them sample well, and yet R-hat says that they disagree: what
# one chain calls component 0, another calls component 2. We relabel the draws and look again.

# %%
import warnings

import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from pyro.infer import MCMC, NUTS

import pyro_align

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ArviZ 0.23 announces its next version on import
    import arviz as az

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## A model
#
# Three Gaussian components. Two of them have the same mean, and differ in their scale. The allocations of the data
# are summed out, so that NUTS sees continuous parameters only.

# %%
g = torch.Generator().manual_seed(0)
parts = [(50, 0.0, 0.3), (60, 0.0, 2.5), (40, 7.0, 0.7)]  # data, mean, scale
y = torch.cat([mean + scale * torch.randn(n, generator=g) for n, mean, scale in parts])


def model(y):
    weights = pyro.sample("weights", dist.Dirichlet(2 * torch.ones(3)))
    loc = pyro.sample("loc", dist.Normal(0.0, 4.0).expand([3]).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.7).expand([3]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, scale)), obs=y)


# %% [markdown]
# ## Four chains
#
# One after the other, each from a start of its own. The draws go into an xarray `Dataset`, which ArviZ reads.


# %%
def chain(seed):
    pyro.set_rng_seed(seed)
    kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True)
    sampler = MCMC(kernel, num_samples=300, warmup_steps=150, disable_progbar=True)
    sampler.run(y)
    return sampler.get_samples()


chains = [chain(seed) for seed in range(4)]
draws = {site: torch.stack([c[site] for c in chains]) for site in chains[0]}
dims = ("chain", "draw", "component")
coords = {dim: range(n) for dim, n in zip(dims, draws["loc"].shape, strict=True)}
before = xr.Dataset({site: (dims, value.numpy()) for site, value in draws.items()}, coords)
az.summary(before)

# %% [markdown]
# R-hat is far above 1 and the effective sample sizes are those of a handful of draws. The means are averages over
# different components, and mean nothing. The traces show why: each chain is steady, on its own labels.

# %%
_ = az.plot_trace(before, var_names=["loc", "scale"])

# %% [markdown]
# ## The symmetry
#
# `find_symmetry` finds in the model that the entries of the three sites can be relabeled together.

# %%
symmetry = pyro_align.find_symmetry(model, y)
print(symmetry)

# %% [markdown]
# ## Relabel
#
# Every draw is brought as near as possible to one of them, that of the highest log joint. With the model at hand, the
# log joint and the log likelihood of every relabeled draw are compared with those it had before.

# %%
aligned = pyro_align.align_draws(before, symmetry, model=model, args=(y,))
print(aligned)
aligned.report().round(3)

# %% [markdown]
# ## After

# %%
after = aligned.to_arviz()
az.summary(after)

# %%
_ = az.plot_trace(after, var_names=["loc", "scale"])

# %%
runs = {"before": before, "after": after}
_ = az.plot_forest(
    xr.Dataset({f"{site}, {when}": run[site] for site in ("loc", "scale") for when, run in runs.items()})
)

# %% [markdown]
# Rank plots: if all chains sample one distribution, the ranks of each chain's draws are uniform.

# %%
_ = az.plot_rank(before, var_names=["scale"])

# %%
_ = az.plot_rank(after, var_names=["scale"])

# %% [markdown]
# ## Other methods
#
# `"stephens"` and `"ecr"` compare which data are allocated to which component; the allocation probabilities come from
# the model. `"ordering"` sorts the components by their means, which is often done and fails here: two means are alike,
# so that sorting by them mixes two components.

# %%
for method in ("pivot", "barycenter", "stephens", "ecr", "ordering"):
    other = pyro_align.align_draws(before, symmetry, method=method, by="loc", model=model, args=(y,))
    worst = max(float(value.max()) for value in az.rhat(other.to_arviz()).values())
    scales = other.to_arviz()["scale"].mean(("chain", "draw")).values
    print(f"{method:<12}R-hat {worst:.3f}   mean scales {scales.round(2)}   {other.modes()}")

# %% [markdown]
# R-hat alone does not notice: sorting mixes the components alike in every chain. The mean scales do, which have moved
# towards each other, and so does the number of modes. A small R-hat after relabeling says that the chains agree,
# not that the labels are right.
