"""What a run of a model says: per datum, discrete latents summed out, masked data left out, subsamples in full."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from barrier_problems import linear, linear_data, make_path
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal, init_to_sample
from pyro.infer.reparam import LocScaleReparam

from pyro_align import align, displacement, evaluate_barrier, find_symmetry, learn_path
from pyro_align.errors import BarrierError, DiagnosticWarning, TraceError
from pyro_align.model.density import Density
from pyro_align.paths.learned import Batches, negative_elbo

Y = torch.tensor([-2.0, -1.5, 0.3, 1.9, 2.2])


def marginal_mixture(y=Y):
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
    logits = torch.stack([weight, -weight])
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, 1.0)), obs=y)


def mixture(y=Y):
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(logits=torch.stack([weight, -weight])))
        pyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)


def sequential_mixture(y=Y):
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", len(y)):
        z = pyro.sample(f"z{i}", dist.Categorical(logits=torch.stack([weight, -weight])))
        pyro.sample(f"y{i}", dist.Normal(loc[z], 1.0), obs=y[i])


def hidden(model):
    """The model without its discrete sites, as a guide needs it."""
    return poutine.block(model, hide_fn=lambda site: site["name"].startswith("z"))


def all_draws(barrier):
    return {loss: barrier[loss].draws for loss in barrier.losses}


@pytest.mark.parametrize("model", [mixture, sequential_mixture, config_enumerate(mixture)])
def test_a_mixture_is_its_marginal(model):
    path = make_path(marginal_mixture)
    right, found = (evaluate_barrier(m, path, taus=3, num_samples=6) for m in (marginal_mixture, model))
    assert found.vectorized
    assert found.num_data == {"data": 5}
    for loss, draws in all_draws(right).items():
        np.testing.assert_allclose(found[loss].draws, draws, rtol=1e-12, err_msg=loss)


def test_a_point_of_a_mixture_is_that_of_its_marginal():
    path = make_path(marginal_mixture)
    right, found = (
        evaluate_barrier(m, path, taus=3, num_samples=30).at(0.5, predictive=True) for m in (marginal_mixture, mixture)
    )
    for group, name in (("log_likelihood", "y"), ("sample_stats", "lp"), ("observed_data", "y")):
        np.testing.assert_allclose(found[group][name].values, right[group][name].values, rtol=1e-10)
    drawn = [p.posterior_predictive["y"].values for p in (found, right)]
    assert drawn[0].shape == drawn[1].shape == (1, 30, 5)
    assert abs(drawn[0].mean() - drawn[1].mean()) < 5 * drawn[1].std() / math.sqrt(30)


def test_the_elbo_is_that_of_pyros_enumeration():
    path = make_path(hidden(mixture))
    barrier = evaluate_barrier(mixture, path, taus=3, num_samples=300, losses=["negative_elbo"])
    theirs = [TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(mixture), path(0.5)) / 5 for _ in range(300)]
    error = math.hypot(barrier["negative_elbo"].se[1], np.std(theirs) / math.sqrt(300))
    assert abs(barrier["negative_elbo"].value[1] - np.mean(theirs)) < 4.5 * error


def chain(y, plates=True):
    """Three sequences of four steps; with plates each is a datum."""
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    stay = pyro.sample("stay", dist.Normal(0.0, 1.0))
    move = torch.stack([torch.stack([stay, -stay]), torch.stack([-stay, stay])])
    with pyro.plate("sequences", 3):
        z = 0
        for t in pyro.markov(range(4)):
            z = pyro.sample(f"z{t}", dist.Categorical(logits=move[z]))
            pyro.sample(f"y{t}", dist.Normal(loc[z], 1.0), obs=y[:, t])


def test_a_hidden_markov_model_has_a_datum_a_sequence():
    y = torch.randn(3, 4)
    path = make_path(hidden(chain), y)
    barrier = evaluate_barrier(chain, path, y, taus=3, num_samples=3)
    assert barrier.num_data == {"data": 3}
    values = path.posterior(0.0).push(barrier.problem.noise)
    expected = torch.zeros(3, 3)
    for s in range(3):
        stay, loc = values["stay"][s], values["loc"][s]
        move = torch.log_softmax(torch.stack([torch.stack([stay, -stay]), torch.stack([-stay, stay])]), -1)
        alpha = move[0].expand(3, 2) + dist.Normal(loc, 1.0).log_prob(y[:, :1])
        for t in range(1, 4):
            alpha = (alpha[:, :, None] + move).logsumexp(1) + dist.Normal(loc, 1.0).log_prob(y[:, t : t + 1])
        expected[s] = alpha.logsumexp(1)
    np.testing.assert_allclose(barrier["expected_nll"].draws[0], -expected.mean(1), rtol=1e-12)
    point = barrier.at(0.0)
    assert point.log_likelihood["joint"].dims == ("chain", "draw", "sequences")
    np.testing.assert_allclose(point.log_likelihood["joint"].values[0], expected, rtol=1e-12)


def test_a_latent_that_depends_on_a_discrete_one():
    """p(y | x) = p(x, y) / p(x): the datum's share of the joint is not that with the discrete site at its prior."""

    def model(y=Y):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
            x = pyro.sample("x", dist.Normal(torch.tensor([-2.0, 2.0])[z], 1.0))
            pyro.sample("y", dist.Normal(x + z, 0.5), obs=y)

    path = make_path(hidden(model))
    barrier = evaluate_barrier(model, path, taus=3, num_samples=4)
    x = path.posterior(0.0).push(barrier.problem.noise)["x"]
    prior = torch.stack([dist.Normal(m, 1.0).log_prob(x) + math.log(w) for m, w in ((-2.0, 0.3), (2.0, 0.7))])
    joint = prior + torch.stack([dist.Normal(x + k, 0.5).log_prob(Y) for k in (0, 1)])
    expected = joint.logsumexp(0) - prior.logsumexp(0)
    np.testing.assert_allclose(barrier["expected_nll"].draws[0], -expected.mean(1), rtol=1e-12)
    np.testing.assert_allclose(barrier.log_prior[0], prior.logsumexp(0).sum(1), rtol=1e-12)


