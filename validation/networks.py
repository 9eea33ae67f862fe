"""Scalings and rotations of networks fitted to scikit-learn's digits from two seeds: test barriers before and after.

python validation/networks.py gauge          # ReLU network, two recipes for scale: without and with a gauge
python validation/networks.py transformer    # RMSNorm without gains: permutations; rotations of heads and stream

Point estimates; the barrier is that of the test NLL along the straight line, in nats per image.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from pyro_align import align, find_symmetry

Values = dict[str, Tensor]
TRAIN = 1437


def digits() -> tuple[Tensor, Tensor, Tensor]:
    """Images, classes, and an order of which the first 1,437 are for training."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return torch.tensor(x).float() / 16, torch.tensor(y), order


def barrier(loss: Callable[[Values], float], a: Values, b: Values, points: int) -> float:
    """The largest rise above the straight line between the endpoints."""
    ends, rises = (loss(a), loss(b)), []
    for t in torch.linspace(0, 1, points).tolist():
        rises.append(loss({k: (1 - t) * a[k] + t * b[k] for k in a}) - (1 - t) * ends[0] - t * ends[1])
    return max(rises)


# -- one scale for ReLU units ------------------------------------------------------------------------------------------

WIDTHS = {"w1": (64, 128), "b1": (128,), "w2": (128, 128), "b2": (128,), "w3": (128, 10)}


def relu_net(p: Values, x: Tensor) -> Tensor:
    return torch.relu(torch.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]) @ p["w3"]


def fit_relu(seed: int, gains: tuple[float, ...], steps: int, x: Tensor, y: Tensor, train: Tensor) -> Values:
    torch.manual_seed(seed)
    gain = dict(zip(("w1", "w2", "w3"), gains, strict=True))
    p = {
        k: torch.randn(s) * 0.3 * gain[k] * (2 / s[0]) ** 0.5 if k in gain else torch.zeros(s)
        for k, s in WIDTHS.items()
    }
    p = {k: v.requires_grad_() for k, v in p.items()}
    optimizer = torch.optim.SGD(p.values(), 0.05, momentum=0.9)
    for _ in range(steps):
        j = train[torch.randint(len(train), (128,))]
        loss = F.cross_entropy(relu_net(p, x[j]), y[j]) + 1e-4 * sum(v.square().sum() for v in p.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {k: v.detach() for k, v in p.items()}


def gauge(steps: int) -> None:
    """The same start recipe, and one that shares scale between layers otherwise."""
    x, y, order = digits()
    train, test = order[:TRAIN], order[TRAIN:]

    def model(x: Tensor, y: Tensor) -> None:
        p = {k: pyro.sample(k, dist.Normal(0.0, 1.0).expand(s).to_event(len(s))) for k, s in WIDTHS.items()}
        pyro.sample("y", dist.Categorical(logits=relu_net(p, x)).to_event(1), obs=y)

    plain, scaled = (find_symmetry(model, x[:5], y[:5], scope="likelihood", scalings=s) for s in (False, True))
    print(*scaled.scalings, sep="\n")
    a = OrderedDict(fit_relu(0, (1, 1, 1), steps, x, y, train))

    def loss(p: Values) -> float:
        return float(F.cross_entropy(relu_net(p, x[test]), y[test]))

    for name, gains in (("same recipe", (1, 1, 1)), ("scale shared otherwise", (4, 0.5, 0.5))):
        b = OrderedDict(fit_relu(1, gains, steps, x, y, train))
        for what, symmetry in (("permutations", plain), ("gauge, permutations", scaled)):
            found = align(a, b, symmetry, restarts=4)
            value = barrier(loss, dict(found.reference.to_guide()), dict(found.guide), 11)
            print(f"{name:24s}{what:22s}test barrier {value:.4f}", flush=True)


# -- rotations of a transformer ----------------------------------------------------------------------------------------

D, HEADS, DIM, HIDDEN, LAYERS = 64, 4, 16, 128, 2
SHAPES = {"emb": (4, D), "pos": (16, D), "head": (D, 10)}
for _l in range(LAYERS):
    SHAPES |= {f"{n}{_l}": (D, HEADS * DIM) for n in "qkv"} | {f"o{_l}": (HEADS * DIM, D)}
    SHAPES |= {f"u{_l}": (D, HIDDEN), f"d{_l}": (HIDDEN, D)}


def rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def transformer(p: Values, x: Tensor) -> Tensor:
    """On 16 patches of 2 x 2."""
    patches = (x - 0.3).reshape(-1, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(-1, 16, 4)
    h = patches @ p["emb"] + p["pos"]
    for layer in range(LAYERS):
        z = rms(h)
        q, k, v = ((z @ p[f"{n}{layer}"]).reshape(len(x), 16, HEADS, DIM).transpose(1, 2) for n in "qkv")
        mixed = torch.softmax(q @ k.transpose(-1, -2) / DIM**0.5, -1) @ v
        h = h + mixed.transpose(1, 2).reshape(len(x), 16, -1) @ p[f"o{layer}"]
        h = h + F.gelu(rms(h) @ p[f"u{layer}"]) @ p[f"d{layer}"]
    return rms(h).mean(1) @ p["head"]


def fit_transformer(seed: int, epochs: int, decay: float, x: Tensor, y: Tensor, train: Tensor) -> Values:
    torch.manual_seed(seed)
    p = {k: (torch.randn(s) * (s[0] if k != "pos" else 4) ** -0.5).requires_grad_() for k, s in SHAPES.items()}
    optimizer, steps = torch.optim.Adam(p.values(), 3e-3), epochs * TRAIN // 128
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, (steps - i) / (0.6 * steps)))
    for _ in range(steps):
        j = train[torch.randint(len(train), (128,))]
        prior = decay / TRAIN * 0.5 * sum(v.square().sum() for v in p.values())
        optimizer.zero_grad()
        (F.cross_entropy(transformer(p, x[j]), y[j]) + prior).backward()
        optimizer.step()
        schedule.step()
    return {k: v.detach() for k, v in p.items()}


