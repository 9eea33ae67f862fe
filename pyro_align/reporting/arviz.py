"""Results as ArviZ objects: ``InferenceData`` on ArviZ 0.x, ``xarray.DataTree`` on 1.x, from one code path.

Every result is first laid out as xarray data sets, one per ArviZ group; only the last step knows which ArviZ is there.
"""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from pyro_align import files

if TYPE_CHECKING:
    import pandas as pd

    from pyro_align.barrier.result import Barrier

FEWEST = 25  # draws that ArviZ 1.x fits a tail to
_CURVES = ("value", "se", "chord", "excess", "excess_se", "effective")


def to_arviz(barriers: Barrier | Mapping[str, Barrier]) -> Any:
    """One barrier, or several under labels such as ``{"before": b0, "after": b1}``, as one ArviZ object.

    ``sample_stats`` holds ``loss`` (pseudo-values, whose mean over draws is the curve), ``log_prior`` and ``log_q`` per
    draw; ``constant_data`` the curves, chords, excesses, bands and barriers, each a variable with dims ``(path,)``
    (only where several are given) ``evaluation``, ``loss`` and ``tau``; ``title`` and ``unit`` are coordinates along
    ``loss``. Values that a barrier does not have are NaN. There is no ``log_likelihood``, on purpose: ``arviz.loo``
    would count the data of every tau; see :meth:`pyro_align.barrier.Barrier.at`.
    Written with ``.to_netcdf(file)``, read with ``arviz.from_netcdf(file)``.

    Returns:
        ``arviz.InferenceData`` on ArviZ 0.x, ``xarray.DataTree`` on 1.x.
    """
    if not isinstance(barriers, Mapping):
        return assemble(barrier_groups(barriers))
    if not barriers:
        raise ValueError("to_arviz got an empty mapping; give {'before': barrier, 'after': other}")
    labels = xr.DataArray([str(label) for label in barriers], dims="path", name="path")
    each = [barrier_groups(barrier) for barrier in barriers.values()]
    joined = {group: xr.concat([one[group] for one in each], labels, join="outer") for group in each[0]}
    return assemble(joined)


def barrier_groups(barrier: Barrier) -> dict[str, xr.Dataset]:
    """A barrier laid out as one data set per ArviZ group."""
    evaluations, losses = list(barrier.evaluations), list(barrier.losses)
    shape = (len(evaluations), len(losses), len(barrier.taus))
    curves = {name: np.full(shape, np.nan) for name in (*_CURVES, "lower", "upper")}
    peaks = {name: np.full(shape[:2], np.nan) for name in ("barrier", "barrier_se", "barrier_tau")}
    draws = np.full((1, barrier.num_samples, *shape), np.nan)
    for (evaluation, loss), curve in barrier.curves.items():
        at = (evaluations.index(evaluation), losses.index(loss))
        band = curve.band()
        for name in _CURVES:
            if (values := getattr(curve, name)) is not None:
                curves[name][at] = values
        curves["lower"][at], curves["upper"][at] = band.lower, band.upper
        peak = curve.barrier
        peaks["barrier"][at], peaks["barrier_se"][at], peaks["barrier_tau"][at] = peak.height, peak.se, peak.tau
        draws[0, :, at[0], at[1]] = curve.draws.T
    labels = [next(c.label for (_, name), c in barrier.curves.items() if name == loss) for loss in losses]
    coords = {"evaluation": evaluations, "loss": losses, "tau": barrier.taus}
    coords |= {"title": ("loss", [label.title for label in labels]), "unit": ("loss", [label.unit for label in labels])}
    chains = {"chain": [0], "draw": np.arange(barrier.num_samples)}
    grid = ("evaluation", "loss", "tau")
    attrs = {"temperature": barrier.temperature, "seed": barrier.seed}
    constant = {name: (grid, value) for name, value in curves.items()}
    constant |= {name: (grid[:2], value) for name, value in peaks.items()}
    constant["num_data"] = (("evaluation",), [barrier.num_data[e] for e in evaluations])
    stats = {
        "loss_draws": (("chain", "draw", *grid), draws),
        "log_prior": (("chain", "draw", "tau"), barrier.log_prior.T[None]),
        "log_q": (("chain", "draw", "tau"), barrier.log_q.T[None]),
    }
    return {
        "sample_stats": xr.Dataset(stats, {**chains, **coords}, attrs),
        "constant_data": xr.Dataset(constant, coords, attrs),
    }


