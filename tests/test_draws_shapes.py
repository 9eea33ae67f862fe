"""Draws in the shapes that samplers and people give: all are read as chains, draws and sites, or refused."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from pyro.infer import MCMC

from pyro_align import align_draws
from pyro_align.draws.columns import join_columns
from pyro_align.draws.shapes import leading_axes
from pyro_align.errors import DiagnosticWarning
from pyro_align.symmetry import SymmetrySpec

K, CHAINS, DRAWS = 3, 2, 10
SYMMETRY = SymmetrySpec({"mu": ("k",), "w": ("k",)})
OPTIONS = {"reference": (0, 0)}


@pytest.fixture
def draws():
    g = torch.Generator().manual_seed(0)
    order = torch.rand(CHAINS, DRAWS, K, generator=g).argsort(-1)
    mu = torch.tensor([-4.0, 0.0, 4.0]) + 0.1 * torch.randn(CHAINS, DRAWS, K, generator=g)
    w = torch.softmax(torch.tensor([0.0, 1.0, 2.0]) + 0.1 * torch.randn(CHAINS, DRAWS, K, generator=g), -1)
    return {"mu": mu.gather(-1, order), "w": w.gather(-1, order)}


def dataset(draws, dims=("k",)):
    return xr.Dataset({k: (("chain", "draw", *dims), v.numpy()) for k, v in draws.items()})


def columns(draws, pattern="{}[{}]"):
    return {pattern.format(k, i + 1): v[..., i] for k, v in draws.items() for i in range(K)}


def finished(draws):
    mcmc = MCMC.__new__(MCMC)
    mcmc._samples, mcmc.num_chains, mcmc._diagnostics = (
        draws,
        len(draws["mu"]),
        [{"divergences": [1]}] * len(draws["mu"]),
    )
    mcmc.kernel = None
    mcmc.get_samples = lambda group_by_chain: draws
    return mcmc


SAME = {
    "chains as a list of dicts": lambda d: [{k: v[c] for k, v in d.items()} for c in range(CHAINS)],
    "runs as a list of dicts": lambda d: [{k: v[c : c + 1] for k, v in d.items()} for c in range(CHAINS)],
    "a plate of one": lambda d: {k: v.unsqueeze(2) for k, v in d.items()},
    "a plate of one in one site": lambda d: {"mu": d["mu"], "w": d["w"].unsqueeze(2).unsqueeze(2)},
    "nested lists": lambda d: {k: v.tolist() for k, v in d.items()},
    "columns": columns,
    "columns of Stan": lambda d: columns(d, "{}.{}"),
    "data arrays": lambda d: dict(dataset(d).transpose("k", "draw", "chain").data_vars),
    "a dataset with a plate of one": lambda d: dataset(d).expand_dims(plate=1).transpose("chain", "draw", "plate", "k"),
    "a stacked dataset": lambda d: dataset(d).stack(sample=("chain", "draw")),
    "a dataset of scalars": lambda d: xr.Dataset({k: (("chain", "draw"), v) for k, v in columns(d).items()}),
    "a list of MCMC": lambda d: [finished({k: v[c : c + 1] for k, v in d.items()}) for c in range(CHAINS)],
    "a table": lambda d: pd.DataFrame(
        {"chain__": np.repeat(np.arange(CHAINS), DRAWS), "lp__": 0.0}
        | {k: v.flatten().numpy() for k, v in columns(d).items()}
    ),
}


@pytest.mark.parametrize("kind", SAME)
def test_shapes_that_mean_the_same(kind, draws):
    expected = align_draws(draws, SYMMETRY, **OPTIONS)
    given = SAME[kind](draws)
    aligned = align_draws(given, SYMMETRY, **OPTIONS)
    assert torch.equal(aligned.permutations["k"], expected.permutations["k"])
    for name in draws:
        np.testing.assert_allclose(aligned.draws[name], expected.draws[name], rtol=1e-6)
    out = aligned.to_arviz()
    posterior = out if isinstance(out, xr.Dataset) else out["posterior"]
    written = posterior["mu"].transpose("chain", "draw", ...).values
    np.testing.assert_allclose(written.reshape(CHAINS, DRAWS, K), expected.draws["mu"], rtol=1e-6)
    if kind == "a dataset with a plate of one":
        assert posterior["mu"].dims == given["mu"].dims
    if kind == "a list of MCMC":
        assert aligned.flagged.tolist() == [[d == 1 for d in range(DRAWS)]] * CHAINS


def test_draws_without_chains_are_one_chain(draws):
    one = {k: v[:1] for k, v in draws.items()}
    expected = align_draws(one, SYMMETRY, **OPTIONS)
    for given in ({k: v[0] for k, v in one.items()}, {k: v[0].tolist() for k, v in one.items()}):
        aligned = align_draws(given, SYMMETRY, **OPTIONS)
        assert torch.equal(aligned.permutations["k"], expected.permutations["k"])
    members = [{k: v[0, d] for k, v in one.items()} for d in range(DRAWS)]
    assert torch.equal(align_draws(members, SYMMETRY, **OPTIONS).permutations["k"], expected.permutations["k"])


def test_chains_of_different_lengths_are_cut_with_a_word(draws):
    expected = align_draws({k: v[:, :7] for k, v in draws.items()}, SYMMETRY, **OPTIONS).permutations["k"]
    for given in (
        [{k: v[0] for k, v in draws.items()}, {k: v[1, :7] for k, v in draws.items()}],
        {k: [v[0], v[1, :7]] for k, v in draws.items()},
        SAME["a table"](draws).iloc[:-3],
    ):
        with pytest.warns(DiagnosticWarning, match="10, 7 draws; all are cut to the first 7"):
            assert torch.equal(align_draws(given, SYMMETRY, **OPTIONS).permutations["k"], expected)


def test_files_of_stan(draws, tmp_path):
    paths = []
    for c in range(CHAINS):
        table = pd.DataFrame(
            {"lp__": np.zeros(DRAWS), "divergent__": np.arange(DRAWS) == 4}
            | {k: v[c].numpy() for k, v in columns(draws, "{}.{}").items()}
        ).astype(float)
        paths.append(tmp_path / f"run_{c}.csv")
        paths[-1].write_text("# stan_version_major = 2\n" + table.to_csv(index=False) + "# Elapsed Time: 1 seconds\n")
    aligned = align_draws(paths, SYMMETRY, **OPTIONS)
    assert torch.equal(aligned.permutations["k"], align_draws(draws, SYMMETRY, **OPTIONS).permutations["k"])
    assert aligned.flagged.tolist() == [[d == 4 for d in range(DRAWS)]] * CHAINS
    assert align_draws(paths[0], SYMMETRY, **OPTIONS).source.shape == (1, DRAWS)


def test_what_can_be_read_in_two_ways_is_refused():
    with pytest.raises(ValueError, match="10 chains of one draw, or as 10 draws in a plate of one"):
        leading_axes({"mu": (10, 1, 3)}, {"mu": 1})
    assert leading_axes({"mu": (10, 1, 3), "w": (10, 3)}, {"mu": 1, "w": 1}) == 1
    assert leading_axes({"mu": (1, 10, 1, 3)}, {"mu": 1}) == 2
    assert leading_axes({"mu": (1, 1, 3)}, {"mu": 1}) == 2
    with pytest.raises(ValueError, match="'mu': expected shape"):
        leading_axes({"mu": (4, 10, 2, 3), "w": (4, 10, 3)}, {"mu": 1, "w": 1})


def test_runs_that_do_not_belong_together(draws):
    with pytest.raises(ValueError, match="run 1: the sites"):
        align_draws([draws, {"mu": draws["mu"]}], SYMMETRY)
    with pytest.raises(ValueError, match="run 1, 'w': shape"):
        align_draws([draws, draws | {"w": draws["w"][..., :2]}], SYMMETRY)


def test_columns_are_joined_whole():
    two = {f"a[{i},{j}]": np.full(4, 10 * i + j) for i in (1, 2) for j in (1, 2, 3)}
    joined = join_columns({**two, "b.c": np.zeros(4), "d": np.zeros(4)})
    assert list(joined) == ["b.c", "d", "a"]
    assert joined["a"][0].tolist() == [[11, 12, 13], [21, 22, 23]]
    with pytest.raises(ValueError, match=r"'a' lack a\[2,2\]"):
        join_columns({k: v for k, v in two.items() if k != "a[2,2]"})
    with pytest.raises(ValueError, match="different numbers of indices"):
        join_columns({"a[1]": np.zeros(4), "a[1,2]": np.zeros(4)})
