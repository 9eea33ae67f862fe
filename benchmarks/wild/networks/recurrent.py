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
network(
    "simple_recurrent_unit",
    "Lei et al. 2018: light recurrence, highway to the input features",
    layer("e", "h", None) | {"w.weight": (["h"] * 3, "h"), "v": (None, "h"), "b": (None, "h"), "o.weight": (None, "h")},
    lambda: net(
        lambda s, x: s.o(
            scan(
                lambda s, e, h, c: (
                    lambda z, f, r: (
                        lambda f: (
                            lambda c: (torch.sigmoid(r + s.v[1] * c + s.b[1]) * c + (1 - torch.sigmoid(r)) * e, c)
                        )(f * c + (1 - f) * z)
                    )(torch.sigmoid(f + s.v[0] * c + s.b[0]))
                )(*s.w(e).chunk(3, -1)),
                lambda s, h: h,
                torch.zeros(B, W),
                torch.zeros(B, W),
            )(s, s.e(x))
        ),
        e=nn.Linear(X, W),
        w=nn.Linear(W, 3 * W, bias=False),
        v=(2, W),
        b=(2, W),
        o=nn.Linear(W, 1),
    ),
    SEQUENCE,
)
network(
    "independent_rnn",
    "IndRNN (Li et al. 2018): a recurrent weight for each unit",
    layer("u", "h", None) | {"w": ("h",), "o.weight": (None, "h")},
    lambda: net(scan(lambda s, x, h: torch.relu(s.u(x) + s.w * h), head), u=nn.Linear(X, W), w=W, o=nn.Linear(W, 1)),
    SEQUENCE,
)
network(
    "diagonal_state_space",
    "S4D (Gu et al. 2022), real: channels, and states within each channel, as a convolution kernel",
    {"e.weight": ("c", None), "e.bias": ("c",), "a": ("c", "n"), "b": ("c", "n"), "d": ("c",), "o.weight": (None, "c")},
    lambda: net(
        lambda s, x: (
            lambda u, k: s.o(
                (torch.stack([sum(k[:, t - j] * u[j] for j in range(t + 1)) for t in range(S)]) + s.d * u).tanh()
            )
        )(s.e(x), (s.b[..., None] * torch.exp(-s.a.exp()[..., None] * torch.arange(S))).sum(1)),
        e=nn.Linear(X, 3),
        a=(3, 4),
        b=(3, 4),
        d=3,
        o=nn.Linear(3, 1),
    ),
    SEQUENCE,
    within={"n": "c"},
)
network(
    "linear_state_space",
    "LSSM: x' = A x + B u, y = C x",
    {"a": ("n", "n"), "b": ("n", None), "c": (None, "n")},
    lambda: net(
        lambda s, x: torch.stack(
            [sum(x[j] @ (s.c @ torch.linalg.matrix_power(s.a, t - j) @ s.b).T for j in range(t + 1)) for t in range(S)]
        ),
        a=(W, W),
        b=(W, X),
        c=(1, W),
    ),
    SEQUENCE,
)
network(
    "seq2seq_with_attention",
    "Luong et al. 2015: encoder, decoder, dot-product attention over encoder states",
    {f"e.weight_{k}": (["h"] * 3, "h" if k == "hh_l0" else None) for k in ("ih_l0", "hh_l0")}
    | {f"e.bias_{k}": (["h"] * 3,) for k in ("ih_l0", "hh_l0")}
    | {
        "d.weight_ih": ("k", None),
        "d.weight_hh": ("k", "k"),
        "d.bias_ih": ("k",),
        "d.bias_hh": ("k",),
        "i.weight": ("k", "h"),
        "i.bias": ("k",),
        "s.weight": ("k", "h"),
        "o.weight": (None, ["k", "h"]),
    },
    lambda: net(
        _seq2seq,
        e=nn.GRU(X, W),
        d=nn.RNNCell(X, 3),
        i=nn.Linear(W, 3),
        s=nn.Linear(W, 3, bias=False),
        o=nn.Linear(7, 2),
    ),
    SEQUENCE,
    SEQUENCE,
)


def _seq2seq(s, x, y):
    states, last = s.e(x)
    h, out = torch.tanh(s.i(last[0])), []
    for t in range(S):
        h = s.d(y[t], h)
        weights = torch.einsum("bk,tbk->tb", h, s.s(states)).softmax(0)
        out.append(s.o(torch.cat([h, (weights[..., None] * states).sum(0)], -1)))
    return torch.stack(out)


