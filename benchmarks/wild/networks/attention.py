"""One attention layer, three heads of two dimensions for queries and keys and of two for values, in many spellings.

All of them have one group: 3! orders of the heads, and within each head 2! orders of the dimensions of queries and keys
and 2! of those of the values.
"""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.wild.catalog import net, network

H, D, E, B, T = 3, 2, 5, 2, 4  # heads, dimensions of a head, features, batch, tokens
SIZES = {"head": H, "qk": D, "v": D}
WITHIN = {"qk": "head", "v": "head"}
QK, V = ("head", "qk"), ("head", "v")
SEPARATE = {"q.weight": (QK, None), "q.bias": (QK,), "k.weight": (QK, None), "v.weight": (V, None), "v.bias": (V,)}
SEPARATE |= {"k.bias": (QK,), "o.weight": (None, V)}
PACKED = {"qkv.weight": ([QK, QK, V], None), "qkv.bias": ([QK, QK, V],), "o.weight": (None, V)}
HEADED = {"q": ("head", None, "qk"), "k": ("head", None, "qk"), "v": ("head", None, "v"), "o": ("head", "v", None)}
SOURCE = "attention, spelling: "


def separate(name, forward, **parts):
    """Three projections and an output projection."""
    network(
        f"attention_{name}",
        SOURCE + name.replace("_", " "),
        SEPARATE,
        lambda: net(
            forward, q=nn.Linear(E, H * D), k=nn.Linear(E, H * D), v=nn.Linear(E, H * D), o=nn.Linear(H * D, E), **parts
        ),
        (B, T, E),
        within=WITHIN,
        sizes=SIZES,
    )


def packed(name, forward, axes=PACKED):
    """One projection for queries, keys and values."""
    network(
        f"attention_{name}",
        SOURCE + name.replace("_", " "),
        axes,
        lambda: net(forward, qkv=nn.Linear(E, 3 * H * D), o=nn.Linear(H * D, E)),
        (B, T, E),
        within=WITHIN,
        sizes=SIZES,
    )


def headed(name, forward):
    """Parameters with an axis of heads."""
    network(
        f"attention_{name}",
        SOURCE + name.replace("_", " "),
        HEADED,
        lambda: net(forward, q=(H, E, D), k=(H, E, D), v=(H, E, D), o=(H, D, E)),
        (B, T, E),
        within=WITHIN,
        sizes=SIZES,
    )


def scores(q, k):
    return torch.softmax(q @ k.mT / D**0.5, -1)


def heads(x):
    return x.view(B, T, H, D).transpose(1, 2)


def merged(x):
    return x.transpose(1, 2).reshape(B, T, H * D)


