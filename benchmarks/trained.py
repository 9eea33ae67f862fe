"""Trained weights to match: multilayer perceptrons fitted to MNIST by plain SGD, from two seeds.

The folder holds ``train-images-idx3-ubyte.gz`` and ``train-labels-idx1-ubyte.gz`` as they are published. One epoch of
SGD with momentum .9, learning rate .05 falling to 0 on a straight line, batches of 128, PyTorch's initialization.
"""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

BATCH, RATE, MOMENTUM = 128, 0.05, 0.9


def trained_mlp(width: int, seed: int, data: Path, cache: Path, *, hidden: int = 3, epochs: int = 1):
    """Features of one fitted network, by the parameter names of ``problems.mlp``; kept in ``cache``."""
    path = cache / f"mlp-{width}-{hidden}-{epochs}-{seed}.pt"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(fit([784, *[width] * hidden, 10], seed, data, epochs), path)
    return {name: (value,) for name, value in torch.load(path).items()}


def fit(sizes: list[int], seed: int, data: Path, epochs: int) -> dict[str, torch.Tensor]:
    x, y = read(data / "train-images-idx3-ubyte.gz", 16), read(data / "train-labels-idx1-ubyte.gz", 8)
    x, y = x.reshape(-1, 784).float().sub_(33.3).div_(78.6), y.long()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(*(m for layer in layers for m in (layer, nn.ReLU())))[:-1]
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM)
    total = epochs * (len(x) // BATCH)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator)[: total // epochs * BATCH].split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
            decay.step()
    with torch.no_grad():
        error = float((network(x[:10000]).argmax(1) != y[:10000]).float().mean())
    print(f"fitted {sizes} from seed {seed}: {error:.2%} training error")
    return {f"layers.{i}.{k}": v.detach() for i, m in enumerate(layers) for k, v in m.named_parameters()}


def read(path: Path, header: int) -> torch.Tensor:
    """The bytes of an IDX file after its header."""
    return torch.frombuffer(bytearray(gzip.decompress(path.read_bytes())[header:]), dtype=torch.uint8)
