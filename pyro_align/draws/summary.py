"""Aligned draws told to others: a table of convergence before and after, and ArviZ objects."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from pyro_align.axes import Fixed, leaves
from pyro_align.draws.diagnostics import rhat_and_ess
from pyro_align.draws.shapes import as_tensor
from pyro_align.draws.store import plain_part, relabeled_part, sample_stats
from pyro_align.reporting.arviz import assemble

if TYPE_CHECKING:
    from pyro_align.draws.result import AlignedDraws


def report(aligned: AlignedDraws, *, modes: bool) -> pd.DataFrame:
    """See :meth:`AlignedDraws.report`."""
    keep = ~aligned.nonfinite().any(0)  # R-hat needs chains of one length
    rows = {}
    for site, given in aligned.source.arrays.items():
        atoms = _atoms_of(aligned, site)
        before = after = rhat_and_ess({site: as_tensor(given).numpy()[:, keep]})[site]
        if atoms:
            after = rhat_and_ess({site: as_tensor(aligned.site(site)).numpy()[:, keep]})[site]
        rows[site] = {
            "rhat before": before[0],
            "rhat": after[0],
            "ess before": before[1],
            "ess": after[1],
            "relabeled": int(aligned.moved_by(atoms).sum()),
            "transpositions": _transpositions(aligned, atoms),
        }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    total = {c: (frame[c].min() if c.startswith("ess") else frame[c].max()) for c in frame.columns}
    total["relabeled"] = int(aligned.relabeled.sum())
    total["transpositions"] = _transpositions(aligned, list(aligned.symmetry.atoms))
    frame[["modes", "flagged", "ambiguous", "improved"]] = np.nan
    frame["continuous"] = [any(a in aligned.continuous for a in _atoms_of(aligned, site)) for site in frame.index]
    frame.loc["(all sites)"] = {
        **total,
        "continuous": bool(aligned.continuous),
        "ambiguous": np.nan if aligned.log_odds is None else float(aligned.ambiguous().mean()),
        "improved": np.nan if aligned.improved is None else aligned.improved,
        "modes": len(aligned.modes()) if modes else np.nan,
        "flagged": int(aligned.flagged.sum()),
    }
    frame["relabeled"] = frame["relabeled"].astype(int)
    frame.index.name = "site"
    return frame


def _atoms_of(aligned: AlignedDraws, site: str) -> list[str]:
    """The atoms whose relabeling changes a variable."""
    atoms = [a for a, places in aligned.carried.symmetry.carriers.items() if any(s == site for s, _ in places)]
    labels = [a.name for a in leaves(aligned.carried.labels.get(site, Fixed())) if a.name in aligned.symmetry.atoms]
    return [*dict.fromkeys(atoms + labels)]


def _transpositions(aligned: AlignedDraws, atoms: list[str]) -> float:
    """Swaps of units between a draw and the reference, on average over draws."""
    counts = [aligned.transpositions[a] for a in atoms if a in aligned.transpositions]
    return float(sum(v.reshape(*aligned.flagged.shape, -1).sum(-1).mean() for v in counts))


def to_arviz(aligned: AlignedDraws) -> Any:
    """See :meth:`AlignedDraws.to_arviz`."""
    given = aligned.source.original
    if isinstance(given, xr.Dataset):
        return relabeled_part(aligned, given, 0, aligned.source.shape[1])
    posterior = getattr(given, "posterior", None)
    if isinstance(posterior, xr.Dataset):  # InferenceData
        out = copy.copy(given)
        out.posterior = relabeled_part(aligned, posterior, 0, aligned.source.shape[1])
        return out
    if isinstance(given, xr.DataTree) and posterior is not None:
        out = given.copy()
        out["posterior"].dataset = relabeled_part(aligned, posterior.to_dataset(), 0, aligned.source.shape[1])
        return out
    posterior = plain_part(aligned.draws, 0, aligned.source.shape[1])
    return assemble({"posterior": posterior, "sample_stats": sample_stats(aligned)})
