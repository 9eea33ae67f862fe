"""What operations are, said once: families of operations that behave alike, and sums of products as einsums.

Rules of every domain, the probes of activations and pre-activations, and the rewriting of selections read these tables.
An operation of one's own is added by one declaration: :func:`contraction` for a sum of products,
``@rule(name, family="view")`` (:mod:`pyro_align.discovery.registry`) for a view, whose rule says where its axes go.

    >>> from pyro_align.discovery import contraction
    >>> contraction("mylib.scores", "bqd,bkd->bqk")
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

LEADING = "ABCDEFGH"  # labels of the axes that "..." stands for


@dataclass(frozen=True)
class Contraction:
    """A sum of products, possibly added to a third tensor.

    Attributes:
        equation: As for ``torch.einsum``, two factors; ``...`` stands for leading axes of the first. Letters that lead
            the second and that the tensor has no axis for are left out.
        factors: Which arguments of the operation are the factors.
        added: Which argument, if given, is broadcast and added to the product.
    """

    equation: str
    factors: tuple[int, int] = (0, 1)
    added: int | None = None

    def labels(self, ranks: Sequence[int]) -> tuple[str, str, str]:
        """Labels of both factors and of the product, for factors with this many axes."""
        given, out = self.equation.split("->")
        first, second = given.split(",")
        lead = LEADING[: ranks[0] - len(first.replace("...", ""))] if "..." in first else ""
        first, out = first.replace("...", lead), out.replace("...", lead)
        second = second[max(0, len(second) - ranks[1]) :]
        return first, second, "".join(c for c in out if c in first + second)

    def read(self, args: Sequence[Any]) -> tuple[tuple[Any, str, Any, str, str], Any]:
        """The first factor and its labels, the second and its, those of the product; and what is added, or None."""
        left, right = (args[i] for i in self.factors)
        first, second, out = self.labels((left.ndim, right.ndim))
        return (left, first, right, second, out), self.added_to(args)

    def added_to(self, args: Sequence[Any]) -> Any:
        """The argument that is added to the product, or None."""
        return args[self.added] if self.added is not None and self.added < len(args) else None


FAMILIES: dict[str, str] = {}  # operation -> family
CONTRACTIONS: dict[str, Contraction] = {}
UNTAGGED = {"aten.leaky_relu.default", "aten.ldexp.Tensor"}  # pointwise, of which older versions do not say so
SPATIAL = {"1d": 1, "2d": 2, "3d": 3}


def declare(family: str, *operations: str) -> None:
    """Puts operations into a family, by name (``"aten.mm"``, every overload) or by overload (``"aten.mm.default"``)."""
    for name in operations:
        FAMILIES[name] = family


def contraction(operation: str, equation: str, *, factors: tuple[int, int] = (0, 1), added: int | None = None) -> None:
    """Declares an operation that sums products: every domain and probe then knows it.

    Args:
        operation: Its name, such as ``"mylib.scores"``.
        equation: What it computes, as for ``torch.einsum``: ``"bqd,bkd->bqk"``; ``...`` stands for leading axes of the
            first factor.
        factors: Which of its arguments are the factors, counted from 0.
        added: Which of its arguments, if given, is broadcast and added to the product.
    """
    declare("contraction", operation)
    CONTRACTIONS[operation] = Contraction(equation, factors, added)


def withdraw(operation: str) -> None:
    """Takes a declaration back."""
    FAMILIES.pop(operation, None)
    CONTRACTIONS.pop(operation, None)


@functools.cache
def names_of(operation: Any) -> tuple[str, str]:
    """How tables may name an operator: by overload, by packet."""
    name = str(operation)
    return name, name.rsplit(".", 1)[0]


def families_of(operation: Any) -> tuple[str, ...]:
    """The families of an operator: the one declared, then ``pointwise`` where PyTorch tags it so."""
    declared = tuple(FAMILIES[name] for name in names_of(operation) if name in FAMILIES)[:1]
    return (*declared, "pointwise") if is_pointwise(operation) else declared


def is_pointwise(operation: Any) -> bool:
    """Whether an operator works on each entry by itself, as PyTorch tags it."""
    return torch.Tag.pointwise in getattr(operation, "tags", ()) or str(operation) in UNTAGGED


def is_a(operation: Any, *families: str) -> bool:
    """Whether an operator was declared to be of one of the families."""
    return any(FAMILIES.get(name) in families for name in names_of(operation))


def contraction_of(operation: Any) -> Contraction | None:
    """What a sum of products computes; None for any other operator."""
    return next((CONTRACTIONS[name] for name in names_of(operation) if name in CONTRACTIONS), None)


def spatial_axes(operation: Any) -> int:
    """The number of trailing axes that are positions, read off the operator's name (``avg_pool2d``)."""
    name = operation._opname
    return next(n for suffix, n in SPATIAL.items() if suffix in name)


