"""How long discovery takes, certificate included, and how much memory it needs beyond the model.

python benchmarks/discovery.py resnet      # ResNet-20 x4, against one make_fx tracing of its log joint
python benchmarks/discovery.py depth       # encoders of 12, 24 and 48 layers, likewise
python benchmarks/discovery.py gpt2        # 12 layers, 124M parameters: CPU seconds and peak memory
python benchmarks/discovery.py everything  # signs, rotations, scalings too, against permutations alone
python benchmarks/discovery.py vit_b_16    # a published network as its library builds it (extra `networks`)
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

import pyro_align
from pyro_align.model.density import Density


class Block(nn.Module):
    """Two convolutions with GroupNorm, and a shortcut."""

    def __init__(self, n: int, m: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(n, m, 3, stride, 1, bias=False), nn.GroupNorm(8, m)
        self.conv2, self.norm2 = nn.Conv2d(m, m, 3, 1, 1, bias=False), nn.GroupNorm(8, m)
        self.short = nn.Conv2d(n, m, 1, stride, bias=False) if stride != 1 or n != m else nn.Identity()

    def forward(self, x):
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.short(x))


def resnet(width: int = 4) -> nn.Module:
    """ResNet-20 for 32 x 32 images, `width` times as wide as the original."""
    n = 16 * width
    layers: list[nn.Module] = [nn.Conv2d(3, n, 3, 1, 1, bias=False), nn.GroupNorm(8, n), nn.ReLU()]
    for m in (16 * width, 32 * width, 64 * width):
        for i in range(3):
            layers.append(Block(n, m, 2 if i == 0 and m != 16 * width else 1))
            n = m
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, 10))


def bayesian(net: nn.Module):
    """A Pyro model with a standard normal prior on every parameter."""
    shapes = {k: p.shape for k, p in net.named_parameters()}

    def model(x, y):
        values = {k: pyro.sample(k, dist.Normal(0.0, 1.0).expand(s).to_event(len(s))) for k, s in shapes.items()}
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=functional_call(net, values, (x,))), obs=y)

    return model


class GPT2(nn.Module):
    """The architecture of GPT-2 small: pre-norm, packed projections, tied embedding."""

    def __init__(self, layers=12, width=768, heads=12, words=50257, time=1024):
        super().__init__()
        self.heads, self.wte, self.wpe, self.ln = (
            heads,
            nn.Embedding(words, width),
            nn.Embedding(time, width),
            nn.LayerNorm(width),
        )
        self.blocks = nn.ModuleList(
            nn.ModuleDict({
                "ln1": nn.LayerNorm(width), "qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width),
                "ln2": nn.LayerNorm(width), "up": nn.Linear(width, 4 * width), "down": nn.Linear(4 * width, width),
            })
            for _ in range(layers)
        )  # fmt: skip

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            q, k, v = (
                t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in block["qkv"](block["ln1"](x)).chunk(3, -1)
            )
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block["proj"](a.transpose(1, 2).flatten(2))
            x = x + block["down"](F.gelu(block["up"](block["ln2"](x)), approximate="tanh"))
        return self.ln(x) @ self.wte.weight.T


def _tokens(package, kind: str, config) -> tuple[nn.Module, torch.Tensor]:
    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = getattr(package, kind)(config)

        def forward(self, tokens):
            return self.model(tokens, use_cache=False).logits

    return Logits(), torch.randint(3, 1000, (1, 8))


PUBLISHED = {  # package, and what it returns: network and input
    "resnet50": ("torchvision", lambda p: (p.models.resnet50(), torch.randn(2, 3, 64, 64))),
    "densenet121": ("torchvision", lambda p: (p.models.densenet121(), torch.randn(2, 3, 64, 64))),
    "efficientnet_b0": ("torchvision", lambda p: (p.models.efficientnet_b0(), torch.randn(2, 3, 64, 64))),
    "convnext_tiny": ("torchvision", lambda p: (p.models.convnext_tiny(), torch.randn(2, 3, 64, 64))),
    "vit_b_16": ("torchvision", lambda p: (p.models.vit_b_16(), torch.randn(1, 3, 224, 224))),
    "swin_t": ("torchvision", lambda p: (p.models.swin_t(), torch.randn(1, 3, 224, 224))),
    "gpt2_small": ("transformers", lambda p: _tokens(p, "GPT2LMHeadModel", p.GPT2Config())),
    "bert_base": ("transformers", lambda p: _tokens(p, "BertForMaskedLM", p.BertConfig())),
    "qwen2_0.5b": (
        "transformers",
        lambda p: _tokens(
            p,
            "Qwen2ForCausalLM",
            p.Qwen2Config(
                hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
                num_key_value_heads=2, tie_word_embeddings=True,
            ),
        ),
    ),
}  # fmt: skip


def run_published(name: str) -> None:
    """Seconds and memory of discovery on a published network with random weights."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from packages import installed

    package, make = PUBLISHED[name]
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    net, x = make(installed(package))
    report(name, net.eval(), x)


