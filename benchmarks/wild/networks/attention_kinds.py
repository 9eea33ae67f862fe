"""Attention that is not one layer on one stream: heads as modules, two streams, grouped queries, memories."""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.wild.catalog import layer, modules, net, network, norm, together
from benchmarks.wild.networks.attention import QK, SEPARATE, SIZES, WITHIN, B, D, E, H, T, V, heads, merged, scores


class Head(nn.Module):
    """A head of its own (Karpathy's nanoGPT lectures)."""

    def __init__(self):
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(E, D, bias=False) for _ in range(3))

    def forward(self, x):
        return scores(self.query(x), self.key(x)) @ self.value(x)


def _blocks(values, order):
    site = "o.weight"
    return {**values, site: torch.cat([values[site][:, k * D : k * D + D] for k in order], 1)}


network(
    "attention_heads_in_a_module_list",
    "Karpathy, lecture on GPT: heads as modules",
    {
        f"h.{i}.{p}.weight": (f"{'v' if p == 'value' else 'qk'}{i}", None)
        for i in range(H)
        for p in ("key", "query", "value")
    }
    | {"o.weight": (None, [f"v{i}" for i in range(H)])},
    lambda: net(
        lambda s, x: s.o(torch.cat([h(x) for h in s.h], -1)),
        h=nn.ModuleList(Head() for _ in range(H)),
        o=nn.Linear(H * D, E),
    ),
    (B, T, E),
    moves=[(H, together(modules("h.{}."), _blocks))],
)
network(
    "attention_cross_separate",
    "cross attention of two streams, separate projections",
    SEPARATE,
    lambda: net(
        lambda s, x, y: s.o(merged(scores(heads(s.q(x)), heads(s.k(y))) @ heads(s.v(y)))),
        q=nn.Linear(E, H * D),
        k=nn.Linear(E, H * D),
        v=nn.Linear(E, H * D),
        o=nn.Linear(H * D, E),
    ),
    (B, T, E),
    (B, T, E),
    within=WITHIN,
    sizes=SIZES,
)
network(
    "attention_cross_packed",
    "torch.nn.MultiheadAttention with other keys and values",
    {"in_proj_weight": ([QK, QK, V], None), "in_proj_bias": ([QK, QK, V],), "out_proj.weight": (None, V)},
    lambda: nn.MultiheadAttention(6, 3, batch_first=True),
    (B, T, 6),
    (B, T, 6),
    (B, T, 6),
    within=WITHIN,
    sizes=SIZES,
)
network(
    "attention_cross_packed_streams",
    "torch.nn.TransformerDecoderLayer between learned streams: rows and columns of the packed projection",
    {
        "embed.weight": ("d", None),
        "embed.bias": ("d",),
        "source.weight": ("e", None),
        "source.bias": ("e",),
        "a.q_proj_weight": (QK, "d"),
        "a.k_proj_weight": (QK, "e"),
        "a.v_proj_weight": (V, "e"),
        "a.in_proj_bias": ([QK, QK, V],),
        "a.out_proj.weight": (None, V),
    },
    lambda: net(
        lambda s, x, y: s.a(s.embed(x), s.source(y), s.source(y), need_weights=False)[0],
        embed=nn.Linear(4, 6),
        source=nn.Linear(3, 5),
        a=nn.MultiheadAttention(6, 3, kdim=5, vdim=5, batch_first=True),
    ),
    (B, T, 4),
    (B, T, 3),
    within=WITHIN,
    sizes=SIZES,
)


def grouped(repeat):
    """Four query heads, two key and value heads."""
    return lambda s, x: (lambda q, k, v: s.o((scores(q, k) @ v).transpose(1, 2).flatten(2)))(
        s.q(x).view(B, T, 4, D).transpose(1, 2), *(repeat(f(x).view(B, T, 2, D).transpose(1, 2)) for f in (s.k, s.v))
    )


for spelling, repeat in {
    "repeat_interleave": lambda t: t.repeat_interleave(2, 1),
    "expand": lambda t: t[:, :, None].expand(B, 2, 2, T, D).reshape(B, 4, T, D),
    "stack": lambda t: torch.stack([t, t], 2).flatten(1, 2),
}.items():
    network(
        f"attention_grouped_queries_{spelling}",
        "Ainslie et al. 2023, grouped queries, keys repeated by " + spelling,
        {
            "q.weight": (("group", "rep", "qk"), None),
            "k.weight": (("group", "qk"), None),
            "v.weight": (("group", "v"), None),
            "o.weight": (None, ("group", "rep", "v")),
        },
        lambda repeat=repeat: net(
            grouped(repeat),
            q=nn.Linear(E, 8, bias=False),
            k=nn.Linear(E, 4, bias=False),
            v=nn.Linear(E, 4, bias=False),
            o=nn.Linear(8, E),
        ),
        (B, T, E),
        within={"rep": "group", "qk": "group", "v": "group"},
        sizes={"group": 2, "rep": 2, "qk": D, "v": D},
    )
