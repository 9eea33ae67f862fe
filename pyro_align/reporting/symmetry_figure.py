"""The figure of a symmetry: each site's axes as boxes, and which atoms they share as a score with one line per atom.

A letter stands for an atom, as in an einsum; a number for an axis that keeps its order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from string import ascii_lowercase
from textwrap import fill
from typing import TYPE_CHECKING, Any

from pyro_align.axes import MARKS, Atom, Axis, Product, Sum, children, leaves, shown_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyro_align.symmetry.group import Symmetry

# Okabe & Ito (2008), told apart with every common color blindness. Atoms beyond the last color start again: the letter
# and the line tell them apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
GREY, INK = "0.88", "0.25"
NARROWEST = 3.6  # inches
CELL, ROW, PITCH = 0.30, 0.27, 0.84  # inches a cell, inches a row, cells from one atom's line to the next
SIGN, APART, INSET = 0.45, 0.45, 0.14  # cells: room for a sign, between two axes, and around a box in a box
HEAD = -1.0  # the row of the letters above the atoms' lines
WIDEST = 9.0  # cells of the widest axis; longer sums are drawn smaller


def pyplot() -> Any:
    """``matplotlib.pyplot``, or the advice to install it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'pyro_align[plots]'") from error
    return plt


def plot_symmetry(symmetry: Symmetry, *, ax: Axes | None = None, sites: Sequence[str] | None = None) -> Axes:
    """Which sites share which atoms; see :meth:`pyro_align.Symmetry.plot`.

    Args:
        symmetry: The symmetry.
        ax: Where to draw; by default a new figure as large as it takes.
        sites: Which sites, in which order; by default all of them.

    Raises:
        ValueError: A site that the symmetry does not have, or no site at all.
    """
    names = list(symmetry.sites) if sites is None else [sites] if isinstance(sites, str) else list(sites)
    unknown = [name for name in names if name not in symmetry.sites]
    if unknown:
        raise ValueError(f"no site {unknown}; there are {list(symmetry.sites)}")
    if not names:
        raise ValueError("there is no site to draw")
    rows = {name: symmetry.sites[name] for name in names}
    sheet = _Sheet.of(symmetry, rows)
    if ax is None:
        _, ax = pyplot().subplots(figsize=sheet.inches(list(rows)), layout="constrained")
    for y, terms in enumerate(rows.values()):
        if y % 2:
            ax.axhspan(y - 0.5, y + 0.5, color="0.97", lw=0, zorder=0)
        if not terms:
            ax.text(0.0, y, "scalar", va="center_baseline", fontsize=7.5, color="0.5")
        for left, term in zip(sheet.starts, terms, strict=False):
            width = _cells(term)
            _paint(ax, sheet, term, left, y, min(1.0, WIDEST / width), 0.74)
    _score(ax, sheet, list(rows.values()))
    _frame(ax, sheet, list(rows))
    _write(ax, symmetry, rows)
    return ax


@dataclass(frozen=True)
class _Sheet:
    """Where things stand: atoms by their lines from left to right, axes by their left ends, in cells."""

    atoms: dict[str, Atom]
    letters: dict[str, str]
    starts: list[float]
    score: float

    @classmethod
    def of(cls, symmetry: Symmetry, rows: dict[str, tuple[Axis, ...]]) -> _Sheet:
        carried = {a.name for terms in rows.values() for t in terms for a in leaves(t)}
        atoms = {name: symmetry.atoms[name] for name in _outer_first(symmetry.atoms) if name in carried}
        letters = {name: _letter(i) for i, name in enumerate(atoms)}
        starts, at = [], 0.0
        for axis in range(max(map(len, rows.values()))):
            starts.append(at)
            at += APART + max(min(_cells(terms[axis]), WIDEST) for terms in rows.values() if axis < len(terms))
        return cls(atoms, letters, starts, at + 0.6)

    def color(self, atom: Atom) -> str:
        """The atom's color; grey for what keeps its order."""
        return COLOURS[list(self.atoms).index(atom.name) % len(COLOURS)] if atom.name in self.atoms else GREY

    def line(self, name: str) -> float:
        """Where an atom's line stands."""
        return self.score + PITCH * list(self.atoms).index(name)

    @property
    def width(self) -> float:
        return self.score + PITCH * len(self.atoms)

    def label(self, name: str) -> str:
        """What stands over an atom's line: its name, its size, and what it is nested in."""
        atom = self.atoms[name]
        size = shown_size(atom.size)
        around = [self.letters.get(o, _short(o)) for o in atom.within]
        return f"{_short(name)}: {size}" + (f" in each {', '.join(around)}" if around else "")

    def inches(self, names: list[str]) -> tuple[float, float]:
        """Size of a figure in which everything is legible."""
        label = max((len(self.label(name)) for name in self.atoms), default=0)
        side, head = 0.07 * max(map(len, map(_short, names))), 0.06 * label * math.sin(math.radians(50))
        over = 0.05 * label if self.atoms else 0.0  # the last label leans out over the right edge
        return max(NARROWEST, 0.4 + side + CELL * self.width + over), 1.25 + head + ROW * len(names)


