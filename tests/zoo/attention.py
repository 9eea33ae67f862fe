"""Attention: heads, dimensions within each head, residual streams."""

from __future__ import annotations

import math

import torch
from problems import bayesian, problem
from torch import nn
from torch.nn import functional as F

from pyro_align.axes import Atom, Odd

E, H = 4, 2  # width and heads of the small models
QK, VO = (Atom("head", H), Atom("qk", E // H)), (Atom("head", H), Atom("vo", E // H))
WITHIN = {"qk": "head", "vo": "head"}


def heads(x, n):
    """``(batch, time, width)`` to ``(batch, heads, time, width / heads)``."""
    return x.view(*x.shape[:-1], n, -1).transpose(-2, -3)


class Attention(nn.Module):
    """Self-attention with separate projections."""

    def __init__(self, width=E, n=H, d=None, bias=True):
        super().__init__()
        d = d or width
        self.q, self.k, self.v = (nn.Linear(width, d, bias=bias) for _ in range(3))
        self.o = nn.Linear(d, width)
        self.n = n

    def forward(self, x):
        q, k, v = (heads(f(x), self.n) for f in (self.q, self.k, self.v))
        p = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        return self.o((p @ v).transpose(1, 2).flatten(2))


SEPARATE = {
    "q.weight": (QK, None),
    "q.bias": (QK,),
    "k.weight": (QK, None),
    "k.bias": (QK,),
    "v.weight": (VO, None),
    "v.bias": (VO,),
    "o.weight": (None, VO),
}


# Where keys have a bias the softmax drops it, so that its entries are free by the prior alone: no tie of axes says so,
# and the exhaustive search is left to the models whose projections have none.
@problem(SEPARATE, within=WITHIN, oracle=False, odd=("qk", "vo"))
def attention_with_separate_projections():
    return bayesian(Attention()), (torch.randn(2, 3, E),)


@problem({k: v for k, v in SEPARATE.items() if not k.endswith("bias")}, within=WITHIN, odd=("qk", "vo"))
def attention_without_biases():
    return bayesian(Attention(bias=False)), (torch.randn(2, 3, E),)


@problem(SEPARATE, within=WITHIN, oracle=False, odd=("qk", "vo"))
def attention_by_scaled_dot_product():
    class Fused(Attention):
        def forward(self, x):
            q, k, v = (heads(f(x), self.n) for f in (self.q, self.k, self.v))
            return self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    return bayesian(Fused()), (torch.randn(2, 3, E),)


PACKED = {"in_proj_weight": ([QK, QK, VO], None), "in_proj_bias": ([QK, QK, VO],), "out_proj.weight": (None, VO)}


@problem({f"attention.{k}": v for k, v in PACKED.items()}, within=WITHIN, oracle=False, odd=("qk", "vo"))
def attention_with_packed_projection():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(E, H, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    return bayesian(Packed()), (torch.randn(2, 3, E),)


@problem({"qkv.weight": ([QK, QK, VO], None), "o.weight": (None, VO)}, within=WITHIN, odd=("qk", "vo"))
def attention_packed_as_in_vision_libraries():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.o = nn.Linear(E, 3 * E, bias=False), nn.Linear(E, E)

        def forward(self, x):
            b, t, _ = x.shape
            q, k, v = self.qkv(x).reshape(b, t, 3, H, E // H).permute(2, 0, 3, 1, 4).unbind(0)
            p = ((q * (E // H) ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
            return self.o((p @ v).transpose(1, 2).reshape(b, t, E))

    return bayesian(Packed()), (torch.randn(2, 3, E),)


ENCODER = {
    "self_attn.in_proj_weight": ([QK, QK, VO], "s"),
    "self_attn.in_proj_bias": ([QK, QK, VO],),
    "self_attn.out_proj.weight": ("s", VO),
    "self_attn.out_proj.bias": ("s",),
    "linear1.weight": ("h", "s"),
    "linear1.bias": ("h",),
    "linear2.weight": ("s", "h"),
    "linear2.bias": ("s",),
    "norm1.weight": ("s",),
    "norm1.bias": ("s",),
    "norm2.weight": ("s",),
    "norm2.bias": ("s",),
}


class Encoder(nn.Module):
    """An embedding, a transformer layer and a readout."""

    def __init__(self, norm_first=False):
        super().__init__()
        self.embed = nn.Linear(3, E)
        self.layer = nn.TransformerEncoderLayer(E, H, 5, 0.0, batch_first=True, norm_first=norm_first)
        self.out = nn.Linear(E, 2)

    def forward(self, x):
        return self.out(self.layer(self.embed(x)))


TRANSFORMER = {
    "embed.weight": ("s", None),
    "embed.bias": ("s",),
    **{f"layer.{k}": v for k, v in ENCODER.items()},
    "out.weight": (None, "s"),
}


# A feature of the stream keeps its sign, as LayerNorm subtracts the mean; what reads a LayerNorm may change sign with
# its gain and offset.
S = Odd("s")
GAINS = {
    "layer.norm1.weight": (S,),
    "layer.norm1.bias": (S,),
    "layer.self_attn.in_proj_weight": ([QK, QK, VO], S),
    "layer.norm2.weight": (S,),
    "layer.norm2.bias": (S,),
    "layer.linear1.weight": ("h", S),
}


@problem(
    TRANSFORMER,
    within=WITHIN,
    oracle=False,
    odd=("qk", "vo"),
    signs={"layer.norm2.weight": (S,), "layer.norm2.bias": (S,), "out.weight": (None, S)},
)
def transformer_encoder_layer():
    return bayesian(Encoder().eval()), (torch.randn(2, 3, 3),)


@problem(TRANSFORMER, within=WITHIN, oracle=False, odd=("qk", "vo"), signs=GAINS)
def transformer_encoder_layer_in_training_mode():
    return bayesian(Encoder(norm_first=True)), (torch.randn(2, 3, 3),)


@problem(
    {k: tuple(None if t == "s" else t for t in v) for k, v in ENCODER.items()},
    within=WITHIN,
    oracle=False,
    odd=("qk", "vo"),
)
def transformer_layer_as_plain_module():
    return nn.TransformerEncoderLayer(E, H, 5, 0.0, batch_first=True).eval(), (torch.randn(2, 3, E),)


class Language(nn.Module):
    """A causal language model in the manner of GPT-2, its output tied to the embedding."""

    def __init__(self, words=5, width=E, n=H, layers=1, hidden=6, time=4):
        super().__init__()
        self.wte, self.wpe, self.n = nn.Embedding(words, width), nn.Embedding(time, width), n
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "ln1": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "proj": nn.Linear(width, width),
                    "ln2": nn.LayerNorm(width),
                    "up": nn.Linear(width, hidden),
                    "down": nn.Linear(hidden, width),
                }
            )
            for _ in range(layers)
        )
        self.ln = nn.LayerNorm(width)

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            q, k, v = (heads(t, self.n) for t in block["qkv"](block["ln1"](x)).chunk(3, -1))
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block["proj"](a.transpose(1, 2).flatten(2))
            x = x + block["down"](F.gelu(block["up"](block["ln2"](x)), approximate="tanh"))
        return self.ln(x) @ self.wte.weight.T


def language_axes(layers):
    axes = {"wte.weight": (None, "s"), "wpe.weight": (None, "s"), "ln.weight": ("s",), "ln.bias": ("s",)}
    within = {}
    for i in range(layers):
        qk, vo = (Atom(f"head{i}", H), Atom(f"qk{i}", E // H)), (Atom(f"head{i}", H), Atom(f"vo{i}", E // H))
        within |= {f"qk{i}": f"head{i}", f"vo{i}": f"head{i}"}
        axes |= {
            f"blocks.{i}.{k}": v
            for k, v in {
                "ln1.weight": ("s",),
                "ln1.bias": ("s",),
                "ln2.weight": ("s",),
                "ln2.bias": ("s",),
                "qkv.weight": ([qk, qk, vo], "s"),
                "qkv.bias": ([qk, qk, vo],),
                "proj.weight": ("s", vo),
                "proj.bias": ("s",),
                "up.weight": (f"h{i}", "s"),
                "up.bias": (f"h{i}",),
                "down.weight": ("s", f"h{i}"),
                "down.bias": ("s",),
            }.items()
        }
    return axes, within


def language_signs(layers):
    signs = {}
    for i in range(layers):
        qk, vo = (Atom(f"head{i}", H), Atom(f"qk{i}", E // H)), (Atom(f"head{i}", H), Atom(f"vo{i}", E // H))
        signs |= {f"blocks.{i}.ln{k}.{n}": (S,) for k in (1, 2) for n in ("weight", "bias")}
        signs |= {f"blocks.{i}.qkv.weight": ([qk, qk, vo], S), f"blocks.{i}.up.weight": (f"h{i}", S)}
    return signs


@problem(language_axes(1)[0], within=language_axes(1)[1], oracle=False, odd=("qk0", "vo0"), signs=language_signs(1))
def language_model_with_tied_embedding():
    return bayesian(Language()), (torch.tensor([[0, 1, 2], [4, 3, 0]]),)


@problem(
    language_axes(2)[0],
    within=language_axes(2)[1],
    oracle=False,
    odd=("qk0", "vo0", "qk1", "vo1"),
    signs=language_signs(2),
)
def language_model_of_two_layers():
    return bayesian(Language(layers=2)), (torch.tensor([[0, 1, 2], [4, 3, 0]]),)


@problem({"table.weight": (None, "d"), "out.weight": (None, "d")}, odd="d")
def bag_of_embeddings():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(6, 3), nn.Linear(3, 2)

        def forward(self, tokens):
            return self.out(self.table(tokens).mean(1))

    return bayesian(Bag()), (torch.tensor([[0, 1, 1, 5, 3, 3], [4, 3, 0, 0, 2, 5], [5, 1, 0, 4, 4, 4]]),)


@problem(
    {
        "q.weight": ((Atom("kv", 2), Atom("group", 2), Atom("qk", 3)), None),
        "k.weight": (("kv", "qk"), None),
        "v.weight": (("kv", Atom("vo", 3)), None),
        "o.weight": (None, ("kv", "group", "vo")),
    },
    within={"group": "kv", "qk": "kv", "vo": "kv"},
    oracle=False,
    odd=("qk", "vo"),
)
def grouped_query_attention():
    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (
                nn.Linear(3, 12, bias=False),
                nn.Linear(3, 6, bias=False),
                nn.Linear(3, 6, bias=False),
            )
            self.o = nn.Linear(12, 3)

        def forward(self, x):
            q, k, v = heads(self.q(x), 4), heads(self.k(x), 2), heads(self.v(x), 2)
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
            return self.o(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))

    return bayesian(Grouped()), (torch.randn(2, 4, 3),)


def rotate_half(x):
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


@problem(
    {
        "q.weight": ((Atom("head", 2), None), None),
        "q.bias": (("head", None),),
        "k.weight": (("head", None), None),
        "k.bias": (("head", None),),
        "v.weight": (("head", Atom("vo", 4)), None),
        "v.bias": (("head", "vo"),),
        "o.weight": (None, ("head", "vo")),
    },
    within={"vo": "head"},
    oracle=False,
    odd="vo",
    signs={
        f"{k}.{n}": ((Odd("head"), None), None)[: 2 if n == "weight" else 1] for k in "qk" for n in ("weight", "bias")
    },
)
def rotary_attention():
    class Rotary(Attention):
        def forward(self, x):
            q, k, v = (heads(f(x), self.n) for f in (self.q, self.k, self.v))
            angle = torch.arange(x.shape[1])[:, None] / 10 ** (torch.arange(2) / 2)
            angle = torch.cat([angle, angle], -1)
            q, k = (t * angle.cos() + rotate_half(t) * angle.sin() for t in (q, k))
            return self.o(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))

    return bayesian(Rotary(3, 2, 8).double()), (torch.randn(2, 4, 3),)


@problem(
    {"qkv.weight": ([QK, QK, VO], None), "qkv.bias": ([QK, QK, VO],), "o.weight": (None, VO), "table": (None, "head")},
    within=WITHIN,
    oracle=False,
    odd=("qk", "vo"),
)
def windowed_attention_with_relative_positions():
    class Windowed(nn.Module):
        """Windows of two by two, a bias for each head and offset, as in Swin."""

        def __init__(self):
            super().__init__()
            self.qkv, self.o, self.table = nn.Linear(E, 3 * E), nn.Linear(E, E), nn.Parameter(torch.randn(9, H))
            place = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
            offset = place[:, :, None] - place[:, None, :] + 1
            self.register_buffer("index", offset[0] * 3 + offset[1])

        def forward(self, x):
            b, h, w, c = x.shape
            x = torch.roll(x, (-1, -1), (1, 2))
            x = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
            qkv = self.qkv(x).reshape(len(x), 4, 3, H, c // H).permute(2, 0, 3, 1, 4)
            q, k, v = qkv[0], qkv[1], qkv[2]
            bias = self.table[self.index.view(-1)].view(4, 4, -1).permute(2, 0, 1)
            p = (q @ k.mT + bias[None]).softmax(-1)
            return self.o((p @ v).transpose(1, 2).reshape(b, -1, c))

    return bayesian(Windowed()), (torch.randn(1, 4, 4, E),)


@problem(
    {
        "embed.weight": ("s", None, None, None),
        "embed.bias": ("s",),
        "token": (None, None, "s"),
        "place": (None, None, "s"),
        **{f"layer.{k}": v for k, v in ENCODER.items()},
        "out.weight": (None, "s"),
    },
    within=WITHIN,
    oracle=False,
    odd=("qk", "vo"),
    signs=GAINS,
)
def vision_transformer():
    class Vision(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Conv2d(2, E, 2, stride=2), nn.Linear(E, 2)
            self.token, self.place = nn.Parameter(torch.randn(1, 1, E)), nn.Parameter(torch.randn(1, 5, E))
            self.layer = nn.TransformerEncoderLayer(E, H, 5, 0.0, batch_first=True, norm_first=True)

        def forward(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
            return self.out(self.layer(x)[:, 0])

    return bayesian(Vision()), (torch.randn(2, 2, 4, 4),)


@problem({"table": ("a", "b"), "w": (None, ("a", "b"))}, within={"b": "a"}, odd="b")
def outer_product_of_features():
    def model(x):
        from problems import normal, observe

        features = torch.tanh(x[:, None, None] * normal("table", 3, 4))
        observe(features.flatten(1) @ normal("w", 2, 12).T)

    return model, (torch.randn(5),)
