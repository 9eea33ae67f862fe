"""Draws in Zarr stores: read in slices, relabeled, written in slices, never all in memory."""

import gc
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from draws_problems import MIXTURE, simulate

from pyro_align import align_draws
from pyro_align.draws import sources, store, units
from pyro_align.draws.sources import Source
from pyro_align.model.many import peak_bytes
from pyro_align.reporting.arviz import assemble
from pyro_align.symmetry import SymmetrySpec

zarr = pytest.importorskip("zarr")
pytestmark = pytest.mark.filterwarnings("ignore:The data type")  # Zarr 3 on texts: no specification yet


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    """Every file is read and written in several slices, none of which ends with another's chunk."""
    for module, name, size in ((units, "_NUMBERS", 100), (sources, "_SLICE", 70), (store, "_SLICE", 410)):
        monkeypatch.setattr(module, name, size)


@pytest.fixture
def data():
    return simulate([-6.0, 0.0, 6.0], 0.3, chains=2, draws=47, n=5)


def groups(data):
    """An ArviZ object's groups, with names, texts, flags, and a prior of another length."""
    lead, rng = {"chain": [3, 4], "draw": np.arange(100, 147)}, np.random.default_rng(0)
    posterior = {k: (("chain", "draw", "component"), v.numpy()) for k, v in data.draws.items()}
    posterior["fixed"] = (("component",), np.arange(3.0))
    normal = (("chain", "draw", "n"), rng.normal(size=(2, 47, 5)))
    return {
        "posterior": xr.Dataset(posterior, {**lead, "component": ["a", "b", "c"]}, {"made by": "a test"}),
        "posterior_predictive": xr.Dataset({"y": normal}, {**lead, "n": list("uvwxy")}),
        "log_likelihood": xr.Dataset({"y": normal}, lead),
        "sample_stats": xr.Dataset({"diverging": (("chain", "draw"), rng.random((2, 47)) < 0.1)}, lead),
        "prior": xr.Dataset({"loc": (("chain", "draw"), rng.normal(size=(1, 9)))}, {"chain": [0], "draw": range(9)}),
        "observed_data": xr.Dataset({"y": ("n", data.data.numpy())}),
    }


def tree_of(groups):
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs={"run": 7}), **{f"/{k}": v for k, v in groups.items()}})


@pytest.fixture
def stored(data, tmp_path):
    path = tmp_path / "run.zarr"
    tree_of(groups(data)).to_zarr(path, mode="w", consolidated=False)
    return path


def opened(path, **options):
    return xr.open_datatree(path, engine="zarr", **options)


@pytest.mark.parametrize("method", ["pivot", "barycenter"])
def test_from_store_to_store_as_in_memory(method, data, stored, tmp_path):
    aligned = align_draws(stored, MIXTURE, method=method)
    aligned.to_zarr(tmp_path / "aligned.zarr")
    assert "draws" not in vars(aligned), "all draws were in memory"
    expected = align_draws(tree_of(groups(data)), MIXTURE, method=method).to_arviz()
    found = opened(tmp_path / "aligned.zarr")
    assert found.attrs == {"run": 7}
    assert set(found.children) == set(groups(data))
    for name in groups(data):
        xr.testing.assert_identical(found[name].to_dataset().load(), expected[name].to_dataset())
    again = opened(stored, consolidated=False)
    for name, dataset in groups(data).items():
        xr.testing.assert_identical(again[name].to_dataset().load(), dataset)
    assert float(found["posterior"]["loc"].std(("chain", "draw")).max()) < 0.5
    twice = align_draws(tmp_path / "aligned.zarr", MIXTURE, method=method, reference=aligned.reference_draw or (0, 0))
    assert not twice.relabeled.any()


def test_the_report_reads_site_by_site(stored, data):
    aligned = align_draws(str(stored), MIXTURE)
    frame = aligned.report()
    expected = align_draws(tree_of(groups(data)), MIXTURE).report()
    assert frame.loc[expected.index].equals(expected)
    assert "draws" not in vars(aligned)