def aten(names: str) -> list[str]:
    """Names of operations of PyTorch's own."""
    return [f"aten.{name}" for name in names.split()]


# -- the tables --------------------------------------------------------------------------------------------------------

declare("same", *aten("clone alias detach lift_fresh_copy lift_fresh contiguous"))
declare("cast", *aten("_to_copy to"), "prims.convert_element_type", "prims.device_put")
declare("reshape", *aten("view.default _unsafe_view reshape _reshape_alias view_copy.default _reshape_copy"))
declare("moves", *aten("flip roll"))  # and those declared with their rules of axes
declare("zeros", *aten("zeros_like new_zeros zero"))
declare("ones", *aten("ones_like new_ones"))
declare("full", *aten("full_like fill new_full"))
declare("empty", *aten("empty_like new_empty new_empty_strided"))

declare(  # f(-x) = -f(x)
    "odd",
    *aten(
        "neg sin tan sinh tanh asin atan asinh atanh arcsin arctan arcsinh arctanh erf erfinv special_erf "
        "special_erfinv sign sgn trunc fix frac round.default positive deg2rad rad2deg special_i1 special_i1e "
        "special_bessel_j1 hardshrink softshrink"
    ),
)
declare(  # f(-x) = f(x), in each argument
    "even",
    *aten(
        "abs absolute square cos cosh sinc special_sinc i0 special_i0 special_i0e special_bessel_j0 isnan isinf "
        "isfinite logical_not logical_and logical_or logical_xor hypot"
    ),
)
declare("add", *aten("add sub rsub"))
declare("multiply", *aten("mul multiply"))
declare("divide", *aten("div divide true_divide"))

declare("sum", *aten("sum mean nansum"))
declare("product", *aten("prod"))
declare("extremum", *aten("amax amin logsumexp max.default min.default median.default"))
declare("norm", *aten("linalg_vector_norm norm.Scalar norm.ScalarOpt_dim count_nonzero any all"))
declare("variance", *aten("var std"))
declare("variance and mean", *aten("var_mean std_mean"))
declare("softmax", *aten("_softmax _log_softmax _safe_softmax"))

declare(  # weighted sums over positions
    "over positions",
    *aten(
        "avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d upsample_nearest1d "
        "upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d _upsample_bilinear2d_aa upsample_linear1d "
        "upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d"
    ),
)
declare("copies at borders", *aten(" ".join(f"{k}_pad{d}d" for k in ("reflection", "replication") for d in (1, 2, 3))))
declare(
    "largest of positions",
    *aten("max_pool2d_with_indices adaptive_max_pool2d max_pool3d_with_indices adaptive_max_pool3d"),
)

for _name, _equation in {
    "mm": "ik,kj->ij",
    "mv": "ik,k->i",
    "dot": "k,k->",
    "vdot": "k,k->",
    "bmm": "bik,bkj->bij",
    "ger": "i,j->ij",
    "outer": "i,j->ij",
}.items():
    contraction(f"aten.{_name}", _equation)
for _name, _equation in {
    "addmm": "ik,kj->ij",
    "_sparse_addmm": "ik,kj->ij",
    "addmv": "ik,k->i",
    "baddbmm": "bik,bkj->bij",
    "addr": "i,j->ij",
    "addbmm": "bik,bkj->ij",
}.items():
    contraction(f"aten.{_name}", _equation, factors=(1, 2), added=0)
contraction("aten.linear", "...k,jk->...j", added=2)
contraction("aten.convolution", "bc,oc->bo", added=2)  # of channels; each domain has a rule for groups and positions
