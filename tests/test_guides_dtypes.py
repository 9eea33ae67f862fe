"""Dtypes are kept: float32 guides stay float32 under relabeling, displacement, drawing, matching and saving."""

import pyro
import pytest
import test_guides_laws as laws
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoHierarchicalNormalMessenger, AutoIAFNormal
from test_guides_laws import SYMMETRY, X, Y, model, scatter

from pyro_align import align, align_many
from pyro_align.guides import MeanFieldNormal, mean_field_guide, read_guide, wrap_guide
from pyro_align.io import load, save
from pyro_align.paths.geodesic import displacement
from pyro_align.symmetry.group import Symmetry


def tensors(value):
    """Site values, features and the like, as a flat list of tensors."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if hasattr(value, "values") else value
    return [tensor for part in parts for tensor in tensors(part)]


def floats(guide):
    return [t for t in guide.state_dict().values() if t.is_floating_point()]


@pytest.fixture
def float32(monkeypatch):
    torch.set_default_dtype(torch.float32)  # conftest restores it
    monkeypatch.setattr(laws, "X", X.float())
    monkeypatch.setattr(laws, "Y", Y.float())


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("name", [name for name in laws.GUIDES if name != "laplace_approximation"])
def test_every_family_keeps_its_dtype(name, tmp_path):
    a, b = laws.GUIDES[name](0), laws.GUIDES[name](1)
    q, other, p = read_guide(a), read_guide(b), SYMMETRY.random(1)
    assert q.dtype == torch.float32
    noise = q.noise(3)
    values, log_prob = q.permute(p).push_with_log_prob(noise)
    fixed, moving = q.coupled_features(other, p)
    alignment = align(a, b, SYMMETRY)
    middle = displacement(a, alignment.guide)
    found = [*tensors(noise), *tensors(values), log_prob, *tensors(q.features("w2")), *tensors(fixed), *tensors(moving)]
    found += [*floats(alignment.guide), *floats(middle(0.5)), *tensors(middle.posterior(0.5).push(noise))]
    assert {t.dtype for t in found} == {torch.float32}
    assert {t.device for t in found} == {q.device}
    save(tmp_path / "g.zip", alignment.guide)
    assert {t.dtype for t in floats(load(tmp_path / "g.zip", like=a))} == {torch.float32}


@pytest.mark.usefixtures("few_draws")
@pytest.mark.usefixtures("float32")
def test_barycenters_wrapped_and_hand_written_guides_keep_their_dtype():
    def by_hand(x, y=None):
        loc = pyro.param("loc", lambda: torch.randn(4, 2))
        pyro.sample("w1", pyro.distributions.Normal(loc, 0.1).to_event(2))

    by_hand(X)
    q = mean_field_guide(by_hand, X)
    assert isinstance(q, MeanFieldNormal)
    assert {t.dtype for t in floats(q.to_guide())} == {torch.float32}

    def flow(seed):
        pyro.set_rng_seed(seed)
        with pyro.get_param_store().scope():
            guide = AutoIAFNormal(model, hidden_dim=[40])
            guide(laws.X, laws.Y)
            return wrap_guide(guide, laws.X, laws.Y)

    a, b = flow(0), flow(1)
    alignment = align(a, b, SYMMETRY)
    middle = displacement(a, alignment.guide).posterior(0.5)
    found = [*tensors(middle.push(a.noise(4))), *tensors(a.features("w2")), *floats(alignment.guide)]
    assert {t.dtype for t in found} == {torch.float32}
    many = align_many([laws.GUIDES["AutoNormal"](seed) for seed in range(2)], SYMMETRY)
    assert {t.dtype for t in floats(many.center_guide)} == {torch.float32}


@pytest.mark.usefixtures("few_draws")
def test_a_hierarchical_messenger_is_wrapped():
    """Its prior is part of its parametrization; the wrapped guide draws, scores and trains as it does."""
    reduced = poutine.condition(model, {"mix": torch.full((4, 3), 1 / 3)})  # Pyro's own cannot take a simplex

    def fit(seed):
        pyro.set_rng_seed(seed)
        with pyro.get_param_store().scope() as scope:
            guide = AutoHierarchicalNormalMessenger(reduced, init_scale=0.01)
            guide(X, Y)
        scatter(guide, seed)
        with pyro.get_param_store().scope(scope):
            return guide, scope, wrap_guide(guide, X, Y)

    (guide, scope, q), (_, _, other) = fit(0), fit(1)
    symmetry = Symmetry({k: v for k, v in SYMMETRY.sites.items() if k != "mix"})
    p, noise = symmetry.random(2), q.noise(3)
    values, log_prob = q.push_with_log_prob(noise)
    moved, moved_log_prob = q.permute(p).push_with_log_prob(noise)
    expected = p.apply({k: values[k] for k in symmetry.sites}, batch_dims=1)
    assert all(torch.equal(moved[k], v) and not torch.equal(v, values[k]) for k, v in expected.items())
    torch.testing.assert_close(moved_log_prob, log_prob, rtol=1e-12, atol=0)
    alignment = align(q, other, symmetry)
    assert alignment.distance <= alignment.distance_before
    losses = []
    for candidate, state in ((guide, scope), (q.to_guide(), None), (q.permute(p).to_guide(), None)):
        with pyro.get_param_store().scope(state):
            pyro.set_rng_seed(5)
            losses.append(Trace_ELBO(num_particles=2).loss(reduced, candidate, X, Y))
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-9)
    SVI(reduced, q.permute(p).to_guide(), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(X, Y)
