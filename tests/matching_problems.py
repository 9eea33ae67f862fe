"""Small matching problems of every structure, shared by the tests of `pyro_align.matching`."""

from dataclasses import dataclass

import torch

from pyro_align.axes import Atom, Odd
from pyro_align.symmetry.group import Symmetry


@dataclass(frozen=True)
class Structure:
    """A symmetry, which features are odd, and whether its gain matrices alone settle a planted problem."""

    symmetry: Symmetry
    odd: tuple[bool, ...] | None = None
    quadratic_only: bool = False


def structure(axes, shapes, *, odd=None, quadratic_only=False, **options):
    return Structure(Symmetry.from_axes(axes, shapes=shapes, **options), odd, quadratic_only)


STRUCTURES = {
    "one layer": structure(
        {"w1": ("h", None), "b1": ("h",), "w2": (None, "h"), "b2": (None,)},
        {"w1": (4, 3), "b1": (4,), "w2": (2, 4), "b2": (2,)},
    ),
    "two layers": structure(
        {"w1": ("a", None), "w2": ("b", "a"), "w3": (None, "b")},
        {"w1": (4, 3), "w2": (3, 4), "w3": (2, 3)},
    ),
    "convolution flattened": structure(
        {"k1": ("c", None, None, None), "k2": ("d", "c", None, None), "w": (None, ("d", 4))},
        {"k1": (3, 2, 2, 2), "k2": (4, 3, 2, 2), "w": (2, 16)},
    ),
    "concatenation": structure(
        {"w1": ("a", None), "w2": ("b", None), "w3": (None, ["a", "b", 2])},
        {"w1": (3, 2), "w2": (4, 2), "w3": (3, 9)},
    ),
    "sum within product": structure(
        {"w1": ("a", None), "w2": ("b", None), "w3": (None, (2, ["a", "b"]))},
        {"w1": (3, 2), "w2": (2, 2), "w3": (3, 10)},
    ),
    "recurrent": structure(
        {"wi": ("h", None), "wh": ("h", "h"), "wo": (None, "h")},
        {"wi": (4, 2), "wh": (4, 4), "wo": (2, 4)},
    ),
    "gates": structure(
        {"wi": (["h"] * 4, None), "wh": (["h"] * 4, "h"), "wo": (None, "h")},
        {"wi": (16, 2), "wh": (16, 4), "wo": (2, 4)},
    ),
    "only quadratic": structure({"transition": ("s", "s")}, {"transition": (4, 4)}, quadratic_only=True),
    "square in one axis": structure({"pairs": (("s", "s"),), "first": ("s",)}, {"pairs": (16,), "first": (4,)}),
    "heads": structure(
        {
            "q": ((Atom("heads", 2), "dims"), None),
            "k": (("heads", "dims"), None),
            "v": (("heads", "values"), None),
            "o": (None, ("heads", "values")),
            "scale": ("heads",),
        },
        {"q": (6, 3), "k": (6, 3), "v": (4, 3), "o": (3, 4), "scale": (2,)},
        within={"dims": "heads", "values": "heads"},
    ),
    "nested on another axis": structure(
        {"w": ("experts", "units", None), "b": ("experts", "units"), "router": (None, "experts")},
        {"w": (3, 3, 2), "b": (3, 3), "router": (2, 3)},
        within={"units": "experts"},
    ),
    "nested twice": structure(
        {"w": ("a", "b", "c"), "v": ("a", "b", None), "u": ("a", None)},
        {"w": (2, 2, 2), "v": (2, 2, 3), "u": (2, 2)},
        within={"b": "a", "c": ("a", "b")},
    ),
    "siblings in one site": structure(
        {"w": ("heads", "left", "right"), "l": ("heads", "left", None)},
        {"w": (2, 3, 3), "l": (2, 3, 2)},
        within={"left": "heads", "right": "heads"},
    ),
    "two atoms around": structure(
        {"w": ("a", "b", "c"), "va": ("a", None), "vb": ("b", None)},
        {"w": (2, 2, 3), "va": (2, 2), "vb": (2, 2)},
        within={"c": ("a", "b")},
    ),
    "within a fixed atom": structure(
        {"w": (Atom("group", 3, fixed=True), "units", None)}, {"w": (3, 3, 2)}, within={"units": "group"}
    ),
    "heads and recurrence": structure(
        {"w": (("heads", "dims"), ("heads", "dims")), "v": (("heads", "dims"), None), "s": ("heads", 2)},
        {"w": (6, 6), "v": (6, 2), "s": (2, 2)},
        within={"dims": "heads"},
    ),
    "signs": structure(
        {"w1": (Odd("h"), None), "w2": (None, Odd("h")), "scale": ("h",)},
        {"w1": (3, 3), "w2": (2, 3), "scale": (3,)},
        odd=(True, False),
    ),
    "signs, two layers": structure(
        {"w1": (Odd("a"), None), "w2": (Odd("b"), Odd("a")), "w3": (None, Odd("b"))},
        {"w1": (3, 3), "w2": (3, 3), "w3": (2, 3)},
        odd=(True, False),
    ),
    "signs, recurrent": structure(
        {"w1": (Odd("h"), None), "wh": (Odd("h"), Odd("h"))}, {"w1": (3, 3), "wh": (3, 3)}, odd=(True, False)
    ),
    "signs, nested": structure(
        {"w": ("heads", Odd("d"), None), "s": (Odd("heads"), None)},
        {"w": (2, 3, 3), "s": (2, 2)},
        odd=(True, False),
        within={"d": "heads"},
    ),
    "signs, nested, both": structure(
        {"w": (Odd("heads"), Odd("d"), None), "s": (Odd("heads"), None)},
        {"w": (2, 2, 3), "s": (2, 2)},
        odd=(True, False),
        within={"d": "heads"},
    ),
    "nothing to match": structure({"w": (None, None)}, {"w": (2, 3)}),
    "a scalar and a free atom": structure({"c": (), "w": ("h", None)}, {"c": (), "w": (3, 2)}),
}


def features(symmetry, seed, *, count=2, dtype=torch.float64):
    """Independent normal features for every site."""
    generator = torch.Generator().manual_seed(seed)
    return {
        site: tuple(torch.randn(shape, generator=generator, dtype=dtype) for _ in range(count))
        for site, shape in symmetry.shapes.items()
    }


def relabel(values, permutation, odd=None, noise=0.0, seed=0):
    """The features after a relabeling, with normal noise."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for site, tensors in values.items():
        signs = odd or (False,) * len(tensors)
        moved = [permutation.apply_site(site, t, signs=o) for t, o in zip(tensors, signs, strict=True)]
        out[site] = tuple(t + noise * torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in moved)
    return out