def point_to_arviz(
    *,
    tau: float,
    evaluation: str,
    name: str,
    plates: Sequence[str],
    log_likelihood: np.ndarray,
    observed: Mapping[str, np.ndarray],
    lp: np.ndarray,
    log_q: np.ndarray,
    log_prior: np.ndarray | None = None,
    posterior: Mapping[str, np.ndarray] | None = None,
    predictive: Mapping[str, np.ndarray] | None = None,
    chord: Mapping[str, float] | None = None,
    thin: int = 1,
) -> Any:
    """One point of a path as an ArviZ object; its groups are those of :meth:`pyro_align.barrier.Barrier.at`.

    Log densities are ``(draws,)`` nats, the log likelihood, a variable called ``name``, is ``(draws, *datum)``, with
    the ``plates`` as dims; draws of sites, latent and predictive, are ``(draws, *site_shape)``.
    """
    attrs = {"tau": tau, "evaluation": evaluation}
    shape = log_likelihood.shape[1:]
    groups = {}
    if posterior is not None:
        groups["posterior"] = _dataset(posterior, attrs, draws=True).isel(draw=slice(None, None, thin))
    groups["log_likelihood"] = _dataset({name: log_likelihood}, attrs, plates, shape, draws=True)
    stats = {"lp": lp, "log_q": log_q} | ({} if log_prior is None else {"log_prior": log_prior})
    groups["sample_stats"] = _dataset(stats, attrs, draws=True)
    if predictive is not None:
        groups["posterior_predictive"] = _dataset(predictive, attrs, plates, shape, draws=True)
    groups["observed_data"] = _dataset(observed, attrs, plates, shape)
    constant = xr.Dataset({"tau": tau}, attrs=attrs)
    if chord is not None:
        constant = constant.assign(chord=("loss", list(chord.values()))).assign_coords(loss=list(chord))
    groups["constant_data"] = constant
    return assemble(groups)


def leave_one_out(point: Any, *, correct: bool = False) -> dict[str, float | bool]:
    """PSIS leave-one-out of one point of a path, as made by :func:`point_to_arviz`.

    Args:
        point: The point.
        correct: Whether log p and log q of the draws weigh them as the exact posterior would
            (``loo_approximate_posterior``; Magnusson et al. 2019). That needs ArviZ 1.x, or ``arviz-stats`` beside
            ArviZ 0.x (``pip install pyro_align[loo]``), and a guide near the posterior, which ``guide_k`` tells. By
            default the draws are taken as they are: the figures are those of the guide.

    Returns:
        ``elpd`` in nats over all data and its standard error ``se``, the effective number of parameters ``p``, the
        share ``bad_k`` of data whose Pareto shape is too high to trust, the largest shape ``max_k``, ``guide_k``, see
        :func:`guide_shape`, and whether the draws were ``corrected``.

    Raises:
        ImportError: A correction is asked for, and no package at hand knows it.
    """
    return _figures(point, _psis_loo(point, correct), correct)