def test_allocations_are_read_in_slices(data, tmp_path):
    p = data.probabilities()
    on_disk = zarr.open_array(tmp_path / "p.zarr", mode="w", shape=p.shape, chunks=(1, 10, 5, 3), dtype="f8")
    on_disk[:] = p.numpy()
    for method in ("stephens", "ecr_iterative_2"):
        one, two = (align_draws(data.draws, MIXTURE, method=method, allocations=a) for a in (p, on_disk))
        assert torch.equal(one.permutations["k"], two.permutations["k"])
    bad = p.clone()
    bad[1, 40] = 0.7
    with pytest.raises(ValueError, match="add up to one"):
        align_draws(data.draws, MIXTURE, method="stephens", allocations=bad)


def test_computed_allocations_are_the_same_whether_kept_or_not(data, monkeypatch):
    from draws_problems import marginal_mixture

    from pyro_align.draws import allocations

    options = {"method": "stephens", "model": marginal_mixture, "args": (data.data,)}
    kept = align_draws(data.draws, MIXTURE, **options)
    monkeypatch.setattr(allocations, "_KEEP", 0)
    assert torch.equal(kept.permutations["k"], align_draws(data.draws, MIXTURE, **options).permutations["k"])


def make_array(group, name, dims=None, **options):
    """An array of float64, in the words of either version of Zarr; without dims it is nothing that xarray reads."""
    if hasattr(zarr, "create_array"):
        return group.create_array(name, dtype="f8", dimension_names=dims, **options)
    array = group.create_dataset(name, dtype="f8", **options)
    if dims is not None:
        array.attrs["_ARRAY_DIMENSIONS"] = list(dims)
    return array


@pytest.mark.parametrize("kind", ["installed ArviZ", "dataset", "lazy tree", "netCDF file", "plain arrays", "tensors"])
def test_whatever_is_given_can_be_written(kind, data, stored, tmp_path):
    whole = groups(data)
    plain = zarr.open_group(tmp_path / "plain.zarr", mode="w")
    for name, value in data.draws.items():
        make_array(plain, name, shape=value.shape, chunks=(1, 20, 3))[:] = value.numpy()
    tree_of(whole).to_netcdf(tmp_path / "run.nc", engine="h5netcdf")
    given = {
        "installed ArviZ": lambda: assemble(whole),
        "dataset": lambda: whole["posterior"],
        "lazy tree": lambda: opened(stored, consolidated=False),
        "netCDF file": lambda: tmp_path / "run.nc",
        "plain arrays": lambda: dict(plain.arrays()),
        "tensors": lambda: data.draws,
    }[kind]()
    aligned = align_draws(given, MIXTURE, reference=(0, 0))
    aligned.to_zarr(tmp_path / "aligned.zarr")
    found = opened(tmp_path / "aligned.zarr")
    posterior = found if kind == "dataset" else found["posterior"]
    expected = align_draws(data.draws, MIXTURE, reference=(0, 0))
    for name in data.draws:
        np.testing.assert_array_equal(posterior[name].values, expected.draws[name].numpy())
    if kind in ("plain arrays", "tensors"):
        np.testing.assert_array_equal(found["sample_stats"]["relabeled"].values, aligned.relabeled)
        np.testing.assert_array_equal(posterior["draw"], np.arange(47))
    elif kind != "dataset":
        assert set(found.children) == set(whole)
    if kind == "netCDF file":
        aligned.source.original.close()