def peak() -> float:
    """Peak resident memory of this process, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def timed(function):
    """``(result, CPU seconds)``."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def against_tracing(model, args: tuple, repeats: int = 3) -> dict[str, float]:
    """Least CPU seconds of one make_fx tracing of the log joint, of discovery, and of one relabeling."""
    density = Density(model, args)
    values = density.initial_values()

    def trace():
        function = lambda *v: density.log_joint(dict(zip(values, v, strict=True)))  # noqa: E731
        return make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*values.values())

    pyro_align.discovery.find_symmetry(bayesian(nn.Linear(3, 2)), torch.randn(2, 3), args[1] % 2)  # imports and caches
    runs = [(timed(trace)[1], *timed(lambda: pyro_align.discovery.find_symmetry(model, *args))) for _ in range(repeats)]
    element = runs[0][1].random(torch.Generator().manual_seed(0))
    applied = min(timed(lambda: element.apply(values))[1] for _ in range(3 * repeats))
    tracing, discovery = min(run[0] for run in runs), min(run[2] for run in runs)
    print(f"{sum(v.numel() for v in values.values()):,} parameters, {len(runs[0][1].atoms)} atoms")
    print(
        f"one make_fx tracing of the log joint {tracing:.2f} s; discovery with certificate {discovery:.2f} s: "
        f"{discovery / tracing:.2f} times; one relabeling {applied:.3f} s"
    )
    return {"tracing": tracing, "discovery": discovery, "relabeling": applied}


def run_resnet() -> None:
    """Discovery against one tracing of the log joint."""
    print("ResNet-20 x4:")
    against_tracing(bayesian(resnet()), (torch.randn(2, 3, 32, 32), torch.tensor([1, 7])))


def run_depth() -> None:
    """The same for encoders of 12, 24 and 48 layers, and how it grows."""
    seconds: dict[int, dict[str, float]] = {}
    for layers in (12, 24, 48):
        blocks = [nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True) for _ in range(layers)]
        print(f"encoder of {layers} layers:")
        model = bayesian(nn.Sequential(*blocks, nn.Flatten(), nn.Linear(80, 3)))
        seconds[layers] = against_tracing(model, (torch.randn(2, 5, 16), torch.tensor([1, 2])), repeats=2)
    print("48 layers / 24: " + ", ".join(f"{k} {seconds[48][k] / v:.2f} times" for k, v in seconds[24].items()))


def run_gpt2() -> None:
    """Seconds and memory of discovery on 124M parameters."""
    report("GPT-2 small", GPT2().eval(), torch.randint(0, 50257, (1, 8)))


class Transformer(nn.Module):
    """Two layers, RMSNorm without gains: its stream and the dimensions of its heads rotate."""

    def __init__(self, width: int = 16, heads: int = 2):
        super().__init__()
        self.heads, self.embed, self.out = heads, nn.Linear(8, width, bias=False), nn.Linear(width, 10, bias=False)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({
                **{name: nn.Linear(width, width, bias=False) for name in ("q", "k", "v", "o")},
                "up": nn.Linear(width, 32, bias=False), "down": nn.Linear(32, width, bias=False),
            })
            for _ in range(2)
        )  # fmt: skip

    def forward(self, x):
        norm = lambda h: h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-5)  # noqa: E731
        h = self.embed(x)
        for block in self.blocks:
            q, k, v = (block[n](norm(h)).unflatten(-1, (self.heads, -1)).transpose(1, 2) for n in "qkv")
            mixed = torch.softmax(q @ k.mT, -1) @ v
            h = h + block["o"](mixed.transpose(1, 2).flatten(2))
            h = h + block["down"](F.gelu(block["up"](norm(h))))
        return self.out(norm(h)).mean(1)


def factors(y):
    """Three factors with spherical priors."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([y.shape[1], 3]).to_event(2))
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(y), 3]).to_event(2))
    pyro.sample("y", dist.Normal(z @ w.T, 1.0).to_event(2), obs=y)


def run_everything(repeats: int = 5) -> None:
    """CPU seconds of discovery with every kind of symmetry, over those with permutations alone; least of five."""
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([1, 7])

    def perceptron(kind: type[nn.Module]):
        return bayesian(nn.Sequential(nn.Linear(20, 50), kind(), nn.Linear(50, 50), kind(), nn.Linear(50, 10)))

    problems = {
        "factors": (factors, (torch.randn(100, 9),)),
        "perceptron, tanh": (perceptron(nn.Tanh), (torch.randn(2, 20), y)),
        "perceptron, ReLU": (perceptron(nn.ReLU), (torch.randn(2, 20), y)),
        "transformer": (bayesian(Transformer()), (torch.randn(2, 6, 8), y)),
        "ResNet-20 x1": (bayesian(resnet(1)), (x, y)),
    }
    for name, (model, args) in problems.items():
        for scope in ("joint", "likelihood"):
            every = {"signs": True, "rotations": True, "scalings": scope == "likelihood"}
            alone, joined = (
                partial(pyro_align.discovery.find_symmetry, model, *args, scope=scope, **k) for k in ({}, every)
            )
            runs = [(timed(alone)[1], timed(joined)[1]) for _ in range(repeats + 1)]
            a, b = (min(times) for times in zip(*runs[1:], strict=True))  # the first imports and fills caches
            print(f"{name:18s} {scope:10s} {a:6.2f} s, everything {b:6.2f} s: {b / a:.2f} times")


def report(name: str, net: nn.Module, x: torch.Tensor) -> None:
    """Prints what discovery costs on a module, beyond one evaluation of it."""
    with torch.no_grad():
        net(x)
    before = peak()
    symmetry, seconds = timed(lambda: pyro_align.discovery.find_symmetry(net, x))
    print(f"{name}: {sum(p.numel() for p in net.parameters()):,} parameters, {len(symmetry.atoms)} atoms")
    if symmetry.opaque:
        print(f"opaque: {', '.join(sorted({o.operation for o in symmetry.opaque}))}")
    print(
        f"discovery with certificate {seconds:.1f} s, peak memory {peak() - before:.2f} GiB beyond the model's "
        f"{before:.2f} GiB"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own = {"resnet": run_resnet, "depth": run_depth, "gpt2": run_gpt2, "everything": run_everything}
    parser.add_argument("model", choices=[*own, *PUBLISHED])
    chosen = parser.parse_args().model
    own[chosen]() if chosen in own else run_published(chosen)
