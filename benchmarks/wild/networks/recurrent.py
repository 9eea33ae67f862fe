"""Recurrent cells spelled out, and what is built on them."""

import torch
from torch import nn

from benchmarks.wild.catalog import layer, net, network

S, B, X, W = 3, 2, 2, 4  # steps, batch, inputs, width
SEQUENCE = (S, B, X)
GATED = {"u": (["h"] * 4, None), "w": (["h"] * 4, "h"), "b": (["h"] * 4,), "o.weight": (None, "h")}


def scan(step, out, *start):
    """A network that runs a step over the sequence and reads the last state."""

    def forward(s, x):
        state = start or (torch.zeros(B, W),)
        for t in range(S):
            state = step(s, x[t], *state)
            state = state if isinstance(state, tuple) else (state,)
        return out(s, state[0])

    return forward


def head(s, h):
    return s.o(h)


def lstm(gates):
    """An LSTM by its four gates, which `gates` takes from the input and the state."""

    def step(s, x, h, c):
        i, f, g, o = gates(s, x, h)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def forward(s, x):
        return scan(step, head, torch.zeros(B, W), torch.zeros(B, W))(s, x)

    return forward


for spelling, gates in {
    "chunk": lambda s, x, h: (x @ s.u.T + h @ s.w.T + s.b).chunk(4, 1),
    "slices": lambda s, x, h: [(x @ s.u.T + h @ s.w.T + s.b)[:, k * W : k * W + W] for k in range(4)],
    "view_unbind": lambda s, x, h: (x @ s.u.T + h @ s.w.T + s.b).view(B, 4, W).unbind(1),
    "row_blocks": lambda s, x, h: [
        x @ u.T + h @ w.T + b for u, w, b in zip(s.u.chunk(4), s.w.chunk(4), s.b.chunk(4), strict=True)
    ],
    "concatenated_input": lambda s, x, h: (torch.cat([x, h], 1) @ torch.cat([s.u, s.w], 1).T + s.b).split(W, 1),
}.items():
    network(
        f"lstm_{spelling}",
        "LSTM cell by hand, gates by " + spelling.replace("_", " "),
        GATED,
        lambda gates=gates: net(lstm(gates), u=(4 * W, X), w=(4 * W, W), b=4 * W, o=nn.Linear(W, 1)),
        SEQUENCE,
    )
network(
    "lstm_four_layers",
    "LSTM with a linear layer for each gate on input and state side by side",
    {f"{g}.{p}": t for g in "ifgo" for p, t in (("weight", ("h", [None, "h"])), ("bias", ("h",)))}
    | {"out.weight": (None, "h")},
    lambda: net(
        lambda s, x: s.out(
            scan(
                lambda s, x, h, c: (
                    lambda z: (lambda c: (torch.sigmoid(s.o(z)) * torch.tanh(c), c))(
                        torch.sigmoid(s.f(z)) * c + torch.sigmoid(s.i(z)) * torch.tanh(s.g(z))
                    )
                )(torch.cat((x, h), -1)),
                lambda s, h: h,
                torch.zeros(B, W),
                torch.zeros(B, W),
            )(s, x)
        ),
        i=nn.Linear(X + W, W),
        f=nn.Linear(X + W, W),
        g=nn.Linear(X + W, W),
        o=nn.Linear(X + W, W),
        out=nn.Linear(W, 1),
    ),
    SEQUENCE,
)
network(
    "lstm_stacked_gates",
    "LSTM with an axis of gates, einsum",
    {"u": (None, "h", None), "w": (None, "h", "h"), "b": (None, "h"), "o.weight": (None, "h")},
    lambda: net(
        lstm(lambda s, x, h: torch.einsum("ghx,bx->gbh", s.u, x) + torch.einsum("ghk,bk->gbh", s.w, h) + s.b[:, None]),
        u=(4, W, X),
        w=(4, W, W),
        b=(4, W),
        o=nn.Linear(W, 1),
    ),
    SEQUENCE,
)
network(
    "lstm_peephole",
    "Gers et al. 2002",
    GATED | {"p": (None, "h")},
    lambda: net(
        lambda s, x: scan(
            lambda s, x, h, c: (
                lambda i, f, g, o: (lambda c: (torch.sigmoid(o + s.p[2] * c) * c.tanh(), c))(
                    torch.sigmoid(f + s.p[1] * c) * c + torch.sigmoid(i + s.p[0] * c) * g.tanh()
                )
            )(*(x @ s.u.T + h @ s.w.T + s.b).chunk(4, 1)),
            head,
            torch.zeros(B, W),
            torch.zeros(B, W),
        )(s, x),
        u=(4 * W, X),
        w=(4 * W, W),
        b=4 * W,
        p=(3, W),
        o=nn.Linear(W, 1),
    ),
    SEQUENCE,
)
network(
    "lstm_with_projection",
    "torch.nn.LSTM(proj_size)",
    {
        "r.weight_ih_l0": (["h"] * 4, None),
        "r.weight_hh_l0": (["h"] * 4, "p"),
        "r.bias_ih_l0": (["h"] * 4,),
        "r.bias_hh_l0": (["h"] * 4,),
        "r.weight_hr_l0": ("p", "h"),
        "o.weight": (None, "p"),
    },
    lambda: net(lambda s, x: s.o(s.r(x)[0][-1]), r=nn.LSTM(X, W, proj_size=3), o=nn.Linear(3, 1)),
    SEQUENCE,
)
network(
    "gru_by_hand",
    "Cho et al. 2014, reset before the candidate's matrix",
    {"u": (["h"] * 3, None), "w": (["h"] * 2, "h"), "c": ("h", "h"), "o.weight": (None, "h")},
    lambda: net(
        scan(
            lambda s, x, h: (
                lambda a, rz: (lambda r, z: (1 - z) * h + z * torch.tanh(a[2] + (r * h) @ s.c.T))(
                    torch.sigmoid(a[0] + rz[0]), torch.sigmoid(a[1] + rz[1])
                )
            )((x @ s.u.T).chunk(3, 1), (h @ s.w.T).chunk(2, 1)),
            head,
        ),
        u=(3 * W, X),
        w=(2 * W, W),
        c=(W, W),
        o=nn.Linear(W, 1),
    ),
    SEQUENCE,
)
network(
    "gru_cell_module",
    "torch.nn.GRUCell in a loop",
    {f"r.weight_{k}": (["h"] * 3, "h" if k == "hh" else None) for k in ("ih", "hh")}
    | {f"r.bias_{k}": (["h"] * 3,) for k in ("ih", "hh")}
    | {"o.weight": (None, "h")},
    lambda: net(scan(lambda s, x, h: s.r(x, h), head), r=nn.GRUCell(X, W), o=nn.Linear(W, 1)),
    SEQUENCE,
)
network(
    "minimal_gru_by_cumulative_sums",
    "minGRU (Feng et al. 2024): a scan in logarithms",
    layer("z", "h", None) | layer("v", "h", None) | {"o.weight": (None, "h")},
    lambda: net(
        lambda s, x: (
            lambda k, v: s.o(
                torch.exp(k.cumsum(0) + torch.logcumsumexp(nn.functional.logsigmoid(s.z(x)) + v - k.cumsum(0), 0))
            )
        )(nn.functional.logsigmoid(-s.z(x)), nn.functional.logsigmoid(s.v(x))),
        z=nn.Linear(X, W),
        v=nn.Linear(X, W),
        o=nn.Linear(W, 1),
    ),
    SEQUENCE,
)
