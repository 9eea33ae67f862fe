"""Tables, in plain text and of losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pyro_align.axes import axis_size

if TYPE_CHECKING:
    import pandas as pd

    from pyro_align.symmetry.group import Symmetry

_V = TypeVar("_V")


class ByLoss(Generic[_V]):
    """A result that has something for every data set and loss."""

    @property
    def _by_loss(self) -> Mapping[tuple[str, str], _V]:
        raise NotImplementedError

    @property
    def evaluations(self) -> tuple[str, ...]:
        """Names of the data sets."""
        return tuple(dict.fromkeys(evaluation for evaluation, _ in self._by_loss))

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the losses."""
        return tuple(dict.fromkeys(loss for _, loss in self._by_loss))

    def __getitem__(self, key: str | tuple[str, str]) -> _V:
        """``result["train", "negative_elbo"]``, or ``result["negative_elbo"]`` on the first data set."""
        key = (self.evaluations[0], key) if isinstance(key, str) else key
        if key not in self._by_loss:
            raise KeyError(f"no loss {key}; there are data sets {self.evaluations} and losses {self.losses}")
        return self._by_loss[key]


def loss_table(rows: Mapping[tuple[str, str], Mapping[str, Any]]) -> pd.DataFrame:
    """One row per data set and loss."""
    import pandas as pd

    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index = pd.MultiIndex.from_tuples(frame.index, names=["evaluation", "loss"])
    return frame


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Columns padded to their widest entry; the columns in ``right`` are right-aligned."""
    cells = [list(map(str, head)), *(list(map(str, row)) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        parts = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(parts).rstrip()

    return "\n".join([line(cells[0]), "  ".join("-" * w for w in widths), *map(line, cells[1:])])


def symmetry_table(symmetry: Symmetry) -> str:
    """The atoms with their sizes, then the sites with their axes."""
    if not symmetry.sites:
        return "Symmetry without sites"
    count = f", log order {symmetry.log_order:.1f} nats"
    if symmetry.rotated:
        count += f", rotations of dimension {symmetry.dimension}"
    lines = [
        f"Symmetry of {len(symmetry.sites)} sites: {len(symmetry.atoms)} free atoms{count} (scope: {symmetry.scope})"
    ]
    if symmetry.atoms:
        rows = []
        for name, atom in symmetry.atoms.items():
            carriers = [f"{site}[{axis}]" for site, axis in symmetry.carriers[name]]
            shown = ", ".join(carriers[:6]) + (f", ... {len(carriers) - 6} more" if len(carriers) > 6 else "")
            rows.append([str(atom), str(atom.size), atom.kind, " > ".join(atom.within), shown])
        lines += ["", text_table(["atom", "size", "kind", "within", "carried by site[axis]"], rows, right=(1,))]
    rows = [
        [site, " x ".join(str(axis_size(t)) for t in terms) or "scalar", " | ".join(map(str, terms))]
        for site, terms in symmetry.sites.items()
    ]
    lines += ["", text_table(["site", "shape", "axes"], rows)]
    if symmetry.scalings:
        lines += ["", "positive scalings of units: " + "; ".join(map(str, symmetry.scalings))]
    if symmetry.stacks:
        parts = (f"{site} stands for {', '.join(members)}" for site, members in symmetry.stacks.items())
        lines += ["", "stacked along a first axis: " + "; ".join(parts)]
    kin = [o for o in symmetry.opaque if o.is_family]
    if names := ", ".join(sorted({o.operation for o in symmetry.opaque if o not in kin})):
        count = sum(any(not r.must for r in reasons) for reasons in symmetry.reasons.values())
        fixed = f"{count} {'axis' if count == 1 else 'axes'}" if count else "axes"
        lines += [
            "",
            f"{fixed} fixed, in whole or part, for want of a rule for {names}; symmetry.why(site, axis) says why",
        ]
    if kin:
        families = "; ".join(", ".join(o.sites) for o in kin)
        lines += ["", f"used alike, so they may change places as wholes, which whole_sites=True looks for: {families}"]
    if symmetry.rests:
        held = ", ".join(dict.fromkeys(f"{r.tensor}[{r.axis}]" for r in symmetry.rests))
        lines += ["", f"holds only while these stay constant: {held}"]
    if symmetry.certificate is not None:
        lines += ["", str(symmetry.certificate)]
    return "\n".join(lines)
