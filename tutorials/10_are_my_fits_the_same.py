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
# # Are my fits the same?
#
# A topic model is fitted from several random starts. Each fit numbers its topics in an order of its own, and some find
# topics that others do not. Which fits are the same, and which topics would another start find again?

# %%
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, init_to_sample

from pyro_align import find_symmetry
from pyro_align.restarts import stability

torch.set_num_threads(1)

# %% [markdown]
# ## Documents and a model
#
# 150 documents of 80 words each from four topics; each topic prefers ten of the forty words. The model sums the topic
# of each word out, so that only the topics and their proportions are left.

# %%
pyro.set_rng_seed(0)
documents, words, length, truth = 150, 40, 80, 4
topics = dist.Dirichlet(torch.full((words,), 0.05) + torch.kron(torch.eye(4), torch.ones(10))).sample()
shares = dist.Dirichlet(torch.full((truth,), 0.3)).sample((documents,))
counts = dist.Multinomial(length, probs=shares @ topics).sample()


def model(counts, size):
    topic = pyro.sample("topic", dist.Dirichlet(torch.full((size, words), 1.1)).to_event(1))
    share = pyro.sample("share", dist.Dirichlet(torch.full((len(counts), size), 1.1)).to_event(1))
    pyro.sample("words", dist.Multinomial(length, probs=share @ topic).to_event(1), obs=counts)


def fit(size, seed, steps=180):
    pyro.set_rng_seed(seed)
    with pyro.get_param_store().scope():
        guide = AutoDelta(model, init_loc_fn=init_to_sample)
        svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.2, "lrd": 0.98}), Trace_ELBO())
        loss = [svi.step(counts, size) for _ in range(steps)][-1]
    return guide, loss


# %% [markdown]
# ## As many topics as there are
#
# Five fits. What may be renumbered is read off the model: the topics, in both sites at once.

# %%
fits = {f"seed {seed}": fit(truth, seed) for seed in range(1, 6)}
symmetry = find_symmetry(model, counts, truth)
print(*symmetry.sites["topic"], sep=" | ")
print("losses", [round(loss) for _, loss in fits.values()])

# %%
four = stability({name: guide for name, (guide, _) in fits.items()}, symmetry)
print(four)
four.summary().round(3)

# %% [markdown]
# As they are numbered, all fits look equally far apart. Aligned, four are one fit, and the fifth, whose loss is the
# worst, is another: it shares half of its topics with the others. Which are they? `fits` counts those that have one.

# %%
four.units().round(2)

# %% [markdown]
# ## More topics than there are
#
# With seven topics the losses are closer together than before, and yet the fits are no longer the same: most of their
# topics are found by one or two of the five starts, and none is found by all.

# %%
fits = {f"seed {seed}": fit(7, seed) for seed in range(1, 6)}
seven = stability({name: guide for name, (guide, _) in fits.items()}, find_symmetry(model, counts, 7))
print("losses", [round(loss) for _, loss in fits.values()])
print(seven)
seven.units().round(2)

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
four.plot(axes[0]).set_title("four topics")
seven.plot(axes[1]).set_title("seven topics")
figure.tight_layout()

# %% [markdown]
# A topic that comes back from most starts may be reported; one that a single start has found is that start's. What
# counts as the same topic is `threshold`: its two versions lie less than 0.3 times as far apart as different topics do.
