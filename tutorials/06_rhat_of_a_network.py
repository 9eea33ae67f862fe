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
# # R-hat of a Bayesian neural network
#
# Four chains of NUTS sample the weights of a small network. R-hat of the weights says that the chains disagree; R-hat
# of the functions that the weights stand for says that they agree. Both are right: hidden units have no order, and
# no sign. We take order and sign out of the draws, one draw at a time, and look again.

# %%
import warnings

import numpy as np
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
# ## A network
#
# One hidden layer of ten tanh units, standard normal weights, forty noisy values of a curve.

# %%
UNITS, NOISE = 10, 0.3
g = torch.Generator().manual_seed(0)
x = torch.linspace(-2, 2, 40)
y = torch.sin(2 * x) + 0.3 * x + NOISE * torch.randn(40, generator=g)


def network(x, w1, b1, w2, b2):
    hidden = torch.tanh(x.unsqueeze(-1) * w1.unsqueeze(-2) + b1.unsqueeze(-2))
    return (hidden @ w2.unsqueeze(-1)).squeeze(-1) + b2.unsqueeze(-1)


def model(x, y, copies=()):
    def normal(name, *shape):
        return pyro.sample(name, dist.Normal(0.0, 1.0).expand([*copies, *shape]).to_event(len(copies) + len(shape)))

    mean = network(x, normal("w1", UNITS), normal("b1", UNITS), normal("w2", UNITS), normal("b2"))
    pyro.sample("y", dist.Normal(mean, NOISE).to_event(mean.dim()), obs=y.expand(mean.shape))


# %% [markdown]
# ## Four chains
#
# To save time, one run of NUTS samples four independent copies of the network at once: their joint posterior is the
# product, so that each copy's draws are a chain. (Four runs of `MCMC` would do as well, and take four times as long.
# `align_draws` takes a finished `MCMC` as it is.)


# %%
def chains(copies, warmup, draws):
    pyro.set_rng_seed(0)
    kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True, max_tree_depth=6)
    sampler = MCMC(kernel, num_samples=draws, warmup_steps=warmup, disable_progbar=True)
    sampler.run(x, y, (copies,))
    return {site: value.transpose(0, 1) for site, value in sampler.get_samples().items()}


draws = chains(copies=4, warmup=150, draws=350)
{site: tuple(value.shape) for site, value in draws.items()}

# %% [markdown]
# ## Before
#
# The largest R-hat of the weights, and that of the function's values at all forty inputs. The latter do not depend on
# how units are numbered. They bound what any relabeling can do.


# %%
def rhat(values):
    data = xr.Dataset({k: (("chain", "draw", *(f"{k}_{i}" for i in range(v.ndim - 2))), v) for k, v in values.items()})
    return {name: round(float(r.max()), 3) for name, r in az.rhat(data).items()}


functions = network(x, *(draws[site] for site in ("w1", "b1", "w2", "b2"))).numpy()
print("weights ", rhat({site: value.numpy() for site, value in draws.items()}))
print("function", rhat({"f": functions}))

# %% [markdown]
# ## Order
#
# `find_symmetry` finds that the units can be renumbered: the entries of `w1`, `b1` and `w2` together. Every draw is
# brought as near as possible to the draw of highest log joint.

# %%
permutations = pyro_align.find_symmetry(model, x, y)
ordered = pyro_align.align_draws(draws, permutations, model=model, args=(x, y))
print(ordered)
ordered.report().round(3)

# %% [markdown]
# ## Order and sign
#
# Much better, but not as good as the function. tanh is odd, so that a unit may also change the sign of its incoming
# and outgoing weights together. With `signs=True` discovery looks for that too: ± marks the axes along which values
# turn their sign with the unit. (By hand one would write `SymmetrySpec({"w1": (Odd("unit"),), ...})`, and
# `certify` it.) When the symmetry is used, the log joint of every relabeled draw is compared with the one before.

# %%
signed = pyro_align.find_symmetry(model, x, y, signs=True)
print(signed)

# %%
aligned = pyro_align.align_draws(draws, signed, model=model, args=(x, y))
print(aligned)
aligned.report().round(3)

# %% [markdown]
# `b2` belongs to no unit, and no relabeling changes it: it shows what R-hat the chains have where labels play no part.
#
# How far were the draws from one another? The number of swaps between each draw's numbering and the reference's; two
# random numberings of ten units are 7.1 swaps apart on average.

# %%
(swaps,) = aligned.transpositions.values()  # one set of units
print("swaps per draw", np.bincount(swaps.ravel()), "mean", swaps.mean())
print("the group has", round(aligned.symmetry.log_order, 1), "nats;", aligned.modes())

# %% [markdown]
# ## Pictures
#
# Traces of the outgoing weights, before and after. What looked like ten copies of one marginal are ten units, each with
# its own.

# %%
dims = ("chain", "draw", "unit")
coords = {dim: range(n) for dim, n in zip(dims, draws["b1"].shape, strict=True)}
before, after = (
    xr.Dataset({site: (dims, values[site].numpy()) for site in ("w1", "b1", "w2")}, coords)
    for values in (draws, aligned.draws)
)
_ = az.plot_trace(before, var_names=["w2"])

# %%
_ = az.plot_trace(after, var_names=["w2"])

# %%
_ = az.plot_forest(xr.Dataset({"w1, before": before["w1"], "w1, after": after["w1"]}), combined=True)

# %% [markdown]
# Ranks of one chain's draws among those of all: uniform where the chains agree.

# %%
_ = az.plot_rank(before.isel(unit=slice(3)), var_names=["w2"])

# %%
_ = az.plot_rank(after.isel(unit=slice(3)), var_names=["w2"])

# %% [markdown]
# ## What this shows, and what not
#
# Relabeling takes out of R-hat what comes from labels alone. It leaves what comes from the sampler: where R-hat of the
# function is large, run longer. It says nothing about units that the data do not need, whose weights follow the prior
# and whose labels are settled by noise.
