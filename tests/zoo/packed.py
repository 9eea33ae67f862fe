"""Attention as language models pack it: one projection, cut in other ways than into three equal parts."""

from __future__ import annotations

import math

import torch
from problems import bayesian, normal, observe, problem
from torch import nn

from pyro_align.axes import Atom, Odd

E = 4
KV, GROUP, QK, VO = Atom("kv", 2), Atom("group", 2), Atom("qk", 2), Atom("vo", 2)


def attend(q, k, v):
    """``(batch, ..., time, dimensions)``."""
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v


class Packed(nn.Module):
    """One projection for queries, keys and values, cut by ``cut`` into tensors that ``attend`` takes."""

    def __init__(self, rows: int, width: int, cut):
        super().__init__()
        self.qkv, self.o, self.cut = nn.Linear(E, rows, bias=False), nn.Linear(width, 2), cut

    def forward(self, x):
        out = attend(*self.cut(self.qkv(x)))
        return self.o(out.movedim(-2, 1).flatten(2))


HEAD = Atom("head", 3)


@problem({"qkv.weight": ([(HEAD, QK), QK, VO], None), "o.weight": (None, (HEAD, VO))}, oracle=False, odd=("qk", "vo"))
def attention_of_many_queries_and_one_key():
    """One key and one value serve all heads, so that dimensions are the same in each."""

    def cut(packed):
        packed = packed.view(*packed.shape[:2], 5, 2).narrow(1, 0, packed.shape[1])  # all of them
        q, k, v = packed[:, :, :-2], packed[:, :, [-2]], packed[:, :, [-1]]
        return (t.transpose(1, 2) for t in (q, k, v))

    return bayesian(Packed(10, 6, cut)), (torch.randn(2, 3, E),)


GROUPED = {
    "qkv.weight": ((KV, [(GROUP, QK), QK, VO]), None),
    "o.weight": (None, (KV, GROUP, VO)),
}
WITHIN = {"group": "kv", "qk": "kv", "vo": "kv"}


def grouped(cut):
    turned = lambda packed: (t.permute(0, 2, 3, 1, 4) for t in cut(packed))  # noqa: E731
    return bayesian(Packed(16, 8, turned)), (torch.randn(2, 3, E),)


@problem(GROUPED, within=WITHIN, oracle=False, odd=("qk", "vo"))
def attention_packed_group_by_group():
    def cut(packed):
        packed = packed.view(*packed.shape[:2], 2, 4, 2)
        return packed[:, :, :, :-2], packed[:, :, :, [-2]], packed[:, :, :, [-1]]

    return grouped(cut)


@problem(GROUPED, within=WITHIN, oracle=False, odd=("qk", "vo"))
def attention_packed_group_by_group_and_split():
    return grouped(lambda packed: packed.view(*packed.shape[:2], 2, 4, 2).split([2, 1, 1], 3))


@problem(
    {"qkv.weight": ((KV, [QK, QK, VO]), None), "o.weight": (None, (KV, VO))},
    within={"qk": "kv", "vo": "kv"},
    odd=("qk", "vo"),
)
def attention_packed_head_by_head():
    def cut(packed):
        packed = packed.view(*packed.shape[:2], 2, 3, 2)
        return (packed[:, :, :, i].transpose(1, 2) for i in range(3))

    return bayesian(Packed(12, 4, cut)), (torch.randn(2, 3, E),)


KEPT = Atom("kv!", 2)


@problem(
    {"qkv.weight": ([(KEPT, QK), (KEPT, QK), (KEPT, VO)], None), "o.weight": (None, (KEPT, VO))},
    within={"qk": "kv!", "vo": "kv!"},
    odd=("qk", "vo"),
)
def attention_with_a_scale_for_each_head():
    """The prior tells the heads apart, and leaves the dimensions within each free."""

    def model(x):
        scale = torch.tensor([0.5, 0.5, 0.7, 0.7]).repeat(3)
        qkv = normal("qkv.weight", 12, E, scale=scale[:, None].expand(12, E))
        q, k, v = (t.unflatten(-1, (2, 2)).transpose(1, 2) for t in (x @ qkv.T).chunk(3, -1))
        observe(attend(q, k, v).transpose(1, 2).flatten(2) @ normal("o.weight", 2, 4).T)

    return model, (torch.randn(2, 3, E),)


class Rotated(nn.Module):
    """A table that the module builds anew each time (not saved) tells dimensions apart; one that is saved is a site."""

    def __init__(self, saved: bool):
        super().__init__()
        self.up, self.down = nn.Linear(2, 4), nn.Linear(4, 2)
        self.register_buffer("scale", torch.linspace(1, 2, 4), persistent=saved)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)) * self.scale)


@problem({"up.weight": (None, None)}, oracle=False)  # the search takes every buffer for a site
def table_that_is_not_saved():
    return Rotated(False), (torch.randn(3, 2),)


@problem(
    {"up.weight": ("h", None), "up.bias": ("h",), "down.weight": (None, "h"), "scale": ("h",)},
    signs={"up.weight": (Odd("h"), None), "up.bias": (Odd("h"),), "down.weight": (None, Odd("h"))},
)
def table_that_is_saved():
    return Rotated(True), (torch.randn(3, 2),)


@problem({"w1": ("h", None), "w2": (None, None)})
def largest_features():
    """Which units are the largest does not matter as long as nothing asks where they stood."""

    def model(x):
        w1, w2 = normal("w1", 4, 2), normal("w2", 2, 3)
        observe((x @ w1.T).topk(3).values @ w2.T)

    return model, (torch.randn(3, 2),)


TURNED = (Atom("head", 2), 4)


@problem(
    {
        **{f"{name}.weight": (TURNED, None) for name in "qk"},
        "v.weight": ((Atom("head", 2), Atom("vo", 4)), None),
        "o.weight": (None, (Atom("head", 2), Atom("vo", 4))),
    },
    within={"vo": "head"},
    oracle=False,
    odd="vo",
)
def rotation_by_complex_numbers():
    """Neighboring dimensions as one complex number, turned by an angle for its frequency: all keep their order."""

    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(3, 8, bias=False) for _ in range(3))
            self.o = nn.Linear(8, 2, bias=False)

        def forward(self, x):
            angle = torch.arange(x.shape[1])[:, None] * torch.tensor([1.0, 0.3])
            turn = torch.polar(torch.ones_like(angle), angle)
            q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
            q, k = (
                torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (2, 2))) * turn).flatten(-2) for t in (q, k)
            )
            return self.o(attend(q, k, v).transpose(1, 2).flatten(2))

    return bayesian(Turned()), (torch.randn(2, 3, 3),)