def test_a_discrete_site_outside_the_plate_makes_all_data_one():
    def model(y=Y):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)

    path = make_path(hidden(model))
    barrier = evaluate_barrier(model, path, taus=3, num_samples=4)
    assert barrier.num_data == {"data": 1}
    loc = path.posterior(0.0).push(barrier.problem.noise)["loc"]
    each = dist.Normal(loc[:, :, None], 1.0).log_prob(Y).sum(-1) + torch.tensor([0.3, 0.7]).log()
    np.testing.assert_allclose(barrier["expected_nll"].draws[0], -each.logsumexp(1), rtol=1e-12)


def test_error_rates_average_over_discrete_sites():
    x, y = linear_data(n=20)
    y = (y > 0).double()

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample("y", dist.Bernoulli(logits=(x * w[z]).sum(-1)), obs=y)

    path = make_path(hidden(model), x, y)
    barrier = evaluate_barrier(model, path, x, y, taus=3, num_samples=6)
    w = path.posterior(1.0).push(barrier.problem.noise)["w"]
    probability = (torch.sigmoid(w @ x.T) * torch.tensor([0.4, 0.6])[:, None]).sum(1).mean(0)
    assert barrier["error_rate"].value[-1] == pytest.approx(float(((probability > 0.5) != (y > 0)).double().mean()))


def test_sites_scaled_differently_cannot_be_summed_over():
    def model(y=Y):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
            with poutine.scale(scale=0.5):
                pyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)

    with pytest.raises(BarrierError, match=r"\['z', 'y'\] share a discrete latent"):
        evaluate_barrier(model, make_path(hidden(model)), taus=3)


# -- one datum, no datum -----------------------------------------------------------------------------------------------


