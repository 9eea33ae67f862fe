"""What :func:`align_draws` returns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_align.draws.carried import Carried, numbered_from, renumbered
from pyro_align.draws.coordinates import check_support
from pyro_align.draws.diagnostics import _THIN, Modes, split_modes
from pyro_align.draws.invariance import Invariance
from pyro_align.draws.shapes import as_tensor
from pyro_align.draws.sources import Source
from pyro_align.draws.stack import Labels, per_unit, restricted, transpositions
from pyro_align.draws.store import write_draws
from pyro_align.draws.summary import report, to_arviz
from pyro_align.errors import SymmetryError
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.stacks import stack_tensors, unstacked


@dataclass(frozen=True, eq=False)
class AlignedDraws:
    """Draws relabeled one by one (or chain by chain).

    Attributes:
        symmetry: The group.
        method: How they were relabeled.
        level: ``"draw"`` or ``"chain"``.
        permutations: Atom -> index tensor ``(chain, draw, *outer sizes, size)`` of a small integer type: new -> old.
        signs: Signed atom -> +-1, same shape.
        rotations: Rotated atom -> orthogonal matrices ``(chain, draw, *outer sizes, size, size)``.
        reference: Site -> what the draws were brought near to, ``site_shape``, in the coordinates compared (logs of
            positive sites, centered log-ratios of simplices); allocations ``(data, components)`` for methods that use
            them; empty for ``"ordering"``.
        reference_draw: ``(chain, draw)`` of the pivot, or None where it is not a draw.
        flagged: ``(chain, draw)`` bool: draws that are divergent, or hold NaN or infinities. They are kept, are not
            used as reference, and non-finite ones keep their labels.
        log_joint: ``(chain, draw)`` nats before relabeling, or None where no model was given.
        invariance: The check that it is the same afterwards, or None where no model was given.
        iterations: Passes over the draws.
        converged: Whether the last pass changed nothing.
        improved: Fraction of the draws that a second search brought nearer to the reference than the first, which tells
            how far the searches are to be trusted; None where the best relabeling of a draw is found for certain.
        continuous: Atoms whose rotations (all, or those that leave the mean) or scalings leave the log joint unchanged
            and were not undone: what is left of R-hat may be due to them. Only looked for where the model is known.
        carried: Which variables were relabeled along with the symmetry's sites, and which may have had to be.

    Example:
        >>> import torch
        >>> from pyro_align import SymmetrySpec, align_draws
        >>> aligned = align_draws({"loc": torch.tensor([[[0.0, 5.0], [5.1, 0.2]]])}, SymmetrySpec({"loc": ("k",)}))
        >>> aligned.draws["loc"]
        tensor([[[0.0000, 5.0000],
                 [0.2000, 5.1000]]])
        >>> aligned.permutations["k"].tolist()
        [[[0, 1], [1, 0]]]
    """

    symmetry: Symmetry
    method: str
    level: str
    permutations: Mapping[str, Tensor] = field(repr=False)
    signs: Mapping[str, Tensor] = field(repr=False)
    rotations: Mapping[str, Tensor] = field(repr=False)
    reference: Mapping[str, Tensor] = field(repr=False)
    reference_draw: tuple[int, int] | None
    flagged: np.ndarray = field(repr=False)
    log_joint: np.ndarray | None = field(repr=False)
    invariance: Invariance | None
    iterations: int
    converged: bool
    improved: float | None
    continuous: tuple[str, ...]
    carried: Carried = field(repr=False)
    source: Source = field(repr=False)
    coordinates: Mapping[str, Callable[[Tensor], Tensor]] = field(repr=False)
    log_odds: Callable[[], np.ndarray] | None = field(repr=False)

    # -- draws -----------------------------------------------------------------------------------------------------

    @cached_property
    def draws(self) -> dict[str, Any]:
        """Site -> relabeled draws ``(chain, draw, *site_shape)``: tensors where tensors were given, else arrays."""
        return unstacked({name: self._moved(name) for name in self.source.arrays}, self.symmetry.stacks, 2)

    def site(self, name: str) -> Any:
        """One site of :attr:`draws`, or one stack of sites; the others are not read."""
        known = "draws" in self.__dict__ or name not in self.source.arrays
        return self.draws[name] if known and name not in self.symmetry.stacks else self._moved(name)

    def _moved(self, site: str) -> Any:
        given = self.source.arrays[site]
        if site not in self.carried.moved:
            return given if isinstance(given, Tensor) else np.asarray(given)
        out = torch.empty(tuple(given.shape), dtype=as_tensor(given[:1, :1]).dtype, device="cpu")
        for chain, part in self.source.site_slices(site):
            out[chain, part] = self.relabel({site: self.source.read(site, chain, part)}, chain, part)[site]
        return out.to(given.device) if isinstance(given, Tensor) else out.numpy()

    def relabel(self, values: Mapping[str, Tensor], chain: int, draws: slice | int) -> dict[str, Tensor]:
        """Relabels other values of the symmetry's sites, and of what moves with them, as the draws were.

        Args:
            values: Site -> ``(units, *site_shape)``, or ``site_shape`` where ``draws`` is one index.
            chain: Which chain.
            draws: Which of its draws.
        """
        if isinstance(draws, int):
            one = self.relabel({k: v[None] for k, v in values.items()}, chain, slice(draws, draws + 1))
            return {k: v[0] for k, v in one.items()}
        units = len(range(*draws.indices(self.source.shape[1])))
        labels = Labels(
            {k: v[chain] for k, v in self.permutations.items()},
            {k: v[chain] for k, v in self.signs.items()},
            {k: v[chain] for k, v in self.rotations.items()},
        )
        p, stacks = labels.permutation(per_unit(self.carried.symmetry, units), draws), self.symmetry.stacks
        moved = {k: self.carried.apply(p, k, v) for k, v in stack_tensors(values, stacks, 1).items()}
        return unstacked(moved, {k: v for k, v in stacks.items() if k not in values}, 1)

    def permutation(self, chain: int, draw: int) -> Permutation:
        """The relabeling of one draw."""
        return self.symmetry.permutation(
            {k: v[chain, draw].long() for k, v in self.permutations.items()},
            {k: v[chain, draw] for k, v in self.signs.items()},
            {k: v[chain, draw] for k, v in self.rotations.items()},
        )

    def relabel_allocations(self, allocations: Any, atom: str | None = None) -> Tensor:
        """Allocations whose *values* are labels, in the new labels.

        Args:
            allocations: Integers ``(chain, draw, *data)``, labels of an atom's units.
            atom: The atom; may be left out where there is one.
        """
        atom = only_atom(self.symmetry, atom)
        values, index = as_tensor(allocations), self.permutations[atom]
        first = numbered_from(values, index.shape[-1], "allocations")
        return renumbered(index.flatten(0, 1), values.flatten(0, 1), first).reshape(values.shape)

    @cached_property
    def guides(self) -> list[Any]:
        """The relabeled guides of an ensemble of guides."""
        if self.source.members is None:
            raise TypeError("these draws are not an ensemble of guides; use .draws")
        return [q.permute(self.permutation(0, k)).to_guide() for k, q in enumerate(self.source.members)]

    @cached_property
    def state_dicts(self) -> list[dict[str, Tensor]]:
        """The relabeled state dicts of an ensemble of networks."""
        return [{k: as_tensor(v[0, m]) for k, v in self.draws.items()} for m in range(self.source.shape[1])]

    # -- what happened ---------------------------------------------------------------------------------------------

    @cached_property
    def transpositions(self) -> dict[str, np.ndarray]:
        """Atom -> least number of swaps between a draw's labels and the reference's, ``(chain, draw, *outer sizes)``.

        Size less number of cycles: the count by which Xiao et al. (2023) tell how far apart two samples are labeled.
        """
        return {k: transpositions(v).numpy() for k, v in self.permutations.items()}

    @cached_property
    def relabeled(self) -> np.ndarray:
        """Which draws changed, ``(chain, draw)`` bool."""
        return self.moved_by(self.symmetry.atoms)

    def moved_by(self, atoms: Iterable[str]) -> np.ndarray:
        """Which draws the relabeling of these atoms changed, ``(chain, draw)`` bool."""
        moved = np.zeros(self.source.shape, bool)
        for name in atoms:
            if name in self.rotations:
                turned = self.rotations[name]
                one = torch.eye(turned.shape[-1], dtype=turned.dtype)
                moved |= ((turned - one).abs() > 1e-9).flatten(2).any(-1).numpy()
            else:
                moved |= self.transpositions[name].reshape(*moved.shape, -1).any(-1)
            if name in self.signs:
                moved |= (self.signs[name] < 0).flatten(2).any(-1).numpy()
        return moved

    def ambiguous(self, odds: float = 0.1) -> np.ndarray:
        """Draws whose second-best labeling is nearly as good, ``(chain, draw)`` bool.

        The second best is that in which two units of an atom change places, or one its sign, at the least loss. Losses
        are log odds under independent normals about the reference, whose variance is the mean squared distance to it
        (or what ``weights`` made of it); for allocations, the methods' own objective in nats, or in data for ``"ecr"``.

        Args:
            odds: From which odds of the second best against the best a draw counts.

        Raises:
            ValueError: Odds are not between 0 and 1, or nothing was compared (``method="ordering"``).
        """
        if not 0 < odds < 1:
            raise ValueError(f"odds must lie between 0 and 1, got {odds}")
        if self.log_odds is None:
            raise ValueError(f"method='{self.method}' does not compare labelings: none is second best")
        return (self._losses < -np.log(odds)) & ~self.nonfinite()

    @cached_property
    def _losses(self) -> np.ndarray:
        return self.log_odds()

    @property
    def entropy_correction(self) -> float:
        """Log of the number of relabelings, in nats.

        The entropy of a posterior that is symmetric exceeds that of one of its copies by this much, if the copies do
        not overlap; so does its log evidence that of a unimodal approximation, whose ELBO this may be added to.
        """
        return self.symmetry.log_order

    def modes(self, *, valley: float = 0.5, smallest: float = 0.02) -> Modes:
        """The modes that are left: groups of relabeled draws between which few draws lie.

        The draws are cut in two wherever their density, along one of their principal directions, falls below
        ``valley`` times that of the lower of the two peaks beside it, then each part again.

        Args:
            valley: How deep a valley must be.
            smallest: Smallest share of the draws that counts as a mode.
        """
        chains, draws = self.source.shape
        every = slice(0, draws, -(-chains * draws // _THIN))
        usable = (~self.nonfinite())[:, every]
        if not usable.any():
            raise ValueError("every draw is NaN or infinite: there is no mode to find")
        sites = restricted(self.symmetry).sites or self.symmetry.sites
        maps = self.coordinates or dict.fromkeys(sites, lambda value: value)
        rows, values = [], {}
        for site, map_to in maps.items():
            parts = [self.relabel({site: self.source.read(site, c, every)}, c, every)[site] for c in range(chains)]
            value = map_to(torch.stack(parts)[torch.from_numpy(usable)].double())
            values[site] = value.numpy()
            spread = value.std(0, correction=0).square().mean().sqrt()
            rows.append((value / spread.clamp_min(1e-300)).reshape(len(value), -1).numpy())
        found = split_modes(np.concatenate(rows, 1), valley=valley, smallest=smallest)
        labels = np.full(self.source.shape, -1)
        labels[:, every][usable] = found
        count = found.max() + 1
        return Modes(
            tuple(float((found == k).mean()) for k in range(count)),
            tuple({s: v[found == k].mean(0) for s, v in values.items()} for k in range(count)),
            labels,
        )

    def nonfinite(self) -> np.ndarray:
        return nonfinite(self.source, self.symmetry)

    def report(self, *, modes: bool = True) -> pd.DataFrame:
        """Convergence before and after, as a ``pandas.DataFrame``: one row per site and one for all.

        Columns: the largest ``rhat`` and smallest bulk ``ess`` among the site's entries before and after, the number
        of ``relabeled`` draws, the mean of the ``transpositions`` from the reference per draw, whether rotations are
        left (``continuous``, see :attr:`continuous`), and in the last row the number of ``modes`` left and of draws
        ``flagged``, and two fractions of the draws: those ``ambiguous``, see :meth:`ambiguous`, in which labels are
        settled by noise, so that posterior means by unit are biased; and those ``improved`` by a second search, see
        :attr:`improved`. Non-finite draws are left out of R-hat and ESS. One site is held in memory at a time.

        Args:
            modes: Whether to look for modes.
        """
        return report(self, modes=modes)

    def summary(self) -> pd.DataFrame:
        """The table of :meth:`report` without the search for modes."""
        return report(self, modes=False)

    def __str__(self) -> str:
        chains, draws = self.source.shape
        lines = [
            f"AlignedDraws by {self.method}, {chains} chains of {draws} draws: {int(self.relabeled.sum())} "
            f"relabeled, {int(self.flagged.sum())} flagged; {self.iterations} passes, "
            + ("converged" if self.converged else "not converged: raise max_iterations"),
            *map(self._left, self.continuous),
            *([] if self.improved is None else [f"a second search improved {self.improved:.1%} of the draws"]),
            *(f"'{name}' was left as it was: {why}" for name, why in self.carried.unsettled.items()),
        ]
        return "\n".join([*lines, str(self.invariance)] if self.invariance else lines)

    def _left(self, name: str) -> str:
        """What is left of a continuous group, in words."""
        if self.symmetry.atoms[name].kind == "plane rotation":
            return f"the log joint does not change under rotations of the planes '{name}', which are as they were"
        if any(scaling.atom == name for scaling in self.symmetry.scalings):
            return f"the log joint does not change under scalings of '{name}', whose scales are as they were"
        return f"the log joint does not change under rotations of '{name}': use method='procrustes' or 'varimax'"

    # -- ArviZ -----------------------------------------------------------------------------------------------------

    def to_arviz(self) -> Any:
        """The relabeled draws as an ArviZ object.

        From ``InferenceData`` or ``DataTree``: the same object with another posterior group; all other groups, dims,
        coordinates and attributes are those of the input (``posterior_predictive`` and ``log_likelihood`` do not
        change under relabeling). Otherwise a new one, with ``diverging`` and ``relabeled`` in ``sample_stats``.

        Returns:
            What was given, where that was an ArviZ object or an ``xarray.Dataset``; else ``arviz.InferenceData`` on
            ArviZ 0.x, ``xarray.DataTree`` on 1.x.
        """
        return to_arviz(self)

    def to_zarr(self, path: str | os.PathLike[str]) -> None:
        """Writes what :meth:`to_arviz` returns to a Zarr store, slice by slice: the draws are never all in memory.

        For draws that were given as a path, or opened lazily: every group is copied, the posterior relabeled.
        ``xarray.open_datatree(path, engine="zarr")`` reads it, as does :func:`align_draws`.

        Args:
            path: A local folder that does not exist yet, or is empty. It appears once all is written.

        Raises:
            FileExistsError: There is something at the path.
            ImportError: The package ``zarr`` is not there.
        """
        write_draws(self, path)


def nonfinite(source: Source, symmetry: Symmetry, supports: Mapping[str, Any] | None = None) -> np.ndarray:
    """Draws with a NaN or an infinity in a site of the symmetry, ``(chain, draw)`` bool."""
    bad = torch.zeros(source.shape, dtype=torch.bool, device="cpu")
    for site in symmetry.sites:
        for chain, part in source.site_slices(site):
            value = source.read(site, chain, part)
            if value.is_complex():
                raise ValueError(
                    f"site '{site}': draws are complex; give real and imaginary parts as sites of their own"
                )
            infinite = ~value.reshape(len(value), -1).isfinite().all(-1)
            bad[chain, part] |= infinite
            if site in (supports or {}):
                check_support(site, value[~infinite], supports[site], chain)
    return bad.numpy()


def only_atom(symmetry: Symmetry, atom: str | None) -> str:
    """The atom named, or the only one there is."""
    names = list(symmetry.atoms)
    if atom is None and len(names) == 1:
        return names[0]
    if atom not in names:
        raise SymmetryError(f"which atom? atom= must be one of {names}, got {atom!r}")
    return atom
