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
# # Factors: rotation, sign, order
#
# The loadings of a factor model are known up to a rotation, if its prior is spherical; up to signs and an order, if
# every factor has a scale of its own; up to signs, if the scales are given. We ask the model which it is, and bring the
# draws of four chains to one frame.

# %%
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

from pyro_align import align_draws, find_symmetry
from pyro_align.draws.diagnostics import rhat_and_ess

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## A model
#
# Eight tests of 200 persons; the first four go with one ability, the last four with another.

# %%
torch.manual_seed(0)
tests, persons, factors = 8, 200, 2
truth = torch.kron(torch.eye(2), torch.tensor([[0.9], [0.8], [0.7], [0.6]]))
y = torch.randn(persons, factors) @ truth.T + 0.5 * torch.randn(persons, tests)


def model(y, scale=1.0):
    w = pyro.sample("w", dist.Normal(0.0, scale).expand([tests, factors]).to_event(2))
    variance = pyro.sample("variance", dist.InverseGamma(2.0, 1.0).expand([tests]).to_event(1))
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(y), factors]).to_event(2))
    pyro.sample("y", dist.Normal(z @ w.T, variance.sqrt()).to_event(2), obs=y)


# %% [markdown]
# ## What leaves it unchanged
#
# An orthogonal matrix may act on the columns of the loadings and of the scores (`↻`): they have no axes of their own.
# With a prior that gives each factor its scale, the order is fixed and only signs are left (`±`).

# %%
symmetry = find_symmetry(model, y, signs=True, rotations=True)
print(symmetry)

# %%
ordered = find_symmetry(model, y, torch.tensor([1.0, 0.5]), signs=True, rotations=True)
print(*ordered.sites["w"], sep=" | ")

# %% [markdown]
# Was anything missed? `count=True` computes the dimension of *all* linear symmetries, from gradients alone. The scores
# of the persons are a long axis, which takes time; five persons are enough to see what kind of group it is.

# %%
print(find_symmetry(model, y[:5], signs=True, rotations=True, count=True).certificate.completeness)
print(find_symmetry(model, y[:5], count=True).certificate.completeness)  # had we not looked for rotations

# %% [markdown]
# ## Four chains
#
# A Gibbs sampler for this model takes a few lines; draws of any sampler will do.


# %%
def chain(seed, draws=400, warmup=100):
    torch.manual_seed(seed)
    w, variance, kept = torch.randn(tests, factors), torch.ones(tests), []

    def gaussian(precision, linear):  # rows of `linear`, with one precision or one each
        root = torch.linalg.cholesky(precision)
        mean = torch.cholesky_solve(linear.unsqueeze(-1), root)
        return (mean + torch.linalg.solve_triangular(root.mT, torch.randn_like(mean), upper=True)).squeeze(-1)

    for step in range(draws + warmup):
        scaled = w / variance.unsqueeze(1)
        z = gaussian((torch.eye(factors) + w.T @ scaled).expand(persons, -1, -1), y @ scaled)
        precision = torch.eye(factors) + z.T @ z / variance.reshape(-1, 1, 1)
        w = gaussian(precision, y.T @ z / variance.unsqueeze(1))
        rest = (y - z @ w.T).square().sum(0)
        variance = (1.0 + 0.5 * rest) / torch._standard_gamma(torch.full((tests,), 2.0 + 0.5 * persons))
        if step >= warmup:
            kept.append({"w": w, "variance": variance, "z": z})
    return {name: torch.stack([k[name] for k in kept]) for name in kept[0]}


chains = [chain(seed) for seed in range(4)]
draws = {name: torch.stack([c[name] for c in chains]) for name in chains[0]}

# %% [markdown]
# R-hat and effective sample size of the loadings, and of `w w'`, which no rotation changes: the sampler is fine, the
# loadings are not.


# %%
def convergence(**loadings):
    for name, value in loadings.items():
        rhat, ess = rhat_and_ess({"v": value.numpy()})["v"]
        print(f"{name:12s} R-hat {rhat:.3f}, ESS {ess:.0f}")


w = draws["w"]
convergence(as_sampled=w, invariant=w @ w.mT)

# %% [markdown]
# ## One frame
#
# *Procrustes* rotates every draw to the mean of all. *Varimax* rotates each to the axes on which its loadings are
# simple, and settles signs and order with one assignment a draw. The scores follow the loadings, and the log joint of
# every rotated draw is compared with what it was.

# %%
near = align_draws(draws, symmetry, method="procrustes", by="w", model=model, args=(y,))
simple = align_draws(draws, symmetry, method="varimax", by="w", model=model, args=(y,))
print(simple)
convergence(as_sampled=w, procrustes=near.draws["w"], varimax=simple.draws["w"], invariant=w @ w.mT)

# %% [markdown]
# The means of Varimax can be read: four tests to a factor, as planted, up to a sign and the order.

# %%
print(simple.draws["w"].mean((0, 1)).round(decimals=2))

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharex=True, sharey=True)
shown = {"as sampled": w, "procrustes": near.draws["w"], "varimax": simple.draws["w"]}
for ax, (title, value) in zip(axes, shown.items(), strict=True):
    for test in range(tests):
        ax.plot(*value[:, ::10, test].reshape(-1, 2).T.numpy(), ".", ms=3)
    ax.axhline(0, lw=0.5, color="grey")
    ax.axvline(0, lw=0.5, color="grey")
    ax.set(title=title, xlabel="factor 1", aspect="equal")
axes[0].set_ylabel("factor 2")
figure.tight_layout()

# %% [markdown]
# ## Signs and order alone
#
# What if one only relabels and flips signs? The chains still disagree, and the report says why: a continuous group is
# left.

# %%
finite = find_symmetry(model, y, signs=True)
flipped = align_draws(draws, finite, model=model, args=(y,))
print(flipped)
convergence(signs_order=flipped.draws["w"], varimax=simple.draws["w"])