def event(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    pyro.sample("y", dist.Normal(x @ w, 0.7).to_event(1), obs=y)


def full_covariance(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    pyro.sample("y", dist.MultivariateNormal(x @ w, 0.49 * torch.eye(len(x))), obs=y)


def squared_error(prediction, observed):
    return (prediction - observed).square().mean(-1)


@pytest.mark.parametrize("model", [event, full_covariance])
def test_a_likelihood_that_is_one_event_is_one_datum(model):
    x, y = linear_data()
    path = make_path(model, x, y)
    whole = evaluate_barrier(model, path, x, y, taus=3, num_samples=5, losses=["expected_nll", "kl", "predictive_nll"])
    w = path.posterior(0.0).push(whole.problem.noise)["w"]
    log_likelihood = dist.Normal(w @ x.T, 0.7).log_prob(y).sum(1)
    np.testing.assert_allclose(whole["expected_nll"].draws[0], -log_likelihood, rtol=1e-10)
    assert whole.num_data == {"data": 1}
    assert whole.at(0.5).log_likelihood["y"].shape == (1, 5, 1)
    error = evaluate_barrier(model, path, x, y, taus=3, num_samples=5, losses={"mse": squared_error})
    assert error["mse"].value[0] == pytest.approx(float(((w @ x.T).mean(0) - y).square().mean()))


@pytest.mark.parametrize("nested", [False, True])
def test_an_events_own_axes_are_data_where_asked_for(nested):
    x, y = linear_data()

    def by_entry(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        fn = dist.Normal((x @ w).unsqueeze(-1), 0.7).to_event(1).to_event(1) if nested else dist.Normal(x @ w, 0.7)
        obs = y.unsqueeze(-1) if nested else y
        pyro.sample("y", fn if nested else fn.to_event(1), obs=obs, infer={"data_dims": 1})

    def by_plate(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 0.7), obs=y)

    path = make_path(by_plate, x, y)
    right, found = (evaluate_barrier(m, path, x, y, taus=3, num_samples=5) for m in (by_plate, by_entry))
    assert found.num_data == {"data": len(x)}
    for loss, draws in all_draws(right).items():
        np.testing.assert_allclose(found[loss].draws, draws, rtol=1e-12, err_msg=loss)
    asked = poutine.infer_config(event, lambda site: {"data_dims": 2} if site["name"] == "y" else {})
    with pytest.raises(BarrierError, match="site 'y': data_dims is 2, and it has 1 event dims"):
        evaluate_barrier(asked, path, x, y, taus=3)


def test_a_factor_is_likelihood_where_the_model_says_so():
    x, y = linear_data()

    def by_factor(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        pyro.factor("fit", dist.Normal(x @ w, 0.7).log_prob(y).sum())

    path = make_path(event, x, y)
    said = poutine.infer_config(by_factor, lambda site: {"likelihood": True} if site["name"] == "fit" else {})
    right, found = (evaluate_barrier(m, path, x, y, taus=3, num_samples=5, temperature=0.1) for m in (event, said))
    for loss, draws in all_draws(right).items():
        np.testing.assert_allclose(found[loss].draws, draws, rtol=1e-12, err_msg=loss)
    with pytest.raises(BarrierError, match=r"observes no data .*its factors \['fit'\] count as prior.*infer_config"):
        evaluate_barrier(by_factor, path, x, y, taus=3)


def test_what_a_reparameterization_leaves_behind_is_no_datum():
    def hierarchy(x, y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("groups", 4):
            group = pyro.sample("group", dist.Normal(loc, 0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(group.sum(), 0.7), obs=y)

    x, y = linear_data()
    model = poutine.reparam(hierarchy, {"group": LocScaleReparam(centered=0.0)})
    path = make_path(model, x, y)
    barrier = evaluate_barrier(model, path, x, y, taus=3, num_samples=4)
    assert barrier.num_data == {"data": len(y)}
    assert barrier.at(0.5).log_likelihood["y"].shape == (1, 4, len(y))


def masked(x, y, mask, inside=False):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        fn = dist.Bernoulli(logits=x @ w)
        with poutine.mask(mask=True if inside else mask):
            pyro.sample("y", fn.mask(mask) if inside else fn, obs=y)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("hide", [lambda y: y, lambda y: 1 - y, lambda y: torch.full_like(y, -1)])
def test_masked_data_are_no_data(hide, inside):
    x, y = linear_data(n=30)
    y, seen = (y > 0).double(), torch.arange(30) % 3 > 0
    path = make_path(masked, x, y, seen)
    short = evaluate_barrier(masked, path, x[seen], y[seen], seen[seen], taus=3, num_samples=6)
    long = evaluate_barrier(masked, path, x, torch.where(seen, y, hide(y)), seen, inside, taus=3, num_samples=6)
    assert long.num_data == short.num_data == {"data": 20}
    for loss, draws in all_draws(short).items():
        np.testing.assert_allclose(long[loss].draws, draws, rtol=1e-12, err_msg=loss)
    ours, theirs = long.at(0.5), short.at(0.5)
    for group, name in (("log_likelihood", "y"), ("sample_stats", "lp"), ("observed_data", "y")):
        np.testing.assert_allclose(ours[group][name].values, theirs[group][name].values, rtol=1e-12)
    batches = [(x[lo : lo + 10], y[lo : lo + 10], seen[lo : lo + 10]) for lo in (0, 10, 20)]
    parts = evaluate_barrier(masked, path, evaluation={"data": batches}, taus=3, num_samples=6)
    assert parts.num_data == {"data": 20}
    np.testing.assert_allclose(parts["negative_elbo"].draws, short["negative_elbo"].draws, rtol=1e-12)


def test_all_data_masked():
    x, y = linear_data()
    nothing = torch.zeros(len(x), dtype=torch.bool)
    path = make_path(masked, x, (y > 0).double(), nothing)
    with pytest.raises(BarrierError, match="every observation of \\['y'\\] is masked"):
        evaluate_barrier(masked, path, x, (y > 0).double(), nothing, taus=3)


def test_observed_values_of_another_shape_are_refused():
    x, y = linear_data()
    path = make_path(linear, x, y)
    with pytest.raises(BarrierError, match=r"observed site 'y': expected values of shape \(12,\).*got \(12, 1\)"):
        evaluate_barrier(linear, path, x, y[:, None], taus=3)
    with pytest.raises(TraceError, match=r"got \(12, 1\)"):
        find_symmetry(linear, x, y[:, None])
    assert evaluate_barrier(linear, path, x, y[None], taus=3).num_data == {"data": 12}
    for one in (y[0], y[:1]):
        with pytest.warns(DiagnosticWarning, match=r"observed site 'y': one value stands for all 12 of shape \(12,\)"):
            barrier = evaluate_barrier(linear, path, x, one, taus=3, num_samples=8)
        whole = evaluate_barrier(linear, path, x, y[:1].expand(12), taus=3, num_samples=8)
        assert np.allclose(barrier["expected_nll"].draws, whole["expected_nll"].draws)


# -- subsampling -------------------------------------------------------------------------------------------------------


def subsampled(x, y, size=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x), subsample_size=size) as i:
        pyro.sample("y", dist.Normal(x[i] @ w, 0.7), obs=y[i])


def sequential(x, y, size=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    for i in pyro.plate("data", len(x), subsample_size=size):
        pyro.sample(f"y{i}", dist.Normal(x[i] @ w, 0.7), obs=y[i])


def two_plates(x, y, size=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    for name in ("first", "second"):
        with pyro.plate(name, len(x), subsample_size=size) as i:
            pyro.sample(f"y_{name}", dist.Normal(x[i] @ w, 0.7), obs=y[i])


@pytest.mark.parametrize("model", [subsampled, sequential, two_plates])
def test_subsamples_stand_for_all_data(model):
    x, y = linear_data(n=24)
    path = make_path(subsampled, x, y)
    part, whole = (evaluate_barrier(model, path, x, y, n, taus=3, num_samples=5) for n in (8, None))
    assert part.num_data == whole.num_data
    np.testing.assert_allclose(part["kl"].draws, whole["kl"].draws, rtol=1e-12)


@pytest.mark.parametrize("model", [subsampled, sequential, two_plates])
def test_the_log_joint_of_a_point_is_that_of_all_data(model):
    """Over all subsamples of one seed each, the log joints average to that of all data."""
    x, y = linear_data(n=6)
    x, y = x[:1].expand(6, 3), y[:1].expand(6)  # every subsample says the same
    path = make_path(subsampled, x, y)
    part, whole = (evaluate_barrier(model, path, x, y, n, taus=3, num_samples=4).at(0.5) for n in (2, None))
    np.testing.assert_allclose(part.sample_stats["lp"].values, whole.sample_stats["lp"].values, rtol=1e-12)


def local(x, y, size=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 4]).to_event(2))
    v = pyro.sample("v", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    with pyro.plate("data", len(x), subsample_size=size) as i:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(torch.tanh(x[i] @ w) @ v + z, 0.3), obs=y[i])


@pytest.fixture
def local_fits():
    x, y = linear_data(n=20)
    guides = []
    for seed in (0, 1):
        pyro.set_rng_seed(seed)
        with pyro.get_param_store().scope():
            guide = AutoNormal(local, init_loc_fn=init_to_sample, init_scale=0.05)
            svi = SVI(local, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
            for _ in range(5):
                svi.step(x, y, 4)
        guides.append(guide)
    return x, y, guides


def test_local_latents_with_the_arguments_of_the_fit(local_fits):
    x, y, guides = local_fits
    symmetry = find_symmetry(local, x, y, 4)
    assert symmetry.shapes["z"] == (20,)
    alignment = align(*guides, symmetry)
    assert alignment.distance == pytest.approx(align(*guides, find_symmetry(local, x, y)).distance)
    path = displacement(guides[0], alignment.guide)
    part, whole = (evaluate_barrier(local, path, x, y, n, taus=3, num_samples=200) for n in (4, None))
    assert part.num_data == whole.num_data == {"data": 20}
    with pytest.raises(TraceError, match=r"site 'z'.*takes its own subsample"):
        learn_path(local, guides[0], alignment.guide, x, y, batch_size=4, max_steps=2)
    learned = learn_path(local, guides[0], alignment.guide, x, y, 4, max_steps=2)
    assert learned(0.5) is not None


def test_the_elbo_of_a_subsample_of_local_latents_is_unbiased(local_fits):
    x, y, guides = local_fits
    path = displacement(*guides)
    whole = evaluate_barrier(local, path, x, y, taus=3, num_samples=100, losses=["negative_elbo", "kl"])
    parts = [
        evaluate_barrier(local, path, x, y, 10, taus=3, num_samples=50, seed=s, losses=["negative_elbo", "kl"])
        for s in range(30)
    ]
    for loss in ("negative_elbo", "kl"):
        values = np.array([p[loss].value[0] for p in parts])
        error = math.hypot(values.std() / math.sqrt(30), whole[loss].se[0])
        assert abs(values.mean() - whole[loss].value[0]) < 4.5 * error


def test_local_latents_of_a_batch_that_is_no_subsample_are_refused(local_fits):
    x, y, guides = local_fits
    with pytest.raises(TraceError, match=r"site 'z': the model samples shape \(5,\), the value given has \(20,\)"):
        learn_path(local, *guides, x, y, max_steps=2, batch_size=5)


def test_a_subsample_of_data_does_not_say_which_latents_it_is_of(local_fits):
    x, y, guides = local_fits

    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 4]).to_event(2))
        v = pyro.sample("v", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        with pyro.plate("data", 20, subsample=x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(torch.tanh(x @ w) @ v + z, 0.3), obs=y)

    with pytest.raises(BarrierError, match="without saying which; give the plate indices"):
        evaluate_barrier(model, displacement(*guides), x[:5], y[:5], taus=3)


def test_predictive_draws_of_batches_are_independent():
    x, y = linear_data(n=40)
    path = make_path(linear, x, y, scales=(1e-3, 1e-3))
    batches = [(x[lo : lo + 10], y[lo : lo + 10]) for lo in range(0, 40, 10)]
    point = evaluate_barrier(linear, path, evaluation={"data": batches}, taus=3, num_samples=200).at(
        0.5, predictive=True
    )
    noise = point.posterior_predictive["y"].values[0]
    noise = noise - noise.mean(0)
    same = np.corrcoef(noise[:, :10].mean(1), noise[:, 10:20].mean(1))[0, 1]
    assert abs(same) < 0.35
    assert noise.mean(1).std() == pytest.approx(0.7 / math.sqrt(40), rel=0.3)


N = 24


def by_hand(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)), poutine.scale(scale=N / len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.7), obs=y)


def batches_of(x, y, size):
    return [(x[lo : lo + size], y[lo : lo + size]) for lo in range(0, len(x), size)]


@pytest.mark.parametrize("size", [6, 9, 24])
def test_batches_that_the_model_scales_by_hand_count_once(size):
    x, y = linear_data(n=N)
    path = make_path(subsampled, x, y)
    whole = evaluate_barrier(subsampled, path, x, y, taus=3, num_samples=5)
    parts = evaluate_barrier(by_hand, path, evaluation={"data": batches_of(x, y, size)}, taus=3, num_samples=5)
    assert parts.num_data == {"data": N}
    for loss in whole.losses:
        np.testing.assert_allclose(parts[loss].draws, whole[loss].draws, rtol=1e-10, err_msg=loss)
    lp = [b.at(0.5).sample_stats["lp"].values for b in (parts, whole)]
    np.testing.assert_allclose(*lp, rtol=1e-10)


def test_a_likelihood_to_a_power_is_not_scaled_by_hand():
    def powered(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", len(x)), poutine.scale(scale=2.0):
            pyro.sample("y", dist.Normal(x @ w, 0.7), obs=y)

    x, y = linear_data(n=N)
    path = make_path(subsampled, x, y)
    whole = evaluate_barrier(powered, path, x, y, taus=3, num_samples=5)
    parts = evaluate_barrier(powered, path, evaluation={"data": batches_of(x, y, 12)}, taus=3, num_samples=5)
    np.testing.assert_allclose(parts["negative_elbo"].draws, whole["negative_elbo"].draws, rtol=1e-10)
    expected = 2 * whole["expected_nll"].draws + whole["kl"].draws
    np.testing.assert_allclose(whole["negative_elbo"].draws, expected, rtol=1e-10)


def in_a_plate(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", N, subsample=x):
        pyro.sample("y", dist.Normal(x @ w, 0.7), obs=y)


@pytest.mark.parametrize("model", [subsampled, by_hand, in_a_plate])
def test_a_batch_of_a_learned_path_counts_for_all_data(model):
    x, y = linear_data(n=N)
    x, y = x[:1].expand(N, 3).contiguous(), y[:1].expand(N).contiguous()  # every batch says the same
    path = make_path(subsampled, x, y)
    q = path.start if hasattr(path, "start") else path.posterior(0.0)
    moments = {"w": q.marginal("w")}
    losses = []
    for size in (None, 6):
        batches = Batches.of(model, (x, y), {}, size)
        generator = torch.Generator().manual_seed(0)
        losses.append(negative_elbo(Density(model, (x, y)), q, moments, 1.0, generator, batches))
    torch.testing.assert_close(losses[1], losses[0])


def test_plates_of_different_subsamples_are_scaled_each_by_its_own():
    def model(a, b, few=None):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("first", 20, subsample_size=few and 2) as i:
            pyro.sample("a", dist.Normal(m, 1.0), obs=a[i])
        with pyro.plate("second", 6, subsample_size=few and 3) as i:
            pyro.sample("b", dist.Normal(m, 1.0), obs=b[i])

    a, b = torch.full((20,), 0.5), torch.full((6,), -2.0)
    path = make_path(model, a, b)
    part, whole = (evaluate_barrier(model, path, a, b, few, taus=3, num_samples=5) for few in (True, None))
    for loss in ("kl", "negative_elbo"):
        np.testing.assert_allclose(part[loss].draws, whole[loss].draws, rtol=1e-10, err_msg=loss)


def test_paths_are_learned_on_enumerated_models():
    path = make_path(marginal_mixture)
    q = path.posterior(0.3)
    moments = {name: q.marginal(name) for name in q.sites}
    losses = []
    for model in (marginal_mixture, mixture):
        density, generator = Density(model), torch.Generator().manual_seed(0)
        losses.append(negative_elbo(density, q, moments, 0.7, generator, Batches.of(model, (), {}, None)))
    torch.testing.assert_close(*losses)
    assert learn_path(mixture, path(0.0), path(1.0), max_steps=2)(0.5) is not None