def guide_shape(point: Any) -> float:
    """Pareto shape of the weights p / q that would make a guide's draws the posterior's (Yao et al. 2018).

    Below 0.5 the guide is close to the posterior; above 0.7 too far for its draws to be corrected. Infinite where some
    of the tail is nothing beside the largest weight in float64, and with fewer than 25 draws, of which no tail can be
    fitted. Zero where the tail is flat except for rounding, as where the guide is the posterior.
    """
    log_p, log_q = (point["sample_stats"][name].values.ravel().astype(np.float64) for name in ("lp", "log_q"))
    log_weights = np.sort(log_p - log_q)
    log_weights -= log_weights[-1]
    count = len(log_weights)
    tail = math.ceil(_tail(count))
    if count < FEWEST or log_weights[-tail - 1] < math.log(np.finfo(float).tiny):  # else it is fitted to what is left
        return math.inf
    if -log_weights[-tail - 1] <= 2**10 * np.finfo(float).eps * max(np.abs(log_p).max(), np.abs(log_q).max()):
        return 0.0
    arviz = _arviz()
    if hasattr(arviz, "psislw"):
        return float(arviz.psislw(log_weights)[1])
    from arviz_stats.base import array_stats

    return float(array_stats.psislw(-log_weights, r_eff=1.0, axis=-1)[1])  # it takes log likelihoods, not weights


def leave_one_out_table(points: Mapping[Any, Any], *, correct: bool = False) -> pd.DataFrame:
    """:func:`leave_one_out` of several posteriors of the same data, one row each.

    ``diff`` is the loss of ``elpd`` to the best of them, at least 0, and ``dse`` the standard error of that difference,
    from the differences of single data.
    """
    return _table(points, {key: _psis_loo(point, correct) for key, point in points.items()}, correct)


def _table(points: Mapping[Any, Any], loos: Mapping[Any, Any], correct: bool) -> pd.DataFrame:
    import pandas as pd

    pointwise = {key: _pointwise(out) for key, out in loos.items()}
    best = pointwise[max(pointwise, key=lambda key: pointwise[key].sum())]
    rows = {}
    for key, loo in loos.items():
        gap = best - pointwise[key]
        dse = float(np.sqrt(gap.size * gap.var()))
        rows[key] = {**_figures(points[key], loo, correct), "diff": float(gap.sum()), "dse": dse}
    return pd.DataFrame.from_dict(rows, orient="index")


def _pointwise(out) -> np.ndarray:
    return np.asarray(out.loo_i if "loo_i" in dir(out) else out.elpd_i).ravel()


def _elpd(out) -> tuple[float, float]:
    """The elpd and the effective number of parameters of an ArviZ result of either generation."""
    elpd, p = (out.elpd_loo, out.p_loo) if "elpd_loo" in dir(out) else (out.elpd, out.p)
    return float(elpd), float(p)


def _figures(point, out, corrected: bool) -> dict[str, float | bool]:
    elpd, p = _elpd(out)
    shapes = np.asarray(out.pareto_k)
    return {
        "elpd": elpd,
        "se": float(out.se),
        "p": p,
        "bad_k": float((shapes > out.good_k).mean()),
        "max_k": float(shapes.max()),
        "guide_k": guide_shape(point),
        "corrected": corrected,
    }


