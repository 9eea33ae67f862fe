"""Effective width: the KL of single units."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from barrier_problems import classifier, classifier_data, make_guide
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch.distributions import Normal, kl_divergence

from pyro_align.diagnostics import effective_width, shares_off_prior
from pyro_align.errors import PyroAlignError
from pyro_align.guides import read_guide
from pyro_align.symmetry.group import Symmetry

AXES = {"w1": (None, "hidden"), "b1": ("hidden",), "w2": ("hidden", None)}
SHAPES = {"w1": (4, 6), "b1": (6,), "w2": (6, 3)}


@pytest.fixture
def problem():
    x, y = classifier_data()
    return make_guide(classifier, x, y, scale=0.2), Symmetry.from_axes(AXES, shapes=SHAPES), x, y


def test_a_units_kl_is_that_of_all_its_values(problem):
    guide, symmetry, x, y = problem
    width = effective_width(classifier, guide, symmetry, x, y, threshold=3.0)
    q = read_guide(guide)
    parts = {k: kl_divergence(Normal(*q.marginal(k)), Normal(0.0, s)) for k, s in (("w1", 1), ("b1", 1), ("w2", 0.7))}
    expected = parts["w1"].sum(0) + parts["b1"] + parts["w2"].sum(1)
    assert torch.allclose(width.kl["hidden"], expected)
    assert width.active == {"hidden": int((expected > 3).sum())}
    table = width.summary()
    assert table.loc["hidden", "units"] == 6
    assert "KL > 3 nats" in str(width)


def test_units_at_the_prior_are_not_alive(problem):
    guide, symmetry, x, y = problem
    q = read_guide(guide)
    prior = {"w1": 1.0, "b1": 1.0, "w2": 0.7}
    moments = {}
    for name in q.sites:
        loc, scale = (t.clone() for t in q.marginal(name))
        index = (slice(None), slice(0, 4)) if name == "w1" else (slice(0, 4),)
        loc[index], scale[index] = 0.0, prior[name]
        moments[name] = loc, scale
    width = effective_width(classifier, q.with_moments(moments), symmetry, x, y, threshold=1.0)
    assert width.active == {"hidden": 2}
    assert width.kl["hidden"][:4].abs().max() < 1e-10


def test_a_value_on_two_axes_counts_once():
    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 3]).to_event(2))
        pyro.sample("y", dist.Normal(w.sum(), 1.0), obs=y)

    y = torch.tensor(1.0)
    guide = make_guide(model, y)
    symmetry = Symmetry.from_axes({"w": ("state", "state")}, shapes={"w": (3, 3)})
    width = effective_width(model, guide, symmetry, y)
    kl = kl_divergence(Normal(*read_guide(guide).marginal("w")), Normal(0.0, 1.0))
    assert torch.allclose(width.kl["state"], kl.sum(0) + kl.sum(1) - kl.diagonal())


def test_sites_without_a_closed_form_are_named():
    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0).expand([3]).to_event(1))
        pyro.sample("y", dist.Normal((w * s).sum(), 1.0), obs=y)

    y = torch.tensor(1.0)
    symmetry = Symmetry.from_axes({"w": ("unit",), "s": ("unit",)}, shapes={"w": (3,), "s": (3,)})
    width = effective_width(model, make_guide(model, y), symmetry, y)
    assert width.skipped == ("s",)
    assert "without sites s" in str(width)


def test_other_families_are_refused(problem):
    _, symmetry, x, y = problem
    with pyro.get_param_store().scope():
        guide = AutoDelta(classifier)
        guide(x, y)
    with pytest.raises(PyroAlignError, match="needs a mean-field Gaussian"):
        effective_width(classifier, guide, symmetry, x, y)


def test_a_subsampled_site_is_left_out():
    """The model shows the priors of the rows at hand, the guide has them all."""

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0).expand([9]).to_event(1))
        with pyro.plate("rows", 12, subsample_size=3) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(9), torch.ones(9)).to_event(1))
            pyro.sample("x", dist.Normal(loc + z, 1.0).to_event(1), obs=x[rows])

    x = torch.randn(12, 9)
    guide = AutoNormal(model, create_plates=lambda x: pyro.plate("rows", 12, subsample_size=3))
    guide(x)
    assert list(shares_off_prior(read_guide(guide), model, (x,), {})) == ["loc"]