def _outer_first(atoms) -> Iterator[str]:
    """Names of the atoms, each followed by those nested in it."""
    parent = {name: next((o for o in reversed(a.within) if o in atoms), None) for name, a in atoms.items()}

    def below(name: str | None) -> Iterator[str]:
        for child in (c for c, p in parent.items() if p == name):
            yield child
            yield from below(child)

    return below(None)


def _letter(i: int) -> str:
    return (_letter(i // 26 - 1) if i >= 26 else "") + ascii_lowercase[i % 26]


def _short(name: str, most: int = 30) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]


# -- boxes -------------------------------------------------------------------------------------------------------------


def _holds(outer: Axis, rest: Sequence[Axis]) -> bool:
    """Whether something in the factors that follow is nested in this one."""
    return isinstance(outer, Atom) and any(outer.name in a.within for t in rest for a in leaves(t) if outer.name)


def _cells(term: Axis) -> float:
    """Width of a term."""
    parts = children(term)
    if not parts:
        return 1.0
    signs = len(parts) - 1
    if isinstance(term, Product):
        held = sum(_holds(f, parts[i + 1 :]) for i, f in enumerate(parts))
        return sum(map(_cells, parts)) + SIGN * (signs - held) + INSET * held
    return sum(map(_cells, parts)) + SIGN * signs


def _paint(ax: Axes, sheet: _Sheet, term: Axis, left: float, y: float, scale: float, height: float) -> None:
    """Draws a term as boxes: factors and summands side by side, what is nested inside its outer atom's box."""
    if isinstance(term, Atom):
        _box(ax, sheet, term, left, scale, y, height)
        _text(ax, sheet, term, left + scale / 2, y, scale)
        return
    parts, sign = children(term), "×" if isinstance(term, Product) else "+"
    right = left + scale * _cells(term)
    for i, part in enumerate(parts):
        rest = parts[i + 1 :]
        if sign == "×" and _holds(part, rest):
            _box(ax, sheet, part, left, right - left, y, height)
            _text(ax, sheet, part, left + scale / 2, y, scale)
            left, right, height = left + scale, right - scale * INSET, height * 0.70
            continue
        width = scale * _cells(part)
        _paint(ax, sheet, part, left, y, scale, height)
        left += width
        if rest:
            if scale > 0.3:
                style = {"ha": "center", "va": "center_baseline", "fontsize": 8 if scale > 0.7 else 6, "color": INK}
                ax.text(left + scale * SIGN / 2, y, sign, **style)
            left += scale * SIGN


def _box(ax: Axes, sheet: _Sheet, atom: Atom, left: float, width: float, y: float, height: float) -> None:
    outer = next((o for o in reversed(atom.within) if o in sheet.atoms), None)
    edge = "white" if outer is None else sheet.color(sheet.atoms[outer])
    rectangle = pyplot().Rectangle
    ax.add_patch(
        rectangle((left, y - height / 2), width, height, fc=sheet.color(atom), ec=edge, lw=1.6 if outer else 0.8)
    )


def _text(ax: Axes, sheet: _Sheet, atom: Atom, x: float, y: float, scale: float) -> None:
    if scale < 0.5:
        return
    free = atom.name in sheet.letters
    text = sheet.letters[atom.name] if free else shown_size(atom.size)
    ax.text(
        x,
        y,
        MARKS[atom.kind] + text,
        ha="center",
        va="center_baseline",
        fontsize=(8.5 if free else 7.5) * (1 if len(text) < 5 else 0.8),
        fontweight="bold" if free else "normal",
        color=_ink(sheet.color(atom)) if free else INK,
    )


def _ink(color: str) -> str:
    """White on dark colors, black on light ones."""
    red, green, blue = pyplot().matplotlib.colors.to_rgb(color)
    return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "black"


# -- the score ---------------------------------------------------------------------------------------------------------


def _score(ax: Axes, sheet: _Sheet, rows: list[tuple[Axis, ...]]) -> None:
    """A line for every atom, with a dot at every site that carries it, and in the dot how often if more than once."""
    for name, atom in sheet.atoms.items():
        x, color = sheet.line(name), sheet.color(atom)
        counts = [sum(a.name == name for t in terms for a in leaves(t)) for terms in rows]
        ys = [y for y, count in enumerate(counts) if count]
        ax.plot([x, x], [HEAD, ys[0]], color="0.8", lw=0.8, zorder=1)
        _box(ax, sheet, replace(atom, within=()), x - 0.36, 0.72, HEAD, 0.66)
        _text(ax, sheet, atom, x, HEAD, 1.0)
        ax.plot([x, x], [ys[0], ys[-1]], color=color, lw=2.2, zorder=2, solid_capstyle="round")
        ax.plot([x] * len(ys), ys, "o", color=color, ms=9, mec="white", mew=0.8, zorder=3, label=name)
        for y in ys:
            if counts[y] > 1:
                style = {"ha": "center", "va": "center_baseline", "fontsize": 6.5, "fontweight": "bold", "zorder": 4}
                ax.text(x, y, str(counts[y]), color=_ink(color), **style)
        inside = [sheet.line(other) for other, a in sheet.atoms.items() if name in a.within]
        if inside:  # a tint under the outer atom's line and those of the atoms nested in it
            low, high = min([x, *inside]) - PITCH / 2, max([x, *inside]) + PITCH / 2
            bottom, top = ys[0] - 0.5, ys[-1] + 0.5
            ax.fill_between([low, high], bottom, top, color=color, alpha=0.13, lw=0, zorder=0.5)


def _frame(ax: Axes, sheet: _Sheet, names: list[str]) -> None:
    ax.set_xlim(-0.2, sheet.width)
    ax.set_ylim(len(names) - 0.5, HEAD - 0.5)
    for axis, left in enumerate(sheet.starts):
        ax.text(left + 0.5, HEAD, f"[{axis}]", ha="center", va="center_baseline", fontsize=7.5, color="0.5")
    ax.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=8)
    ax.xaxis.tick_top()
    ax.set_xticks([sheet.line(name) for name in sheet.atoms], [sheet.label(name) for name in sheet.atoms])
    for label in ax.get_xticklabels():
        label.set(rotation=50, ha="left", va="bottom", rotation_mode="anchor", fontsize=8)
    ax.tick_params(length=0, pad=3)
    ax.spines[:].set_visible(False)