separate("view_transpose", lambda s, x: s.o(merged(scores(heads(s.q(x)), heads(s.k(x))) @ heads(s.v(x)))))
separate(
    "einsum_bhqk",
    lambda s, x: s.o(
        torch.einsum(
            "bhqk,bkhd->bqhd",
            torch.einsum("bqhd,bkhd->bhqk", *(f(x).view(B, T, H, D) for f in (s.q, s.k))).softmax(-1),
            s.v(x).view(B, T, H, D),
        ).flatten(2)
    ),
)
separate(
    "einsum_other_letters",
    lambda s, x: s.o(
        torch.einsum(
            "xyzw,xwyv->xzyv",
            torch.einsum("xzya,xwya->xyzw", *(f(x).view(B, T, H, D) for f in (s.q, s.k))).softmax(-1),
            s.v(x).view(B, T, H, D).permute(0, 1, 2, 3),
        ).reshape(B, T, -1)
    ),
)
separate(
    "chunked_and_concatenated",
    lambda s, x: s.o(
        torch.cat([scores(q, k) @ v for q, k, v in zip(*(f(x).chunk(H, -1) for f in (s.q, s.k, s.v)), strict=True)], -1)
    ),
)
separate(
    "split_and_stacked",
    lambda s, x: s.o(
        (lambda q, k, v: (scores(q, k) @ v).permute(1, 2, 0, 3).reshape(B, T, -1))(
            *(torch.stack(f(x).split(D, -1)) for f in (s.q, s.k, s.v))
        )
    ),
)
separate(
    "heads_in_the_batch",
    lambda s, x: s.o(
        (lambda q, k, v: torch.cat((scores(q, k) @ v).split(B), -1))(
            *(torch.cat(f(x).split(D, -1), 0) for f in (s.q, s.k, s.v))
        )
    ),
)
separate(
    "loop_by_slices",
    lambda s, x: s.o(
        torch.cat(
            [
                scores(s.q(x)[..., h * D : h * D + D], s.k(x)[..., h * D : h * D + D]) @ s.v(x)[..., h * D : h * D + D]
                for h in range(H)
            ],
            -1,
        )
    ),
)
separate(
    "output_summed_over_heads",
    lambda s, x: (
        s.o.bias
        + sum(
            (scores(heads(s.q(x))[:, h], heads(s.k(x))[:, h]) @ heads(s.v(x))[:, h])
            @ s.o.weight[:, h * D : h * D + D].T
            for h in range(H)
        )
    ),
)
separate(
    "bmm",
    lambda s, x: s.o(
        (lambda q, k, v: merged(torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(2), v).view(B, H, T, D)))(
            *(heads(f(x)).reshape(B * H, T, D) for f in (s.q, s.k, s.v))
        )
    ),
)
separate(
    "scaled_dot_product",
    lambda s, x: s.o(merged(F.scaled_dot_product_attention(*(heads(f(x)) for f in (s.q, s.k, s.v))))),
)
separate(
    "causal_mask_filled",
    lambda s, x: s.o(
        merged(
            (heads(s.q(x)) @ heads(s.k(x)).mT).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
            @ heads(s.v(x))
        )
    ),
)
separate(
    "causal_mask_added",
    lambda s, x: s.o(
        merged(
            torch.add(heads(s.q(x)) @ heads(s.k(x)).mT, torch.full((T, T), -1e9).triu(1)).softmax(-1) @ heads(s.v(x))
        )
    ),
)
separate(
    "softmax_by_hand",
    lambda s, x: s.o(
        merged(
            (lambda e: e / e.sum(-1, keepdim=True))(
                torch.exp((a := heads(s.q(x)) @ heads(s.k(x)).mT) - a.amax(-1, keepdim=True))
            )
            @ heads(s.v(x))
        )
    ),
)
separate(
    "logsumexp_broadcast",
    lambda s, x: s.o(
        (
            lambda q, k, v: (
                ((a := (q[:, :, None] * k[:, None]).sum(-1)) - a.logsumexp(2, keepdim=True))
                .exp()
                .unsqueeze(-1)
                .mul(v[:, None])
                .sum(2)
                .flatten(-2)
            )
        )(*(f(x).view(B, T, H, D) for f in (s.q, s.k, s.v)))
    ),
)
separate(
    "unfold_heads",
    lambda s, x: s.o(
        merged(
            scores(*(f(x).unfold(2, D, D).transpose(1, 2) for f in (s.q, s.k))) @ s.v(x).unfold(2, D, D).transpose(1, 2)
        )
    ),
)
separate(
    "linear_attention",
    lambda s, x: s.o(
        (lambda q, k, v: torch.einsum("blhi,bhij->blhj", q, torch.einsum("blhi,blhj->bhij", k, v)).reshape(B, T, -1))(
            *((F.elu(f(x)) + 1).view(B, T, H, D) for f in (s.q, s.k)), s.v(x).view(B, T, H, D)
        )
    ),
)
packed("packed_chunk", lambda s, x: s.o(merged(F.scaled_dot_product_attention(*map(heads, s.qkv(x).chunk(3, -1))))))
packed(
    "packed_reshape_permute",
    lambda s, x: s.o(
        (lambda q, k, v: merged(scores(q, k) @ v))(*s.qkv(x).reshape(B, T, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0))
    ),
)
packed(
    "packed_einops_like",
    lambda s, x: s.o(
        (lambda qkv: merged(scores(qkv[0], qkv[1]) @ qkv[2]))(
            s.qkv(x).unflatten(-1, (3, H, D)).movedim(2, 0).transpose(2, 3)
        )
    ),
)
MEGATRON = ("head", ["qk", "qk", "v"])
packed(
    "packed_head_by_head",
    lambda s, x: s.o(
        (lambda q, k, v: merged(scores(q, k) @ v))(*s.qkv(x).view(B, T, H, 3 * D).transpose(1, 2).chunk(3, -1))
    ),
    {"qkv.weight": (MEGATRON, None), "qkv.bias": (MEGATRON,), "o.weight": (None, V)},
)
headed(
    "parameters_with_heads",
    lambda s, x: torch.einsum(
        "bhqd,hde->bqe",
        scores(torch.einsum("bte,hed->bhtd", x, s.q), torch.einsum("bte,hed->bhtd", x, s.k))
        @ torch.einsum("bte,hed->bhtd", x, s.v),
        s.o,
    ),
)
headed(
    "parameters_with_heads_matmul",
    lambda s, x: ((scores(x[:, None] @ s.q, x[:, None] @ s.k) @ (x[:, None] @ s.v)) @ s.o).sum(1),
)
headed(
    "query_key_product_first",
    lambda s, x: torch.einsum(
        "bhtu,buhe->bte",
        torch.einsum("bte,hef,buf->bhtu", x, s.q @ s.k.mT, x).softmax(-1),
        torch.einsum("bue,hed,hdf->buhf", x, s.v, s.o),
    ),
)
headed(
    "loop_over_parameters",
    lambda s, x: sum(scores(x @ s.q[h], x @ s.k[h]) @ (x @ s.v[h]) @ s.o[h] for h in range(H)),
)
headed(
    "vmap_over_heads",
    lambda s, x: torch.vmap(lambda q, k, v, o: scores(x @ q, x @ k) @ (x @ v) @ o)(s.q, s.k, s.v, s.o).sum(0),
)
