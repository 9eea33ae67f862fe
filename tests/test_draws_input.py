"""What align_draws reads and gives back, and what it refuses."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from draws_problems import MIXTURE, simulate
from pyro.infer import MCMC, NUTS

from pyro_align import align_draws
from pyro_align.errors import SymmetryError
from pyro_align.reporting.arviz import assemble
from pyro_align.symmetry import SymmetrySpec


@pytest.fixture
def data():
    return simulate([-6.0, 0.0, 6.0], 0.3, chains=2, draws=30, n=12)


def dataset(draws, dims=("component",)):
    variables = {k: (("chain", "draw", *dims), np.asarray(v)) for k, v in draws.items()}
    coords = {"chain": [3, 4], "draw": np.arange(100, 130), "component": ["a", "b", "c"]}
    return xr.Dataset(variables, coords, {"made by": "a test"})


def groups(data):
    lead = {"chain": [3, 4], "draw": np.arange(100, 130)}
    rng = np.random.default_rng(0)
    return {
        "posterior": dataset(data.draws),
        "posterior_predictive": xr.Dataset({"y": (("chain", "draw", "n"), rng.normal(size=(2, 30, 12)))}, lead),
        "log_likelihood": xr.Dataset({"y": (("chain", "draw", "n"), rng.normal(size=(2, 30, 12)))}, lead),
        "sample_stats": xr.Dataset({"diverging": (("chain", "draw"), rng.random((2, 30)) < 0.1)}, lead),
        "observed_data": xr.Dataset({"y": ("n", data.data.numpy())}),
    }


def as_tree(groups):
    return xr.DataTree.from_dict({f"/{k}": v for k, v in groups.items()})


def group_of(thing, name):
    found = thing[name]
    return found if isinstance(found, xr.Dataset) else found.to_dataset()


@pytest.mark.parametrize("build", [assemble, as_tree], ids=["installed ArviZ", "DataTree"])
def test_arviz_objects_keep_everything_but_the_labels(build, data):
    given = build(groups(data))
    untouched = copy.deepcopy(given)
    aligned = align_draws(given, MIXTURE, reference="medoid")
    out = aligned.to_arviz()
    assert type(out) is type(given)
    for name in groups(data):
        before, after = group_of(given, name), group_of(out, name)
        xr.testing.assert_identical(before, group_of(untouched, name))
        if name != "posterior":
            xr.testing.assert_identical(before, after)
    before, after = group_of(given, "posterior"), group_of(out, "posterior")
    assert [c for c in before.coords if c != "component"] == list(after.coords)  # names of units hold no longer
    assert before.attrs == after.attrs
    for name in before.data_vars:
        assert before[name].dims == after[name].dims
        np.testing.assert_array_equal(np.sort(before[name], -1), np.sort(after[name], -1))
    assert float(after["loc"].std(("chain", "draw")).max()) < 0.5
    stats = group_of(given, "sample_stats")["diverging"].values
    np.testing.assert_array_equal(aligned.flagged, stats)
    assert not stats[aligned.reference_draw]


def test_a_dataset_with_its_dims_in_another_order(data):
    given = dataset(data.draws).transpose("component", "draw", "chain")
    out = align_draws(given, MIXTURE, reference=(0, 0)).to_arviz()
    assert out["loc"].dims == ("component", "draw", "chain")
    expected = align_draws(data.draws, MIXTURE, reference=(0, 0)).draws["loc"]
    np.testing.assert_array_equal(out["loc"].transpose("chain", "draw", "component"), expected)


def test_a_file_on_disk_is_read_in_slices(data, tmp_path):
    given = dataset(data.draws).drop_vars("component")
    given.to_netcdf(tmp_path / "draws.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "draws.nc", engine="h5netcdf") as lazy:
        aligned = align_draws(lazy, MIXTURE, reference=(0, 0))
        np.testing.assert_array_equal(
            aligned.draws["loc"], align_draws(data.draws, MIXTURE, reference=(0, 0)).draws["loc"]
        )


def test_dicts_become_arviz_objects(data):
    out = align_draws(data.draws, MIXTURE).to_arviz()
    assert group_of(out, "posterior").sizes == {"chain": 2, "draw": 30, **{f"{k}_dim_0": 3 for k in data.draws}}
    assert "relabeled" in group_of(out, "sample_stats")


@pytest.mark.parametrize("kind", ["tensor", "numpy", "float32", "list of chains"])
def test_kinds_of_arrays(kind, data):
    expected = align_draws(data.draws, MIXTURE, reference=(0, 0))
    given = {
        "tensor": data.draws,
        "numpy": {k: v.numpy() for k, v in data.draws.items()},
        "float32": {k: v.float() for k, v in data.draws.items()},
        "list of chains": {k: [c.numpy() for c in v] for k, v in data.draws.items()},
    }[kind]
    aligned = align_draws(given, MIXTURE, reference=(0, 0))
    assert torch.equal(aligned.permutations["k"], expected.permutations["k"])
    value = aligned.draws["loc"]
    assert isinstance(value, np.ndarray if kind == "numpy" else torch.Tensor)
    assert value.dtype == (torch.float32 if kind == "float32" else np.float64 if kind == "numpy" else torch.float64)


def test_state_dicts():
    point = {"w": torch.randn(4, 2), "v": torch.randn(3, 4)}
    orders = [torch.randperm(4) for _ in range(5)]
    members = [{"w": point["w"][o], "v": point["v"][:, o]} for o in orders]
    symmetry = SymmetrySpec({"w": ("h", None), "v": (None, "h")})
    aligned = align_draws(members, symmetry, reference=(0, 0))
    for member in aligned.state_dicts:
        assert all(torch.equal(member[k], members[0][k]) for k in point)


def test_bad_draws_are_kept_and_flagged(data):
    draws = {k: v.clone() for k, v in data.draws.items()}
    draws["loc"][0, 3, 1] = torch.nan
    draws["scale"][1, 5, 0] = torch.inf
    supports = {"scale": torch.distributions.constraints.positive}
    for method in ("pivot", "barycenter"):
        aligned = align_draws(draws, MIXTURE, method=method, supports=supports, weights="pooled")
        assert aligned.flagged.sum() == 2
        assert aligned.flagged[0, 3]
        assert aligned.flagged[1, 5]
        assert not aligned.flagged[aligned.reference_draw]
        assert aligned.permutation(0, 3).is_identity
        assert torch.equal(aligned.draws["loc"][0, 3].isnan(), draws["loc"][0, 3].isnan())
        rest = torch.from_numpy(~aligned.flagged)
        landed = data.order.gather(-1, aligned.permutations["k"].long())[rest]
        assert bool((landed == landed[0]).all())
        frame = aligned.report()
        assert frame.loc["(all sites)", "flagged"] == 2
        assert np.isfinite(frame.loc["loc", "rhat"])
    with pytest.raises(ValueError, match="divergent, NaN or infinite"):
        align_draws(draws, MIXTURE, reference=(0, 3))


def test_divergent_draws_are_relabeled_but_no_pivot(data):
    given = assemble(groups(data))
    first = np.zeros((2, 30), bool)
    first[0, :29] = True
    given["sample_stats"]["diverging"][:] = first
    aligned = align_draws(given, MIXTURE)
    assert aligned.reference_draw[0] == 1 or aligned.reference_draw[1] == 29
    assert data.wrong(SimpleNamespace(permutations=aligned.permutations)) == 0


# -- what is refused ---------------------------------------------------------------------------------------------------


def refuse(error, match, draws, symmetry=MIXTURE, **options):
    with pytest.raises(error, match=match):
        align_draws(draws, symmetry, **options)


def test_draws_that_do_not_fit(data):
    d = data.draws
    refuse(TypeError, "expected a dict of draws", 3)
    refuse(TypeError, "expected a Symmetry, got dict; the order is align_draws", d, d)
    refuse(ValueError, "empty", {})
    refuse(ValueError, "empty", [])
    refuse(ValueError, "'loc': 2 chains of 29 draws", {"weights": d["weights"], "loc": d["loc"][:, :29]})
    refuse(ValueError, "the chains have shapes", {"loc": [torch.randn(5, 3), torch.randn(5, 4)]})
    refuse(ValueError, r"'loc': expected shape \(chain, draw", {"loc": torch.randn(3)})
    refuse(ValueError, "0 draws", {"loc": torch.randn(2, 0, 3)})
    refuse(ValueError, "every draw is NaN", {k: v * torch.nan for k, v in d.items()})
    refuse(ValueError, "has not been run", MCMC(NUTS(lambda: None), num_samples=1, warmup_steps=1))
    refuse(ValueError, "no dim", xr.Dataset({"loc": ("draw", np.zeros(3))}))
    refuse(ValueError, "not common to all", [{"a": torch.zeros(2)}, {"b": torch.zeros(2)}])
    refuse(ValueError, "member 1, 'a'", [{"a": torch.zeros(2)}, {"a": torch.zeros(3)}])


def test_a_symmetry_that_does_not_fit(data):
    d = data.draws
    refuse(SymmetryError, r"does not have: \['scale'\]", {k: v for k, v in d.items() if k != "scale"})
    refuse(
        SymmetryError,
        r"'weights': shape \(4,\) in the symmetry, \(3,\)",
        d,
        MIXTURE.bind({"weights": (4,), "loc": (4,), "scale": (4,)}),
    )
    none = align_draws(d, SymmetrySpec({"loc": (None,)}))  # as `align` says: there is nothing to relabel
    assert not none.relabeled.any()
    assert torch.equal(none.draws["loc"], d["loc"])
    assert none.report().loc["loc", "relabeled"] == 0
    axes = {"loc": ("k", None), "scale": ("k",)}
    refuse(ValueError, "'scale': 2 chains of 30 draws, but 'loc'|'loc': expected shape", d, SymmetrySpec(axes))


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("method must be one of", {"method": "magic"}),
        ("level must be", {"level": "run"}),
        ("weights must be one of", {"weights": "heavy"}),
        ("restarts >= 0", {"restarts": -1}),
        ("max_iterations >= 1", {"max_iterations": 0}),
        ("needs the model", {"reference": "map"}),
        ("reference must be", {"reference": "mean"}),
        ("there are 2 chains of 30 draws", {"reference": (2, 0)}),
        ("lacks site 'loc'", {"reference": {"weights": torch.zeros(3)}}),
        ("'weights': expected shape", {"reference": {k: torch.zeros(2) for k in ("weights", "loc", "scale")}}),
        ("needs by=", {"method": "ordering"}),
        ("use level='draw'", {"method": "ordering", "by": "loc", "level": "chain"}),
        ("single draws", {"weights": "pooled", "level": "chain"}),
        ("needs allocations=", {"method": "stephens"}),
        ("add up to one", {"method": "stephens", "allocations": torch.ones(2, 30, 5, 3)}),
        ("labels must lie in 0..2", {"method": "ecr", "allocations": torch.full((2, 30, 5), 3)}),
        ("2 chains of 30 draws", {"method": "ecr", "allocations": torch.zeros(30, 5, dtype=torch.int64)}),
        ("3 components", {"method": "stephens", "allocations": torch.ones(2, 30, 5, 2) / 2}),
    ],
)
def test_options_out_of_range(match, options, data):
    refuse(ValueError, match, data.draws, **options)


def test_which_atom():
    two = SymmetrySpec({"a": ("j",), "b": ("k",)})
    draws = {"a": torch.randn(1, 5, 2), "b": torch.randn(1, 5, 3)}
    p = torch.softmax(torch.randn(1, 5, 4, 3), -1)
    refuse(SymmetryError, "which atom", draws, two, method="stephens", allocations=p)
    aligned = align_draws(draws, two, method="stephens", allocations=p, atom="k")
    assert torch.equal(aligned.draws["a"], draws["a"])
    with pytest.raises(SymmetryError, match="which atom"):
        aligned.relabel_allocations(torch.zeros(1, 5, 4))
    refuse(SymmetryError, "carries the atoms", draws, two, method="ordering", by="a", atom="k")
