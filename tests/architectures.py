"""Random architectures: layers composed at random, for holding discovery to its word."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

WIDTHS = (1, 2, 2, 3, 4, 4, 6)
ACTIVATIONS = (
    torch.relu,
    torch.tanh,
    F.gelu,
    F.silu,
    torch.sin,
    torch.sigmoid,
    F.softplus,
    F.leaky_relu,
    lambda x: x * x,
)
# Odd, even, and neither, for signs.
SIGNED_ACTIVATIONS = (
    torch.tanh,
    torch.tanh,
    torch.sin,
    torch.erf,
    F.softsign,
    F.hardtanh,
    F.tanhshrink,
    lambda x: x**3 - x,
    lambda x: x.clamp(-0.3, 0.3),
    torch.cos,
    torch.abs,
    lambda x: x / (1 + x.square().mean(-1, keepdim=True)),
    torch.relu,
    F.silu,
    lambda x: x.clamp(-0.3, 0.5),
)
# Those that follow every rotation, and some that do not.
ROTATED_ACTIVATIONS = (
    lambda x: x,
    lambda x: 0.5 * x,
    lambda x: -x,
    lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-3),
    lambda x: x / (1 + x.square().sum(-1, keepdim=True)),
    lambda x: x / (1e-3 + x.norm(dim=-1, keepdim=True)),
    lambda x: x * torch.tanh((x * x).sum(-1, keepdim=True)),
    lambda x: x - x.mean(-1, keepdim=True),
    lambda x: x + 0.1 * x.square().sum(-1, keepdim=True),
    lambda x: x * x,
    torch.tanh,
)


class RandomNet(nn.Module):
    """A network drawn from a seed. Its parameters are made while it first runs, then the program is fixed.

    Attributes:
        program: What was drawn, in words.
    """

    def __init__(self, seed: int, activations=ACTIVATIONS):
        super().__init__()
        self.seed, self.activations, self.program = seed, activations, []
        self.image = random.Random(seed).random() < 0.4
        self.input = torch.randn(2, 3, 4, 4) if self.image else torch.randn(3, 4)
        self(self.input)

    def forward(self, x):
        self.rng, self.count, self.pool, self.program = random.Random(self.seed), 0, [], []
        self.rng.random()
        self.reuse: list[str] = []
        step, finish = (self.image_step, self.image_finish) if self.image else (self.dense_step, self.dense_finish)
        self.pool.append(x)
        x = self.mix(x)
        for _ in range(self.rng.randint(2, 7)):
            x = step(x)
            self.pool.append(x)
        return finish(x)

    # -- parameters ------------------------------------------------------------------------------------------------

    def weight(self, *shape: int) -> Tensor:
        """A new parameter, or, now and then, an old one of that shape."""
        old = [n for n in self.reuse if getattr(self, n).shape == shape]
        if old and self.rng.random() < 0.2:
            return getattr(self, self.rng.choice(old))
        name = f"p{self.count}"
        self.count += 1
        if not hasattr(self, name):
            fan_in = max(1, torch.Size(shape[1:]).numel())
            self.register_parameter(name, nn.Parameter(torch.randn(shape) / fan_in**0.5))
        self.reuse.append(name)
        return getattr(self, name)

    def say(self, what: str, x: Tensor) -> Tensor:
        self.program.append(f"{what} -> {tuple(x.shape)}")
        return x

    def choose(self, *options):
        return self.rng.choice(options)

    # -- vectors and sequences -------------------------------------------------------------------------------------

    def mix(self, x, width=None):
        """A linear layer or a convolution of one by one to a random width."""
        width = width or self.choose(*WIDTHS)
        if self.image:
            return self.say("conv1", F.conv2d(x, self.weight(width, x.shape[1], 1, 1)))
        return self.say(
            "linear", F.linear(x, self.weight(width, x.shape[-1]), self.weight(width) if self.choose(0, 1) else None)
        )

    def dense_step(self, x):
        return getattr(
            self,
            "step_"
            + self.choose(
                "linear",
                "act",
                "act",
                "norm",
                "residual",
                "skip",
                "concat",
                "split",
                "gate",
                "views",
                "heads",
                "softmax",
                "slice",
                "outer",
                "experts",
                "roll",
                "sum",
                "recurrent",
                "einsum",
                "pad",
                "matrix",
                "stack",
                "index",
                "pool_old",
                "repeat",
                "packed",
                "grouped",
                "rotary",
                "largest",
                "fourier",
                "windows",
                "scatter",
                "blocks",
            ),
        )(x)

    def step_linear(self, x):
        return self.mix(x)

    def step_act(self, x):
        return self.say("act", self.choose(*self.activations)(x))

    def step_norm(self, x):
        kind = self.choose("layer", "plain", "rms", "group", "scale")
        n = x.shape[-1]
        if kind == "layer":
            x = F.layer_norm(x, (n,), self.weight(n), self.weight(n))
        elif kind == "plain":
            x = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True, correction=0) + 0.5)
        elif kind == "rms":
            x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 0.1) * self.weight(n)
        elif kind == "group":
            groups = self.choose(*[g for g in range(1, n + 1) if n % g == 0])
            x = F.group_norm(x.reshape(-1, n), groups, self.weight(n), self.weight(n)).reshape(x.shape)
        else:
            x = x * self.weight(n)
        return self.say(kind, x)

    def step_residual(self, x):
        h = self.choose(torch.tanh, torch.relu)(self.mix(x))
        return self.say("residual", x + self.mix(h, x.shape[-1]))

    def step_skip(self, x):
        old = [o for o in self.pool if o.shape == x.shape]
        return self.say("skip", x + self.choose(*old)) if old else x

    def step_concat(self, x):
        old = self.choose(*[o for o in self.pool if o.shape[:-1] == x.shape[:-1]] or [x])
        return self.say("concat", torch.cat([x, old], -1)) if x.shape[-1] + old.shape[-1] <= 10 else x

    def step_split(self, x):
        n = x.shape[-1]
        if n < 2:
            return x
        k = self.rng.randint(1, n - 1)
        a, b = x.split([k, n - k], -1)
        return self.say(
            "split", torch.cat([b, torch.tanh(a)], -1) if self.choose(0, 1) else self.mix(a, 3) + self.mix(b, 3)
        )

    def step_gate(self, x):
        a, b = self.mix(x, 2 * self.choose(1, 2, 3)).chunk(2, -1)
        return self.say("gate", torch.sigmoid(a) * b)

    def step_views(self, x):
        n = x.shape[-1]
        a = self.choose(*[d for d in range(1, n + 1) if n % d == 0])
        y = x.unflatten(-1, (a, n // a))
        y = y.transpose(-1, -2) if self.choose(0, 1) else torch.tanh(y)
        y = y * self.weight(y.shape[-2], 1) if self.choose(0, 1) else y
        return self.say(f"views {a}", y.flatten(-2))

    def step_heads(self, x):
        heads, d = self.choose(1, 2, 3), self.choose(1, 2)
        x2 = x.reshape(-1, x.shape[-1])
        qkv = F.linear(x2, self.weight(3 * heads * d, x.shape[-1]))
        if self.choose(0, 1):
            q, k, v = qkv.reshape(-1, 3, heads, d).permute(1, 2, 0, 3).unbind(0)
        else:
            q, k, v = (t.view(-1, heads, d).transpose(0, 1) for t in qkv.chunk(3, -1))
        out = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(-1, heads * d)
        return self.say(f"attention {heads}x{d}", F.linear(out, self.weight(4, heads * d)).reshape(*x.shape[:-1], 4))

    def step_softmax(self, x):
        return self.say("softmax", x.softmax(self.choose(-1, 0)))

    def step_slice(self, x):
        n = x.shape[-1]
        start, step = self.rng.randint(0, n - 1), self.choose(1, 1, 2)
        return self.say(f"slice {start}::{step}", x[..., start::step])

    def step_outer(self, x):
        if x.shape[-1] > 3:
            return x
        other = self.weight(2, x.shape[-1])
        return self.say("outer", (x[..., :, None] * F.linear(x, other)[..., None, :]).flatten(-2))

    def step_experts(self, x):
        e, h, n = self.choose(2, 3), self.choose(2, 3), x.shape[-1]
        gate = F.linear(x, self.weight(e, n)).softmax(-1)
        hidden = torch.relu(torch.einsum("ehd,...d->...eh", self.weight(e, h, n), x))
        return self.say("experts", torch.einsum("...e,...eh,eoh->...o", gate, hidden, self.weight(e, 3, h)))

    def step_roll(self, x):
        return self.say(
            "order",
            self.choose(
                lambda t: t.roll(1, -1),
                lambda t: t.flip(-1),
                lambda t: t.cumsum(-1),
                lambda t: t.sort(-1).values,
                lambda t: t.T.T,
                lambda t: t.tril(),
            )(x),
        )

    def step_sum(self, x):
        reduce = self.choose("sum", "amax", "mean", "logsumexp")
        y = torch.stack([x, self.mix(x, x.shape[-1])], 0)
        return self.say(reduce, getattr(y, reduce)(0) if reduce != "logsumexp" else y.logsumexp(0))

    def step_recurrent(self, x):
        n, h = x.shape[-1], self.choose(2, 3)
        state = torch.zeros(h, dtype=x.dtype)
        w, u = self.weight(h, n), self.weight(h, h)
        states = []
        for row in x.reshape(-1, n):
            state = torch.tanh(w @ row + u @ state)
            states.append(state)
        return self.say("recurrent", torch.stack(states).reshape(*x.shape[:-1], h))

    def step_einsum(self, x):
        n = x.shape[-1]
        a, b = self.weight(n, 2), self.weight(n, 2)
        return self.say("einsum", torch.einsum("...i,ir,...j,jr->...r", x, a, x, b))

    def step_pad(self, x):
        return self.say("pad", F.pad(x, (self.choose(0, 1), self.choose(0, 1, 2))))

    def step_matrix(self, x):
        n = x.shape[-1]
        w = self.weight(n, n)
        kind = self.choose("symmetric", "gram", "diagonal", "eye", "inverse", "triangular")
        eye = torch.eye(n, dtype=x.dtype)
        matrix = {
            "symmetric": lambda: w + w.T,
            "gram": lambda: w @ w.T,
            "diagonal": lambda: torch.diag(w.diagonal()),
            "eye": lambda: w * (1 - eye) + eye,
            "inverse": lambda: torch.linalg.inv(w @ w.T + 2 * eye),
            "triangular": lambda: w.tril(),
        }[kind]()
        return self.say(kind, x @ matrix)

    def step_stack(self, x):
        y = torch.stack([x, torch.tanh(self.mix(x, x.shape[-1]))], self.choose(-1, -2))
        if y.shape[-1] == x.shape[-1] == 2 or self.choose(0, 1):
            return self.say("stack", y.flatten(-2) if y.shape[-1] * y.shape[-2] <= 10 else y.sum(-2))
        return self.say("unstack", y.select(-1, y.shape[-1] - 1) if y.shape[-2] == x.shape[-1] else y.select(-2, 0))

    def step_index(self, x):
        n = x.shape[-1]
        kind = self.choose("list", "arange", "gather")
        if kind == "list":
            return self.say("index", x[..., [self.rng.randrange(n) for _ in range(self.choose(1, 2, 3))]])
        if kind == "arange":
            return self.say("arange", x[..., torch.arange(n)])
        index = torch.zeros(x.shape, dtype=torch.long) + torch.arange(n).flip(0)
        return self.say("gather", x.gather(-1, index))

    def step_pool_old(self, x):
        old = self.choose(*self.pool)
        return self.say("old", old * old.abs().mean() if old.dim() == x.dim() else x)

    def step_repeat(self, x):
        if x.shape[-1] > 4:
            return x
        return self.say(
            "repeat",
            self.choose(
                lambda t: t.repeat(1, 2),
                lambda t: t.repeat_interleave(2, -1),
                lambda t: torch.cat([t, t], -1),
                lambda t: t.expand(2, *t.shape).sum(0),
            )(x),
        )

    def step_packed(self, x):
        """Many queries and one key and value, in one projection, taken by slices, lists of indices or a split."""
        heads, d = self.choose(1, 2, 3), self.choose(1, 2)
        packed = F.linear(x.reshape(-1, x.shape[-1]), self.weight((heads + 2) * d, x.shape[-1])).view(-1, heads + 2, d)
        q, k, v = self.choose(
            lambda t: (t[:, :-2], t[:, [-2]], t[:, [-1]]),
            lambda t: t.split([heads, 1, 1], 1),
            lambda t: (t[:, :heads], t[:, heads : heads + 1], t[:, -1:]),
            lambda t: (t[:, 1:-1], t[:, :1], t[:, -1:]),
        )(packed)
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        out = ((q @ k.mT).softmax(-1) @ v).transpose(0, 1).reshape(-1, heads * d)
        return self.say(f"packed {heads}x{d}", F.linear(out, self.weight(3, heads * d)).reshape(*x.shape[:-1], 3))

    def step_grouped(self, x):
        """Groups of heads with a key and a value each, packed group by group; keys repeated in one way or another."""
        groups, heads, d = self.choose(1, 2, 3), self.choose(1, 2), self.choose(1, 2)
        packed = F.linear(x.reshape(-1, x.shape[-1]), self.weight(groups * (heads + 2) * d, x.shape[-1]))
        packed = packed.view(-1, groups, heads + 2, d)
        q, k, v = self.choose(
            lambda t: (t[:, :, :-2], t[:, :, [-2]], t[:, :, [-1]]), lambda t: t.split([heads, 1, 1], 2)
        )(packed)
        repeated = self.choose(
            lambda t: t.expand(-1, -1, heads, -1).flatten(1, 2),
            lambda t: t.squeeze(2).repeat_interleave(heads, 1),
        )
        q, k, v = (t.transpose(0, 1) for t in (q.flatten(1, 2), repeated(k), repeated(v)))
        out = ((q @ k.mT).softmax(-1) @ v).transpose(0, 1).flatten(1)
        out = F.linear(out, self.weight(3, groups * heads * d)).reshape(*x.shape[:-1], 3)
        return self.say(f"grouped {groups}x{heads}x{d}", out)

    def step_rotary(self, x):
        n = x.shape[-1]
        if n % 2:
            return x
        angle = torch.arange(x.shape[-2])[:, None] * torch.tensor([1.0 / (1 + i) for i in range(n // 2)])
        angle = angle.to(x.dtype)
        if self.choose(0, 1):
            turn = torch.polar(torch.ones_like(angle), angle)
            y = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (n // 2, 2)).contiguous()) * turn).flatten(-2)
        else:
            a, b = x.chunk(2, -1)
            y = x * torch.cat([angle, angle], -1).cos() + torch.cat([-b, a], -1) * torch.cat([angle, angle], -1).sin()
        return self.say("rotary", y)

    def step_largest(self, x):
        n, dim = x.shape[-1], self.choose(-1, -2)
        size = x.shape[dim]
        return self.say(
            "largest",
            self.choose(
                lambda t: t.topk(self.rng.randint(1, size), dim).values.sum(dim, keepdim=True).expand_as(t) + t,
                lambda t: t.sort(dim, descending=True).values,
                lambda t: t - t.median(dim, keepdim=True).values,
                lambda t: t * t.kthvalue(max(1, n // 2) if dim == -1 else 1, dim, keepdim=True).values,
            )(x),
        )

    def step_fourier(self, x):
        dim = self.choose(-1, -2)
        if self.choose(0, 1):
            return self.say("fourier", torch.fft.fft(x, dim=dim).real)
        return self.say("fourier", torch.fft.irfft(torch.fft.rfft(x, dim=dim), n=x.shape[dim], dim=dim))

    def step_windows(self, x):
        dim = self.choose(-1, -2)
        y = x.unfold(dim, self.rng.randint(1, min(2, x.shape[dim])), 1)
        return self.say("windows", y.tanh().sum(-1))

    def step_scatter(self, x):
        n = x.shape[-1]
        index = torch.tensor([self.rng.randrange(n) for _ in range(n)])
        return self.say(
            "scatter",
            self.choose(
                lambda t: torch.zeros_like(t).index_add(-1, index, t),
                lambda t: torch.zeros_like(t).scatter_add(-1, index.expand(t.shape), t),
                lambda t: t.index_put((torch.tensor([0]),), t[-1:].tanh()),
            )(x),
        )

    def step_blocks(self, x):
        """A constant equal in blocks, as prior scales can be, meets a product."""
        a, b = self.choose(1, 2, 3), self.choose(1, 2)
        scale = torch.tensor([self.choose(1.0, 2.0) for _ in range(a)], dtype=x.dtype).repeat_interleave(b)
        y = F.linear(x, self.weight(a * b, x.shape[-1])) * scale
        w = self.weight(a, b, 2)
        out = torch.einsum("...ab,abo->...o", torch.tanh(y.unflatten(-1, (a, b))), w)
        return self.say(f"blocks {a}x{b}", out if self.choose(0, 1) else torch.cat([out, y * scale], -1))

    def dense_finish(self, x):
        return self.choose(
            lambda: self.mix(x, 2), lambda: x.sum(-1), lambda: self.mix(torch.tanh(x), 3).logsumexp(-1)
        )()

    # -- images ----------------------------------------------------------------------------------------------------

    def image_step(self, x):
        return getattr(
            self,
            "image_"
            + self.choose(
                "conv",
                "conv",
                "act",
                "norm",
                "pool",
                "grouped",
                "transposed",
                "residual",
                "concat",
                "excite",
                "shuffle",
                "channels",
                "flatten",
                "interpolate",
                "unshuffle",
                "split",
                "window",
                "sample",
            ),
        )(x)

    def image_conv(self, x):
        width, k = self.choose(*WIDTHS), self.choose(1, 2, 3)
        bias = self.weight(width) if self.choose(0, 1) else None
        return self.say(
            "conv", F.conv2d(x, self.weight(width, x.shape[1], k, k), bias, padding=k // 2, stride=self.choose(1, 1, 2))
        )

    def image_act(self, x):
        return self.step_act(x)

    def image_norm(self, x):
        n = x.shape[1]
        kind = self.choose("group", "batch", "instance", "channel", "layer")
        if kind == "group":
            x = F.group_norm(
                x, self.choose(*[g for g in range(1, n + 1) if n % g == 0]), self.weight(n), self.weight(n)
            )
        elif kind == "batch":
            x = F.batch_norm(x, None, None, self.weight(n), self.weight(n), training=True) if x[:, 0].numel() > 1 else x
        elif kind == "instance":
            x = x / (x.square().mean((2, 3), keepdim=True) + 0.1).sqrt() * self.weight(n, 1, 1)
        elif kind == "channel":
            x = x - x.mean(1, keepdim=True)
        else:
            x = F.layer_norm(x, x.shape[1:])
        return self.say(kind, x)

    def image_pool(self, x):
        if min(x.shape[2:]) < 2:
            return x
        return self.say(
            "pool",
            self.choose(
                lambda t: F.max_pool2d(t, 2, 1),
                lambda t: F.avg_pool2d(t, 2),
                lambda t: F.adaptive_avg_pool2d(t, 2),
                lambda t: F.adaptive_max_pool2d(t, 1),
            )(x),
        )

    def image_grouped(self, x):
        n = x.shape[1]
        groups = self.choose(*[g for g in range(1, n + 1) if n % g == 0])
        width = groups * self.choose(1, 2)
        return self.say(f"grouped {groups}", F.conv2d(x, self.weight(width, n // groups, 1, 1), groups=groups))

    def image_transposed(self, x):
        n = x.shape[1]
        groups = self.choose(*[g for g in range(1, n + 1) if n % g == 0])
        out = self.choose(1, 2)
        return self.say(
            f"transposed {groups}", F.conv_transpose2d(x, self.weight(n, out, 2, 2), groups=groups)[..., :5, :5]
        )

    def image_residual(self, x):
        n = x.shape[1]
        h = F.relu(F.conv2d(x, self.weight(3, n, 3, 3), padding=1))
        return self.say("residual", x + F.conv2d(h, self.weight(n, 3, 3, 3), padding=1))

    def image_concat(self, x):
        old = self.choose(*[o for o in self.pool if o.dim() == 4 and o.shape[2:] == x.shape[2:]] or [x])
        return self.say("concat", torch.cat([x, old], 1)) if x.shape[1] + old.shape[1] <= 8 else x

    def image_excite(self, x):
        n = x.shape[1]
        gate = F.linear(torch.relu(F.linear(x.mean((2, 3)), self.weight(2, n))), self.weight(n, 2))
        return self.say("excite", x * gate.sigmoid()[..., None, None])

    def image_shuffle(self, x):
        n = x.shape[1]
        g = self.choose(*[g for g in range(1, n + 1) if n % g == 0])
        return self.say(f"shuffle {g}", x.view(len(x), g, n // g, *x.shape[2:]).transpose(1, 2).reshape(x.shape))

    def image_channels(self, x):
        n = x.shape[1]
        h = F.layer_norm(x.permute(0, 2, 3, 1), (n,), self.weight(n))
        h = F.linear(F.gelu(F.linear(h, self.weight(4, n))), self.weight(n, 4))
        return self.say("channels", x + h.permute(0, 3, 1, 2) * self.weight(n, 1, 1))

    def image_flatten(self, x):
        y = x.flatten(2).transpose(1, 2)
        y = torch.cat([y, y.mean(1, keepdim=True)], 1)[:, :-1]
        return self.say("tokens", y.transpose(1, 2).reshape(x.shape))

    def image_interpolate(self, x):
        return self.say("interpolate", F.interpolate(x, scale_factor=2)) if x.shape[-1] <= 2 else x

    def image_unshuffle(self, x):
        if x.shape[1] % 4 == 0 and x.shape[2] <= 3:
            return self.say("pixel shuffle", F.pixel_shuffle(x, 2))
        return (
            self.say("unshuffle", F.pixel_unshuffle(x, 2))
            if x.shape[1] <= 2 and x.shape[2] % 2 == x.shape[3] % 2 == 0
            else x
        )

    def image_split(self, x):
        n = x.shape[1]
        if n < 2:
            return x
        a, b = x[:, : n // 2], x[:, n // 2 :]
        return self.say("split", torch.cat([a.tanh(), b], 1) if self.choose(0, 1) else torch.cat([b, a], 1))

    def image_window(self, x):
        """Attention in shifted windows of two by two, with a bias for each pair of places and head."""
        b, n, h, w = x.shape
        if h % 2 or w % 2:
            return x
        heads, d = self.choose(1, 2), self.choose(1, 2)
        y = x.permute(0, 2, 3, 1).roll((-1, -1), (1, 2)) if self.choose(0, 1) else x.permute(0, 2, 3, 1)
        y = y.reshape(b, h // 2, 2, w // 2, 2, n).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, n)
        qkv = F.linear(y, self.weight(3 * heads * d, n)).reshape(-1, 4, 3, heads, d).permute(2, 0, 3, 1, 4)
        table = self.weight(16, heads)[torch.arange(16)].view(4, 4, heads).permute(2, 0, 1)
        out = ((qkv[0] @ qkv[1].mT + table).softmax(-1) @ qkv[2]).transpose(1, 2).reshape(-1, 4, heads * d)
        out = F.linear(out, self.weight(n, heads * d)).view(b, h // 2, w // 2, 2, 2, n)
        return self.say(f"window {heads}x{d}", x + out.permute(0, 5, 1, 3, 2, 4).reshape(x.shape))

    def image_sample(self, x):
        places = self.weight(x.shape[0], 2, 2, 2).tanh()
        return self.say("sample", F.grid_sample(x, places, align_corners=False))

    def image_finish(self, x):
        y = self.choose(lambda t: t.flatten(1), lambda t: t.mean((2, 3)), lambda t: t.amax((2, 3)))(x)
        return F.linear(y, self.weight(2, y.shape[1]))


def random_net(seed: int, activations=ACTIVATIONS) -> RandomNet:
    """The network of a seed, in evaluation of its fixed program."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return RandomNet(seed, activations)


def run(net: RandomNet, values) -> Tensor:
    """The network's output at other parameters."""
    return functional_call(net, dict(values), (net.input,))