network(
    "packed_sequence",
    "a GRU over a packed sequence",
    {f"r.weight_{k}": (["h"] * 3, "h" if k == "hh_l0" else None) for k in ("ih_l0", "hh_l0")}
    | {f"r.bias_{k}": (["h"] * 3,) for k in ("ih_l0", "hh_l0")}
    | {"o.weight": (None, "h")},
    lambda: net(
        lambda s, x: s.o(
            nn.utils.rnn.pad_packed_sequence(s.r(nn.utils.rnn.pack_padded_sequence(x, [3, 2], enforce_sorted=True))[0])[
                0
            ]
        ),
        r=nn.GRU(X, W),
        o=nn.Linear(W, 1),
    ),
    SEQUENCE,
)
network(
    "bidirectional_reversed_by_hand",
    "two RNN cells, one over the flipped sequence, concatenated",
    {
        "f.weight_ih": ("a", None),
        "f.weight_hh": ("a", "a"),
        "f.bias_ih": ("a",),
        "f.bias_hh": ("a",),
        "g.weight_ih": ("b", None),
        "g.weight_hh": ("b", "b"),
        "g.bias_ih": ("b",),
        "g.bias_hh": ("b",),
        "o.weight": (None, ["a", "b"]),
    },
    lambda: net(
        lambda s, x: s.o(
            torch.cat(
                [
                    scan(lambda s, x, h: s.f(x, h), lambda s, h: h)(s, x),
                    scan(lambda s, x, h: s.g(x, h), lambda s, h: h)(s, x.flip(0)),
                ],
                -1,
            )
        ),
        f=nn.RNNCell(X, W),
        g=nn.RNNCell(X, W),
        o=nn.Linear(2 * W, 1),
    ),
    SEQUENCE,
)
network(
    "neural_turing_addressing",
    "content addressing of a memory that is written and read (Graves et al. 2014)",
    layer("k", "m", None) | layer("v", "m", None) | {"memory": ("slot", "m"), "o.weight": (None, "m")},
    lambda: net(
        lambda s, x: s.o(_remember(s, x).mean(1)),
        k=nn.Linear(X, 3),
        v=nn.Linear(X, 3),
        memory=(4, 3),
        o=nn.Linear(3, 1),
    ),
    SEQUENCE,
)


def _remember(s, x):
    memory = s.memory.expand(B, -1, -1)
    for t in range(S):
        w = torch.softmax(nn.functional.cosine_similarity(memory, s.k(x[t])[:, None], dim=-1), -1)[..., None]
        memory = memory * (1 - 0.5 * w) + w * torch.tanh(s.v(x[t]))[:, None]
    return memory


network(
    "linear_dynamics_with_delta_rule",
    "fast weights with the delta rule (Schlag et al. 2021)",
    {
        "k.weight": ("k", None),
        "q.weight": ("k", None),
        "v.weight": ("v", None),
        "b.weight": (None, None),
        "o.weight": (None, "v"),
    },
    lambda: net(
        _delta_rule,
        k=nn.Linear(X, 3, False),
        q=nn.Linear(X, 3, False),
        v=nn.Linear(X, 4, False),
        b=nn.Linear(X, 1),
        o=nn.Linear(4, 1),
    ),
    SEQUENCE,
)


def _delta_rule(s, x):
    fast, out = torch.zeros(B, 4, 3), []
    for t in range(S):
        k = nn.functional.normalize(nn.functional.softplus(s.k(x[t])), dim=-1)
        error = s.v(x[t]) - torch.einsum("bvk,bk->bv", fast, k)
        fast = fast + torch.einsum("bv,bk->bvk", s.b(x[t]).sigmoid() * error, k)
        out.append(torch.einsum("bvk,bk->bv", fast, nn.functional.softplus(s.q(x[t]))))
    return s.o(torch.stack(out))


network(
    "echo_of_constant_reservoir",
    "echo state network: a fixed random reservoir keeps its order, the readout's units are free",
    {"a.weight": ("h", None), "a.bias": ("h",), "o.weight": (None, "h")},
    lambda: net(
        lambda s, x: s.o(
            torch.relu(s.a(scan(lambda s, x, h: torch.tanh(x @ s.u.T + h @ s.w.T), lambda s, h: h)(s, x)))
        ),
        u=torch.randn(W, X),
        w=0.3 * torch.randn(W, W),
        a=nn.Linear(W, 3),
        o=nn.Linear(3, 1),
    ),
    SEQUENCE,
)
