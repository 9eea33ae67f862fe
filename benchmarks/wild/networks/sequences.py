"""Light recurrences, state spaces, and what is built on recurrent cells."""

import torch
from torch import nn

from benchmarks.wild.catalog import layer, net, network
from benchmarks.wild.networks.recurrent import SEQUENCE, B, S, W, X, head, scan

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