network(
    "attention_multi_query",
    "Shazeer 2019: one key and one value for all heads",
    {
        "q.weight": (("head", "qk"), None),
        "k.weight": ("qk", None),
        "v.weight": ("v", None),
        "o.weight": (None, ("head", "v")),
    },
    lambda: net(
        lambda s, x: s.o(
            torch.einsum(
                "bhtu,bud->bthd", torch.einsum("bthd,bud->bhtu", s.q(x).view(B, T, H, D), s.k(x)).softmax(-1), s.v(x)
            ).reshape(B, T, -1)
        ),
        q=nn.Linear(E, H * D, bias=False),
        k=nn.Linear(E, D, bias=False),
        v=nn.Linear(E, D, bias=False),
        o=nn.Linear(H * D, E),
    ),
    (B, T, E),
)


def rotate(x):
    """Rotary embedding, halves; two dimensions a head: no order is left."""
    angle = torch.arange(T) * 1.0
    a, b = x.chunk(2, -1)
    return torch.cat(
        [a * angle.cos()[:, None] - b * angle.sin()[:, None], b * angle.cos()[:, None] + a * angle.sin()[:, None]], -1
    )


network(
    "attention_rotary",
    "Su et al. 2021: rotary positions, one frequency a head dimension pair",
    {
        "q.weight": (("head", D), None),
        "q.bias": (("head", D),),
        "k.weight": (("head", D), None),
        "k.bias": (("head", D),),
        "v.weight": (V, None),
        "v.bias": (V,),
        "o.weight": (None, V),
    },
    lambda: net(
        lambda s, x: s.o(merged(scores(rotate(heads(s.q(x))), rotate(heads(s.k(x)))) @ heads(s.v(x)))),
        q=nn.Linear(E, H * D),
        k=nn.Linear(E, H * D),
        v=nn.Linear(E, H * D),
        o=nn.Linear(H * D, E),
    ),
    (B, T, E),
    within={"v": "head"},
    sizes={"head": H, "v": D},
)
network(
    "attention_additive",
    "Bahdanau et al. 2015",
    {"q.weight": ("h", None), "k.weight": ("h", None), "w": ("h",), "v.weight": ("d", None), "o.weight": (None, "d")},
    lambda: net(
        lambda s, x: s.o(torch.softmax(torch.tanh(s.q(x)[:, :, None] + s.k(x)[:, None]) @ s.w, -1) @ s.v(x)),
        q=nn.Linear(E, 4, bias=False),
        k=nn.Linear(E, 4, bias=False),
        w=4,
        v=nn.Linear(E, 3, bias=False),
        o=nn.Linear(3, 2),
    ),
    (B, T, E),
)
network(
    "attention_slots",
    "latent queries of a Perceiver (Jaegle et al. 2021), averaged over the latents",
    {"latents": ("slot", "d"), "q.weight": ("qk", "d"), "k.weight": ("qk", None), "v.weight": ("d", None)}
    | {"o.weight": (None, "d")},
    lambda: net(
        lambda s, x: s.o((scores(s.q(s.latents), s.k(x)) @ s.v(x) + s.latents).mean(1)),
        latents=(3, 4),
        q=nn.Linear(4, 2, bias=False),
        k=nn.Linear(E, 2, bias=False),
        v=nn.Linear(E, 4, bias=False),
        o=nn.Linear(4, 2),
    ),
    (B, T, E),
)
network(
    "attention_memory_slots",
    "key-value memory network (Miller et al. 2016)",
    {"keys": ("slot", None), "values": ("slot", "d"), "o.weight": (None, "d")},
    lambda: net(lambda s, x: s.o((x @ s.keys.T).softmax(-1) @ s.values), keys=(4, E), values=(4, 3), o=nn.Linear(3, 2)),
    (B, E),
)
network(
    "transformer_block_spelled_out",
    "nanoGPT block between a linear embedding and a linear head",
    layer("emb", "d", None)
    | {"pos": (None, "d")}
    | norm("n1", "d")
    | norm("n2", "d")
    | {"qkv.weight": ([QK, QK, V], "d"), "qkv.bias": ([QK, QK, V],), "o.weight": ("d", V), "o.bias": ("d",)}
    | layer("up", "u", "d")
    | layer("down", "d", "u")
    | {"out.weight": (None, "d")},
    lambda: net(
        lambda s, x: (
            lambda h: (lambda h: s.out(h + s.down(F.gelu(s.up(s.n2(h))))))(
                h
                + s.o(
                    merged(F.scaled_dot_product_attention(*map(heads, s.qkv(s.n1(h)).split(H * D, 2)), is_causal=True))
                )
            )
        )(s.emb(x) + s.pos),
        emb=nn.Linear(E, 6),
        pos=(T, 6),
        n1=nn.LayerNorm(6),
        n2=nn.LayerNorm(6),
        qkv=nn.Linear(6, 18),
        o=nn.Linear(6, 6),
        up=nn.Linear(6, 4),
        down=nn.Linear(4, 6),
        out=nn.Linear(6, 2),
    ),
    (B, T, E),
    within=WITHIN,
    sizes=SIZES,
)