def rotations(epochs: int, decay: float, folder: Path | None) -> None:
    """Aligned by permutations, and by all that the model allows."""
    x, y, order = digits()
    train, test = order[:TRAIN], order[TRAIN:]
    file = folder and folder / f"transformers_{epochs}_{decay}.pt"
    if file and file.exists():
        a, b = torch.load(file)
    else:
        a, b = (fit_transformer(seed, epochs, decay, x, y, train) for seed in (0, 1))
        if file:
            torch.save((a, b), file)

    def model(x: Tensor, y: Tensor) -> None:
        p = {k: pyro.sample(k, dist.Normal(0.0, 1.0).expand(s).to_event(2)) for k, s in SHAPES.items()}
        pyro.sample("y", dist.Categorical(logits=transformer(p, x)).to_event(1), obs=y)

    def loss(p: Values) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(transformer(p, x[test]), y[test]))

    print(f"test NLL {loss(a):.3f} {loss(b):.3f}; before alignment barrier {barrier(loss, a, b, 5):.3f}", flush=True)
    for options in ({}, {"signs": True, "rotations": True}):
        symmetry = find_symmetry(model, x[:8], y[:8], **options)
        for restarts in (0, 2):
            found = align(OrderedDict(a), OrderedDict(b), symmetry, restarts=restarts)
            value = barrier(loss, a, dict(found.guide), 5)
            print(f"{', '.join(options) or 'permutations'}, restarts={restarts}: test barrier {value:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["gauge", "transformer"])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--decay", type=float, default=1.0, help="precision of the normal prior")
    parser.add_argument("--fits", type=Path, help="a folder that keeps the transformers")
    parser.add_argument("--quick", action="store_true", help="fits that are far from done")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part == "gauge":
        gauge(100 if options.quick else 1500)
    else:
        rotations(2 if options.quick else options.epochs, options.decay, options.fits)


if __name__ == "__main__":
    main()
