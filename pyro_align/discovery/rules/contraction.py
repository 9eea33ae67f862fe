"""Sums of products."""

from __future__ import annotations

from pyro_align.discovery.rules import rule
from pyro_align.discovery.terms import ONE

# operation -> axes of both factors and of their product, which is added to a third tensor
ADDED_PRODUCTS = {
    "addmm": ("ik", "kj", "ij"),
    "addmv": ("ik", "k", "i"),
    "baddbmm": ("bik", "bkj", "bij"),
    "addr": ("i", "j", "ij"),
    "addbmm": ("bik", "bkj", "ij"),
}


def contract(call, left, left_labels: str, right, right_labels: str, out: str):
    """A two-operand einsum: axes with one label are merged, the full product is witnessed."""
    found: dict[str, object] = {}
    for x, labels in ((left, left_labels), (right, right_labels)):
        for label, term, n in zip(labels, x.axes, x.shape, strict=True):
            known = found.get(label)
            if known is None or (known is ONE and n != 1):
                found[label] = term
            elif n != 1:
                found[label] = call.merge(known, term)
    call.witness(list(found.values()))
    return [found[label] for label in out]


@rule("aten.mm")
def mm(call, a, b, **kwargs):
    """Matrix times matrix."""
    return contract(call, a, "ik", b, "kj", "ij")


@rule("aten.mv")
def mv(call, a, b):
    """Matrix times vector."""
    return contract(call, a, "ik", b, "k", "i")


@rule("aten.dot", "aten.vdot")
def dot(call, a, b):
    """Inner product."""
    return contract(call, a, "k", b, "k", "")


@rule("aten.bmm")
def bmm(call, a, b, **kwargs):
    """Batched matrix product."""
    return contract(call, a, "bik", b, "bkj", "bij")


@rule("aten.ger", "aten.outer")
def outer(call, a, b):
    """Outer product."""
    return contract(call, a, "i", b, "j", "ij")


@rule("aten.addmm", "aten.addmv", "aten.baddbmm", "aten.addr", "aten.addbmm")
def add_product(call, c, a, b, **kwargs):
    """A product plus a broadcast term."""
    left, right, out = ADDED_PRODUCTS[call.node.target._opname]
    axes = contract(call, a, left, b, right, out)
    return call.broadcast(call.tensor(axes), c)


@rule("aten.linear")
def linear(call, x, weight, bias=None):
    """``x @ weight.T + bias``."""
    lead = "abcdefgh"[: x.ndim - 1]
    axes = contract(call, x, lead + "k", weight, "jk"[-weight.ndim :], lead + ("j" if weight.ndim == 2 else ""))
    return axes if bias is None else call.broadcast(call.tensor(axes), bias)