def compare_points(points: Mapping[str, Any], *, correct: bool = False) -> pd.DataFrame:
    """Ranks posteriors by leave-one-out, best first; the weights are those of ``arviz.compare``.

    Args:
        points: Name -> ArviZ object of one posterior on the same data, as made by :func:`point_to_arviz`.
        correct: As in :func:`leave_one_out`.

    Returns:
        One row per name: ``rank``, ``elpd`` and its error ``se`` in nats over all data, the effective number of
        parameters ``p``, ``elpd_diff``, by which it falls short of the best (at least 0, whichever ArviZ there is), and
        its error ``dse``, which is that of paired differences, the stacking ``weight``, and the fraction ``bad_k`` of
        data whose Pareto shape is too high.

    Raises:
        ValueError: Fewer than two posteriors.
        ImportError: A correction is asked for, and no package at hand knows it.
    """
    if len(points) < 2:
        raise ValueError(f"compare needs at least two posteriors, got {list(points)}")
    loos = {name: _psis_loo(point, correct) for name, point in points.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of high Pareto shapes, which are reported as figures
        warnings.simplefilter("ignore", DeprecationWarning)  # of pandas, about how ArviZ calls it
        compare = (_statistics() if correct else _arviz()).compare
        exact = {"round_to": "none"} if "round_to" in inspect.signature(compare).parameters else {}
        weights = compare(loos, **exact)["weight"]
    table = _table(points, loos, correct).sort_values("elpd", ascending=False, kind="stable")
    table = table.rename(columns={"diff": "elpd_diff"}).assign(rank=np.arange(len(table)), weight=weights)
    return table[["rank", "elpd", "se", "p", "elpd_diff", "dse", "weight", "bad_k"]].rename_axis("posterior")


def _psis_loo(point, correct: bool):
    """ArviZ's own result, with pointwise figures."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of high Pareto shapes, which are reported as figures
        tree = as_tree(point)
        log_likelihood = _untied(tree["log_likelihood"].to_dataset())
        if not correct and _has_inference_data():
            only = _arviz().InferenceData(log_likelihood=log_likelihood)
            return _arviz().loo(only, pointwise=True, reff=1.0)
        _check_tail(log_likelihood)
        tree = tree.assign({"log_likelihood": xr.DataTree(log_likelihood)})
        if not correct:
            return _arviz().loo(tree, pointwise=True, reff=1.0)
        log_p, log_q = (point["sample_stats"][name].values.ravel() for name in ("lp", "log_q"))
        return _statistics().loo_approximate_posterior(tree, log_p=log_p, log_q=log_q, pointwise=True)


def _untied(log_likelihood: xr.Dataset) -> xr.Dataset:
    """Log likelihoods of single data, moved by rounding where the smallest of the draws are tied.

    So they are for a datum on which a network's units are off under many draws. ArviZ fits no tail in which all weights
    are the same: 0.x calls its shape infinite, 1.x stops. Ranks in multiples of the rounding make the tail uniform,
    whose shape is low, as that of bounded weights should be.
    """
    out = log_likelihood.copy()
    for name, variable in log_likelihood.data_vars.items():
        draws = variable.sizes["chain"] * variable.sizes["draw"]
        values = variable.values.reshape(draws, -1).astype(np.float64)
        last = max(0, math.floor(_tail(draws)) - 1)
        lowest = np.partition(values, (0, last), axis=0)
        tied = lowest[0] == lowest[last]
        if tied.any():
            step = 2**6 * np.finfo(float).eps * np.maximum(1.0, np.abs(values).max(0))
            ranks = values.argsort(axis=0, kind="stable").argsort(axis=0)
            out[name] = variable.copy(data=(values + tied * step * ranks).reshape(variable.shape))
    return out


def _tail(draws: int) -> float:
    """As many of the largest weights as ArviZ fits a tail to; 0.x rounds up, 1.x down."""
    return min(0.2 * draws, 3 * math.sqrt(draws))


def _check_tail(log_likelihood: xr.Dataset) -> None:
    """Refuses fewer draws than ArviZ 1.x fits a tail to.

    Raises:
        ValueError: Fewer than :data:`FEWEST`.
    """
    draws = log_likelihood.sizes["chain"] * log_likelihood.sizes["draw"]
    if draws < FEWEST:
        raise ValueError(
            f"leave-one-out: ArviZ fits a tail to the largest fifth of the weights and wants 5 of them, so it takes at "
            f"least {FEWEST} draws; got {draws}: raise num_samples"
        )


def _dataset(
    values: Mapping[str, np.ndarray],
    attrs: Mapping[str, Any],
    plates: Sequence[str] = (),
    plate_shape: Sequence[int] = (),
    *,
    draws: bool = False,
) -> xr.Dataset:
    """Variables with dims ``(chain, draw,)`` the plates where the shape begins with theirs, and ``name_dim_i``."""
    variables, lead = {}, ("chain", "draw") if draws else ()
    # a variable named like a dim is lost, and a plate is not to be taken for the draws
    plates = [f"{plate}_plate" if plate in {*values, "chain", "draw"} else plate for plate in map(_flat, plates)]
    for site, value in values.items():
        name = _flat(site) + ("_site" if site in ("chain", "draw") else "")
        shape = value.shape[1:] if draws else value.shape
        shared = tuple(plates) if tuple(shape[: len(plates)]) == tuple(plate_shape) else ()
        own = tuple(f"{name}_dim_{i}" for i in range(len(shape) - len(shared)))
        variables[name] = ((*lead, *shared, *own), value[None] if draws else value)
    dataset = xr.Dataset(variables, attrs=dict(attrs))
    return dataset.assign_coords({dim: np.arange(size) for dim, size in dataset.sizes.items()})


def _flat(name: str) -> str:
    """A name without slashes, which would make groups of its parts, in trees as in files."""
    return name.replace("/", ".")


def assemble(groups: Mapping[str, xr.Dataset]) -> Any:
    """The groups as the installed ArviZ's object."""
    arviz = _arviz()
    stamp = {"inference_library": "pyro_align", "created_with_arviz": metadata.version("arviz")}
    groups = {name: dataset.assign_attrs(stamp) for name, dataset in groups.items()}
    if _has_inference_data():
        return arviz.InferenceData(**groups)
    return xr.DataTree.from_dict({f"/{name}": dataset for name, dataset in groups.items()})


def as_tree(tree) -> xr.DataTree:
    """An ArviZ object of either generation as a tree of data sets."""
    groups = tree.children if isinstance(tree, xr.DataTree) else {name: tree[name] for name in tree.groups()}
    datasets = {f"/{name}": g.to_dataset() if isinstance(g, xr.DataTree) else g for name, g in groups.items()}
    return xr.DataTree.from_dict(datasets)


def _statistics():
    """ArviZ 1.x, or the package of its statistics beside ArviZ 0.x, which alone know approximate posteriors."""
    arviz = _arviz()
    if hasattr(arviz, "loo_approximate_posterior"):
        return arviz
    try:
        import arviz_stats
    except ImportError as error:
        raise ImportError(
            "leave-one-out that is corrected for a guide needs arviz-stats: pip install 'pyro_align[loo]'"
        ) from error
    return arviz_stats


def _has_inference_data() -> bool:
    """Whether the installed ArviZ is older than 1.0; asking 1.x for the attribute itself would warn."""
    return "InferenceData" in vars(_arviz())


def _arviz():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.x on import
        import arviz
    return arviz


# -- files -------------------------------------------------------------------------------------------------------------


def write_zarr(tree: Any, folder: str | os.PathLike[str]) -> None:
    """Writes an ArviZ object to a Zarr folder, one group each; any Zarr that the installed xarray takes.

    ``InferenceData.to_zarr`` of ArviZ 0.23 wants Zarr 2, recent releases of xarray want Zarr 3: this goes through
    ``xarray.DataTree``, with either. An existing folder is not written over.

    Args:
        tree: ``barrier.to_arviz()``, ``barrier.at(tau)``.
        folder: Where.

    Raises:
        FileExistsError: The folder holds something.
        ImportError: The package ``zarr`` is not there.
    """
    files.write_tree(as_tree(tree), folder)


def read_zarr(folder: str | os.PathLike[str]) -> Any:
    """The ArviZ object in a Zarr folder written by :func:`write_zarr`, in memory.

    Returns:
        ``arviz.InferenceData`` on ArviZ 0.x, ``xarray.DataTree`` on 1.x.
    """
    with xr.open_datatree(os.fspath(folder), engine="zarr", consolidated=False) as tree:
        return assemble({name: node.to_dataset().load() for name, node in tree.children.items()})
