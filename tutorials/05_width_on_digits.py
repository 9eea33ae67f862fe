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
# # Width on digits
#
# Wider networks are easier to align: with more units to choose from, every unit of one network finds a closer partner
# in the other. Rossi, Singh & Hannagan (2023) show it for Bayesian networks; here it is on the 8x8 digits of
# scikit-learn, in about a minute: two posteriors at each of three widths, and the barrier between them before and after
# alignment.

# %%
import matplotlib.pyplot as plt
import pandas as pd
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import pyro_align
from pyro_align.demo.network import bayesian_mlp, he_initialization
from pyro_align.model.effects import TemperMessenger

torch.set_num_threads(1)
images, labels = load_digits(return_X_y=True)
train_images, test_images, train_labels, test_labels = train_test_split(
    images / 16, labels, test_size=0.2, random_state=0
)
x, y = torch.tensor(train_images).float(), torch.tensor(train_labels)
x_test, y_test = torch.tensor(test_images).float(), torch.tensor(test_labels)

# %% [markdown]
# ## Fits
#
# `bayesian_mlp` is a plain Pyro model: two hidden layers with priors of variance 2 / fan-in. `TemperMessenger` makes
# the KL count one hundredth in the ELBO. At temperature 1, a mean-field posterior of so few data leaves most units at
# the prior, and the network's width means little.

# %%
TEMPERATURE = 0.01
WIDTHS = [8, 32, 128]


def fit(model, seed, steps=600, batch=256):
    pyro.set_rng_seed(seed)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.01 ** (1 / steps)})
    with pyro.get_param_store().scope():  # parameters of its own
        guide = AutoNormal(model, init_loc_fn=he_initialization, init_scale=0.01)
        temper = TemperMessenger(TEMPERATURE)
        svi = SVI(temper(model), temper(guide), optimizer, Trace_ELBO())
        for _ in range(steps):
            chosen = torch.randint(len(x), (batch,))
            svi.step(x[chosen], y[chosen], len(x))
    return guide


# %% [markdown]
# ## Barriers
#
# For each width: two fits, the symmetry, the alignment, and the losses along the path before and after. Test data are
# told the number of training data, for which the KL was paid.

# %%
rows = []
for width in WIDTHS:
    model = bayesian_mlp([64, width, width, 10])
    guides = [fit(model, seed) for seed in (0, 1)]
    symmetry = pyro_align.find_symmetry(model, x[:32], y[:32])
    alignment = pyro_align.align(*guides, symmetry)
    active = pyro_align.effective_width(model, guides[0], symmetry, x[:32], y[:32]).active
    for name, end in {"before alignment": guides[1], "aligned": alignment.guide}.items():
        barrier = pyro_align.evaluate_barrier(
            model,
            pyro_align.displacement(guides[0], end),
            evaluation={"test": (x_test, y_test, len(x))},
            taus=11,
            temperature=TEMPERATURE,
        )
        for loss in ("predictive_nll", "error_rate"):
            peak = barrier["test", loss].barrier
            rows.append([width, "/".join(map(str, active.values())), name, loss, peak.height, peak.se])

results = pd.DataFrame(rows, columns=["width", "active", "path", "loss", "barrier", "se"])
results.pivot_table(index=["width", "active"], columns=["loss", "path"], values="barrier").round(3)

# %% [markdown]
# `active` counts the units of each layer whose KL from the prior exceeds 5 nats. It belongs beside every barrier: two
# networks whose units are mostly pruned have few units to align.

# %%
figure, axis = plt.subplots(figsize=(4.5, 3.2))
styles = {"before alignment": ("#D55E00", "o"), "aligned": ("#0072B2", "s")}
for name, (color, marker) in styles.items():
    part = results[(results["path"] == name) & (results["loss"] == "predictive_nll")]
    axis.errorbar(part["width"], part["barrier"], 2 * part["se"], color=color, marker=marker, label=name, capsize=3)
axis.set_xscale("log", base=2)
axis.set_xticks(WIDTHS, WIDTHS)
axis.set_yscale("log")
axis.set_xlabel("units in each hidden layer")
axis.set_ylabel("predictive NLL barrier\n(nats per datum, test data)")
axis.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# One pair of seeds at each width shows the trend, not its spread. `python -m studies.width_depth --out OUT` measures
# more widths, depths and seeds, with point estimates beside the posteriors.
