"""R-hat and effective sample sizes, by ArviZ, and the number of modes that are left after relabeling."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import gaussian_kde

_THIN = 2000  # draws that modes are looked for in
_DIRECTIONS = 5  # principal directions that a split is looked for along
_SMOOTH = 200  # draws by which the bandwidth is set: draws of a chain are not independent


def rhat_and_ess(values: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """The largest rank-normalized split R-hat and the smallest bulk ESS among each site's entries.

    Args:
        values: Site -> ``(chain, draw, *site_shape)``. Entries that never move are left out.

    Returns:
        Site -> (R-hat, ESS); NaN where R-hat needs more chains or draws than there are.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ 0.23 announces 1.x on import; constant entries divide by zero
        import arviz

        out = {}
        for name, value in values.items():
            value = np.asarray(value, float)
            if value.shape[1] < 4:
                out[name] = (np.nan, np.nan)
                continue
            dims = ("chain", "draw", *(f"{name}_dim_{i}" for i in range(value.ndim - 2)))
            data = xr.Dataset({name: (dims, value)})
            rhat, ess = (np.asarray(f(data)[name]) for f in (arviz.rhat, arviz.ess))
            still = np.ptp(value, axis=(0, 1)) == 0
            rhat, ess = np.where(still, np.nan, rhat), np.where(still, np.nan, ess)
            out[name] = (float(np.nanmax(rhat, initial=-np.inf)), float(np.nanmin(ess, initial=np.inf)))
            if not np.isfinite(out[name]).all():
                out[name] = tuple(f if np.isfinite(f) else np.nan for f in out[name])
        return out


@dataclass(frozen=True, eq=False)
class Modes:
    """Groups of draws between which few draws lie.

    Attributes:
        weights: Fraction of the draws in each, largest first.
        centers: Mean of each, site -> array of the site's shape, in the coordinates that were compared.
        labels: Which mode each draw is in, ``(chain, draw)``; -1 where it was not looked at.

    Example:
        >>> import torch
        >>> from pyro_align import SymmetrySpec, align_draws
        >>> loc = torch.cat([torch.randn(2, 300, 1) - 9, torch.randn(2, 100, 1) + 9], 1) + torch.tensor([0.0, 30.0])
        >>> len(align_draws({"loc": loc}, SymmetrySpec({"loc": ("k",)})).modes())
        2
    """

    weights: tuple[float, ...]
    centers: tuple[Mapping[str, np.ndarray], ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.weights)

    def summary(self) -> pd.DataFrame:
        """One row per mode: its ``weight``, and the mean of each site over its draws as an array."""
        rows = [{"weight": w, **c} for w, c in zip(self.weights, self.centers, strict=True)]
        return pd.DataFrame(rows, index=pd.RangeIndex(len(self), name="mode"))

    def __str__(self) -> str:
        shares = ", ".join(f"{w:.3f}" for w in self.weights)
        return f"{len(self)} mode{'s' if len(self) > 1 else ''} with weights {shares}"


def split_modes(rows: np.ndarray, *, valley: float, smallest: float) -> np.ndarray:
    """Cuts a sample in two, again and again, wherever its density along a principal direction has a deep valley.

    Args:
        rows: ``(draws, coordinates)``.

    Returns:
        int ``(draws,)``: modes by falling size.
    """
    labels = np.zeros(len(rows), int)
    waiting, done = [np.arange(len(rows))], []
    least = max(8, int(np.ceil(smallest * len(rows))))
    while waiting:
        members = waiting.pop()
        cut = _best_cut(rows[members], valley, least)
        if cut is None:
            done.append(members)
        else:
            waiting += [members[cut], members[~cut]]
    for k, members in enumerate(sorted(done, key=len, reverse=True)):
        labels[members] = k
    return labels


def _best_cut(rows: np.ndarray, valley: float, least: int) -> np.ndarray | None:
    if len(rows) < 2 * least:
        return None
    best, cut = valley, None
    for scores in _principal_scores(rows):
        found = _valley(scores, least)
        if found is not None and found[0] < best:
            best, cut = found[0], scores > found[1]
    return cut


def _principal_scores(rows: np.ndarray) -> Sequence[np.ndarray]:
    centered = rows - rows.mean(0)
    gram = centered @ centered.T if len(rows) <= rows.shape[1] else centered.T @ centered
    values, vectors = np.linalg.eigh(gram)
    keep = [k for k in np.argsort(values)[::-1][:_DIRECTIONS] if values[k] > 1e-12 * max(values[-1], 1e-300)]
    if len(rows) <= rows.shape[1]:
        return [vectors[:, k] * np.sqrt(values[k]) for k in keep]
    return [centered @ vectors[:, k] for k in keep]


def _valley(scores: np.ndarray, least: int) -> tuple[float, float] | None:
    """The deepest valley with enough draws on either side: (density there over that of the lower peak, where)."""
    spread = min(scores.std(), (np.quantile(scores, 0.75) - np.quantile(scores, 0.25)) / 1.34) or scores.std()
    if not spread > 0:
        return None
    bandwidth = 0.9 * spread * min(len(scores), _SMOOTH) ** -0.2
    grid = np.linspace(scores.min() - bandwidth, scores.max() + bandwidth, 256)
    density = gaussian_kde(scores, bw_method=bandwidth / scores.std(ddof=1))(grid)
    left, right = np.maximum.accumulate(density), np.maximum.accumulate(density[::-1])[::-1]
    ratio = density / np.minimum(left, right)
    ordered = np.sort(scores)
    below = np.searchsorted(ordered, grid)
    ratio[(below < least) | (len(scores) - below < least)] = np.inf
    k = int(ratio.argmin())
    return (float(ratio[k]), float(grid[k])) if np.isfinite(ratio[k]) else None