def test_what_cannot_be_read_or_written(data, stored, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        align_draws(tmp_path / "nowhere.zarr", MIXTURE)
    xr.Dataset({"loc": ("n", np.zeros(3))}).to_zarr(tmp_path / "other.zarr", consolidated=False)
    with pytest.raises(ValueError, match="no group 'posterior'"):
        align_draws(tmp_path / "other.zarr", MIXTURE)
    make_array(zarr.open_group(tmp_path / "plain.zarr", mode="w"), "loc", shape=(2, 5, 3))
    with pytest.raises(ValueError, match="do not name their dims"):
        align_draws(tmp_path / "plain.zarr", MIXTURE)
    aligned = align_draws(stored, MIXTURE)
    with pytest.raises(FileExistsError, match=r"run.zarr"):
        aligned.to_zarr(stored)

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(store, "relabeled_part", fail)
    with pytest.raises(OSError, match="disk full"):
        aligned.to_zarr(tmp_path / "cut_short.zarr")
    assert not list(tmp_path.glob("cut_short*")), "a store of fewer draws is left"


# -- memory ------------------------------------------------------------------------------------------------------------

HIDDEN, INPUTS, NUMEL = 16, 126, 16 * 128
NETWORK = SymmetrySpec({"w1": ("h", None), "b1": ("h",), "w2": ("h",)})


def write_network(path, chains, draws):
    """A store of ``8 * NUMEL * chains * draws`` bytes, never all in memory; labels switch at every draw."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (HIDDEN, INPUTS), "b1": (HIDDEN,), "w2": (HIDDEN,)}
    point = {k: rng.normal(size=s) for k, s in shapes.items()}
    root = zarr.open_group(path, mode="w")
    group = root.create_group("posterior")
    for name, shape in shapes.items():
        dims = ("chain", "draw", "unit", "input")[: 2 + len(shape)]
        array = make_array(group, name, dims, shape=(chains, draws, *shape), chunks=(1, 25, *shape))
        orders = np.random.default_rng(1)  # alike for all sites
        for c in range(chains):
            for lo in range(0, draws, 25):
                order = orders.random((25, HIDDEN)).argsort(-1)
                array[c, lo : lo + 25] = point[name][order] + 0.1 * rng.normal(size=(25, *shape))


def peak(run) -> int:
    """The most bytes that torch and Python (hence NumPy) held at a time while running, each at its own peak."""
    gc.collect()
    gc.freeze()  # what was there before, so that collecting the run's own takes no time
    tracemalloc.start()
    try:
        held = peak_bytes(run)
        return held + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.unfreeze()


def relabel(given, out):
    aligned = align_draws(given, NETWORK, reference=(0, 0))
    aligned.to_zarr(out)
    return aligned


def collect_when(monkeypatch, owner, name):
    """Collects garbage before each call: Zarr's futures are cycles, whose buffers last until Python gets to them."""
    call = getattr(owner, name)

    def collecting(*args, **kwargs):
        gc.collect()
        return call(*args, **kwargs)

    monkeypatch.setattr(owner, name, collecting)


def test_memory_does_not_grow_with_the_draws(tmp_path, monkeypatch):
    for module, name in ((units, "_NUMBERS"), (sources, "_SLICE"), (store, "_SLICE")):
        monkeypatch.setattr(module, name, 25 * NUMEL)
    collect_when(monkeypatch, Source, "read")
    collect_when(monkeypatch, store, "_append")
    write_network(tmp_path / "first.zarr", 1, 50)
    peak_bytes(lambda: relabel(tmp_path / "first.zarr", tmp_path / "first_out.zarr"))  # imports take memory once
    peaks = []
    for draws in (75, 400):
        write_network(tmp_path / f"{draws}.zarr", 1, draws)
        peaks.append(peak(lambda n=draws: relabel(tmp_path / f"{n}.zarr", tmp_path / f"{n}_out.zarr")))
    whole = 8 * NUMEL * 400
    assert peaks[1] - peaks[0] < 0.25 * whole, peaks
    assert peaks[1] < 0.6 * whole, peaks
    with opened(tmp_path / "400.zarr", consolidated=False) as lazy:
        loaded = peak(lambda: relabel(lazy.load(), tmp_path / "again.zarr"))
    assert loaded > whole + 0.5 * peaks[1], "what is all in memory is counted"


SCRIPT = """
import resource, sys
sys.path[:0] = {paths!r}
from test_draws_zarr import relabel, write_network
import torch
torch.set_num_threads(1)
write_network("small.zarr", 1, 200)
relabel("small.zarr", "small_out.zarr")
write_network("large.zarr", 4, 6_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
relabel("large.zarr", "large_out.zarr")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_a_store_of_400_megabytes_takes_half_of_it(tmp_path):
    """With slices as they are: 8 MB of numbers, held several times over while they are compared."""
    here = Path(__file__).resolve().parent
    script = SCRIPT.format(paths=[str(here), str(here.parent)])
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    grown = int(ran.stdout.split()[-1]) * 1024
    assert grown < 200e6