def _write(ax: Axes, symmetry: Symmetry, rows: dict[str, tuple[Axis, ...]]) -> None:
    """How many there are, above; how to read it, below."""
    order = f", log order {symmetry.log_order:.4g} nats"
    likelihood = " (likelihood alone)" if symmetry.scope == "likelihood" else ""
    atoms = len(symmetry.atoms)
    ax.set_title(f"{atoms} free atom{'s' * (atoms != 1)}{order}{likelihood}", fontsize=10, loc="left")
    found = [t for terms in rows.values() for t in terms]
    every = [part for t in found for part in _subterms(t)]
    notes = ["a letter is relabeled alike wherever it stands", "a number keeps its order"]
    if any(isinstance(t, Product) and not _holds(t.factors[0], t.factors[1:]) for t in every):
        notes.append("× flattened")
    if any(isinstance(t, Sum) for t in every):
        notes.append("+ joined end to end")
    if any(a.within for t in found for a in leaves(t) if not a.fixed):
        notes.append("framed: relabeled independently for each index of the atom of the frame's color")
    if any(a.odd for t in found for a in leaves(t)):
        notes.append("± with signs")
    if symmetry.rotated:
        notes.append("↻ rotated")
    if any(a.kind == "plane rotation" for a in symmetry.atoms.values()):
        notes.append("↻₂ by an angle")
    inches = ax.get_position().width * ax.figure.get_figwidth()
    ax.set_xlabel(fill("; ".join(notes), max(30, int(inches / 0.052))), fontsize=7.5, loc="left", color=INK)


def _subterms(term: Axis) -> Iterator[Axis]:
    yield term
    for part in children(term):
        yield from _subterms(part)
