"""One point of a path in ArviZ: every verb that a user would turn to, dims, files; on ArviZ 0.x and on what 1.x is."""

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from barrier_problems import linear, linear_data, make_guide, make_path

import pyro_align.reporting.arviz as report
from pyro_align.barrier import evaluate_barrier
from pyro_align.errors import BarrierError
from pyro_align.paths.geodesic import displacement

arviz = pytest.importorskip("arviz")
LEGACY = "InferenceData" in vars(arviz)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Estimated shape parameter"),
    pytest.mark.filterwarnings("ignore:For one or more samples"),
]
GROUPS = {"posterior", "log_likelihood", "sample_stats", "posterior_predictive", "observed_data", "constant_data"}


def regression(x, y=None):
    """Two outputs per case on a grid of plates, of a network with one hidden layer."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1], 3]).to_event(2))
    v = pyro.sample("v", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
    mean = torch.tanh(x @ w) @ v
    with pyro.plate("outputs", 2, dim=-1), pyro.plate("cases", len(x), dim=-2):
        pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


@pytest.fixture(scope="module")
def barrier():
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    x = torch.randn(12, 3)
    y = torch.sin(x[:, :2]) + 0.3 * torch.randn(12, 2)
    path = make_path(regression, x, y, scales=(0.05, 0.05))
    out = evaluate_barrier(regression, path, x, y, taus=3, num_samples=40)
    torch.set_default_dtype(dtype)
    return out


@pytest.fixture(scope="module")
def point(barrier):
    return barrier.at(0.5, predictive=True)


@pytest.fixture
def axes():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    yield
    matplotlib.pyplot.close("all")


# -- the object --------------------------------------------------------------------------------------------------------


def groups_of(tree):
    return set(tree.children) if isinstance(tree, xr.DataTree) else set(tree.groups())


def test_dims_are_the_plates(point):
    assert groups_of(point) == GROUPS
    data = ("cases", "outputs")
    assert point["log_likelihood"]["y"].dims == ("chain", "draw", *data)
    assert point["posterior_predictive"]["y"].dims == ("chain", "draw", *data)
    assert point["observed_data"]["y"].dims == data
    assert point["posterior"]["w"].dims == ("chain", "draw", "w_dim_0", "w_dim_1")
    stats = point["sample_stats"]
    assert {name: stats[name].dims for name in stats} == dict.fromkeys(("lp", "log_q", "log_prior"), ("chain", "draw"))
    for group in GROUPS:
        assert "tau" not in point[group].dims, group


def test_the_terms_add_up(barrier, point):
    stats = point["sample_stats"]
    likelihood = point["log_likelihood"]["y"].sum(("cases", "outputs"))
    assert np.allclose(stats["lp"], likelihood + stats["log_prior"])
    assert np.allclose(stats["log_prior"][0], barrier.log_prior[1])


def test_constants_say_where_and_against_what(barrier, point):
    constant = point["constant_data"]
    assert float(constant["tau"]) == 0.5
    for loss in barrier.losses:
        assert float(constant["chord"].sel(loss=loss)) == pytest.approx(barrier[loss].chord[1]), loss


def test_a_thinned_posterior(barrier, point):
    thin = barrier.at(0.5, thin=8)
    assert list(thin["posterior"]["draw"].values) == [0, 8, 16, 24, 32]
    assert np.array_equal(thin["posterior"]["w"], point["posterior"]["w"].isel(draw=slice(None, None, 8)))
    assert thin["log_likelihood"].sizes["draw"] == 40
    assert report.leave_one_out(thin)["elpd"] == report.leave_one_out(point)["elpd"]
    with pytest.raises(BarrierError, match="thin: expected an int of at least 1"):
        barrier.at(0.5, thin=0)


# -- ArviZ's verbs -----------------------------------------------------------------------------------------------------

# what pandas, Matplotlib and ArviZ find fault with in each other is their own
theirs = pytest.mark.filterwarnings("default")


def draw(verb, *args, **kwargs):
    """A plot of ArviZ: 1.x draws with any backend, 0.x with Matplotlib."""
    return getattr(arviz, verb)(*args, **kwargs, **({} if LEGACY else {"backend": "matplotlib"}))


@pytest.mark.parametrize("tau", [0.0, 0.25, 1.0])
def test_criteria_count_one_tau(barrier, tau):
    loo = arviz.loo(barrier.at(tau), pointwise=True)
    assert loo.n_data_points == 24
    assert loo.pareto_k.dims == ("cases", "outputs")
    assert report._pointwise(loo).sum() == pytest.approx(report._elpd(loo)[0])


@theirs
def test_comparisons(barrier, axes):
    loos = {f"tau {tau:g}": arviz.loo(barrier.at(tau), pointwise=True) for tau in (0.0, 0.5, 1.0)}
    table = arviz.compare(loos)
    assert set(table.index) == set(loos)
    assert list(table["rank"]) == [0, 1, 2]
    assert draw("plot_compare", table) is not None


@theirs
def test_pareto_shapes_and_calibration(point, axes):
    assert draw("plot_khat", arviz.loo(point, pointwise=True)) is not None
    assert draw("plot_loo_pit", *([point] if not LEGACY else []), **({"idata": point, "y": "y"} if LEGACY else {}))


@theirs
def test_summaries_and_forests(barrier, point, axes):
    table = arviz.summary(point, var_names=["w"], kind="stats")
    assert len(table) == 9
    assert float(table["mean"].iloc[0]) == pytest.approx(float(point["posterior"]["w"][..., 0, 0].mean()), abs=6e-3)
    ends = {"start": barrier.at(0.0), "end": barrier.at(1.0)}
    named = {"model_names": list(ends)} if LEGACY else {}
    assert draw("plot_forest", list(ends.values()) if LEGACY else ends, var_names=["v"], **named) is not None


def test_points_and_the_mixture_of_the_ends_are_ranked():
    """On a path that leaves the truth, each step is worse."""
    x, y = linear_data(n=30)
    ends = []
    for shift in (0.0, 1.0):
        guide = make_guide(linear, x, y, scale=0.05)
        with torch.no_grad():
            guide.locs.w.copy_(torch.ones(3) + shift)
        ends.append(guide)
    barrier = evaluate_barrier(linear, displacement(*ends), x, y, taus=3, num_samples=60)
    table = barrier.compare()
    assert list(table.index.drop("mixture of ends")) == ["tau=0", "tau=0.5", "tau=1"]
    assert list(table["rank"]) == [0, 1, 2, 3]
    assert table["elpd_diff"].iloc[0] == 0
    ends = barrier.loo([0.0, 1.0])
    assert table.loc["tau=1", "elpd"] == ends.loc[1.0, "elpd"], "nothing is rounded"
    assert table.loc["tau=1", "elpd_diff"] == pytest.approx(ends["elpd"][0.0] - ends["elpd"][1.0], rel=1e-12)
    assert table.loc["tau=1", "elpd_diff"] > 0
    assert table.loc["tau=1", "dse"] == pytest.approx(ends.loc[1.0, "dse"], rel=1e-12)
    assert list(table["elpd"]) == sorted(table["elpd"], reverse=True)
    mixture, best = table.loc["mixture of ends"], table.loc["tau=0"]
    assert table.loc["tau=1", "elpd"] < mixture["elpd"] < best["elpd"], "the worse half counts"
    if importlib.util.find_spec("arviz_stats") is not None:
        mixture = barrier.compare(correct=True).loc["mixture of ends"]
        assert mixture["elpd"] == pytest.approx(best["elpd"], abs=3), "weights move the draws to where the posterior is"
    assert set(barrier.compare([0.0, 1.0], mixture=False).index) == {"tau=0", "tau=1"}


# -- files -------------------------------------------------------------------------------------------------------------


def same(a, b):
    assert groups_of(a) == groups_of(b)
    for group in groups_of(a):
        for name in a[group].data_vars:
            assert a[group][name].dims == b[group][name].dims, (group, name)
            assert a[group][name].dtype == b[group][name].dtype, (group, name)
            assert np.array_equal(a[group][name], b[group][name]), (group, name)
        assert a[group].attrs["tau"] == b[group].attrs["tau"]


@pytest.mark.parametrize("kind", ["netcdf", "zarr"])
def test_round_trips(point, tmp_path, kind):
    if kind == "netcdf":
        point.to_netcdf(tmp_path / "point.nc")
        back = arviz.from_netcdf(tmp_path / "point.nc")
    else:
        pytest.importorskip("zarr")
        report.write_zarr(point, tmp_path / "point.zarr")
        back = report.read_zarr(tmp_path / "point.zarr")
    same(point, back)
    assert report.leave_one_out(back) == report.leave_one_out(point)


def test_a_barrier_in_zarr(barrier, tmp_path):
    pytest.importorskip("zarr")
    report.write_zarr(barrier.to_arviz(), tmp_path / "barrier.zarr")
    back = report.read_zarr(tmp_path / "barrier.zarr")
    assert np.array_equal(
        back["constant_data"]["value"].sel(evaluation="data", loss="negative_elbo"), barrier["negative_elbo"].value
    )


def test_points_are_streamed_and_go_on_where_they_stopped(barrier, tmp_path, monkeypatch):
    pytest.importorskip("zarr")
    made, at = [], type(barrier).at

    def counted(self, tau, **options):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(tau)
        return at(self, tau, **options)

    monkeypatch.setattr(type(barrier), "at", counted)
    with pytest.raises(KeyboardInterrupt):
        barrier.write_points(tmp_path / "points")
    assert sorted(p.name for p in (tmp_path / "points").iterdir()) == ["tau_0", "tau_0.5"], "nothing half written"
    made.pop()
    folders = barrier.write_points(tmp_path / "points")
    assert made == [0.0, 1.0], "no tau is evaluated twice"
    assert list(folders) == [0.0, 0.5, 1.0]
    for tau, folder in folders.items():
        tree = report.read_zarr(folder)
        assert "posterior" not in groups_of(tree)
        same(tree, at(barrier, tau, posterior=False))


def test_points_in_a_folder_that_cannot_be_written(barrier, tmp_path, monkeypatch):
    monkeypatch.setattr(type(barrier), "at", lambda *_, **__: pytest.fail("evaluated before the folder was tried"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        barrier.write_points(tmp_path / "file")


# -- ArviZ 1.x ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def modern(monkeypatch):
    """ArviZ 1.x is the namespace of these packages, and wants Python 3.12; they alone do with 3.11."""
    base, stats = pytest.importorskip("arviz_base"), pytest.importorskip("arviz_stats")
    monkeypatch.setitem(sys.modules, "arviz", SimpleNamespace(**{**vars(base), **vars(stats)}))
    return stats


def test_a_tree_for_the_modern_arviz(barrier, modern, tmp_path):
    tree = barrier.at(0.5, predictive=True)
    assert isinstance(tree, xr.DataTree)
    assert isinstance(barrier.to_arviz(), xr.DataTree)
    assert groups_of(tree) == GROUPS
    assert modern.loo(tree).n_data_points == 24
    assert len(modern.summary(tree, var_names=["w"])) == 9
    tree.to_netcdf(tmp_path / "point.nc")
    with xr.open_datatree(tmp_path / "point.nc") as back:
        same(tree, back.load())


def test_guides_draws_are_judged_as_such(barrier, modern):
    tree = barrier.at(0.5)
    log_p, log_q = (tree["sample_stats"][name].values.ravel() for name in ("lp", "log_q"))
    theirs = modern.loo_approximate_posterior(tree, log_p=log_p, log_q=log_q)
    ours = report.leave_one_out(tree, correct=True)
    assert ours["corrected"]
    assert ours["elpd"] == pytest.approx(float(theirs.elpd))
    assert report.leave_one_out(tree)["elpd"] == pytest.approx(float(modern.loo(tree, reff=1.0).elpd))
    table = barrier.compare(mixture=False, correct=True)
    assert set(table.index) == {"tau=0", "tau=0.5", "tau=1"}
    assert list(table["elpd"]) == sorted(table["elpd"], reverse=True)


def test_a_correction_without_its_package_is_refused(barrier, point, monkeypatch):
    without = {name: value for name, value in vars(arviz).items() if name != "loo_approximate_posterior"}
    monkeypatch.setitem(sys.modules, "arviz", SimpleNamespace(**without))
    monkeypatch.setitem(sys.modules, "arviz_stats", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro_align\[loo\]'"):
        report.leave_one_out(point, correct=True)
    with pytest.raises(ImportError, match="needs arviz-stats"):
        barrier.compare(correct=True)


def test_the_correction_comes_with_its_package(barrier, point):
    """The correction for guides is there where `arviz-stats` is; other values stay what they are."""
    pytest.importorskip("arviz_stats")
    assert report.leave_one_out(point, correct=True)["corrected"]
    assert report.leave_one_out(point)["elpd"] == report._elpd(arviz.loo(point, reff=1.0))[0]
    table = barrier.compare(correct=True)
    assert "mixture of ends" in table.index
    assert list(table["elpd_diff"]) == sorted(table["elpd_diff"])


@pytest.mark.parametrize("generation", ["installed", "modern"])
def test_the_pareto_shape_judges_the_guide(request, generation):
    """Weights with a tail of known shape, and a guide that is narrower than its posterior."""
    if generation == "modern":
        request.getfixturevalue("modern")
    rng = np.random.default_rng(0)
    for shape in (0.2, 0.9):
        tail = shape * rng.exponential(size=(1, 4000))
        stats = xr.Dataset({name: (("chain", "draw"), v) for name, v in (("lp", tail), ("log_q", 0 * tail))})
        assert report.guide_shape({"sample_stats": stats}) == pytest.approx(shape, abs=0.2)
    for spread in (20, 1000):  # as far from the posterior as a mean-field guide of a network
        far = spread * rng.normal(size=(1, 200)).astype("float32")  # weights that float32 cannot hold
        stats = xr.Dataset({name: (("chain", "draw"), v) for name, v in (("lp", far), ("log_q", 0 * far))})
        assert report.guide_shape({"sample_stats": stats}) > 2
