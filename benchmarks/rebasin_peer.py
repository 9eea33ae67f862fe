"""Runs the `rebasin` package on one problem. A script of its own, as the package may live in another environment.

    python rebasin_peer.py PROBLEM.pt      # written by matching.py: network name, fixed and moving tensors

Prints one JSON object: CPU seconds of its permutation search alone (tracing the model is not counted) and the objective
of the weights it leaves behind.
"""

import contextlib
import io
import json
import sys
import time

import torch
from torch import nn


class Plain(nn.Module):
    """Layers in a row, ReLU between; convolutions pooled on average before the classifier."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.act = nn.ReLU()

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = self.act(layer(x))
        if x.dim() == 4:
            x = x.mean((2, 3))
        return self.layers[-1](x)


class Block(nn.Module):
    def __init__(self, before, n, shortcut):
        super().__init__()
        stride = 1 if before == n else 2
        self.conv1 = nn.Conv2d(before, n, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(1, n)
        self.conv2 = nn.Conv2d(n, n, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(1, n)
        self.act = nn.ReLU()
        self.shortcut = nn.Conv2d(before, n, 1, stride, bias=False) if shortcut else None
        self.norm_shortcut = nn.GroupNorm(1, n) if shortcut else None

    def forward(self, x):
        out = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        side = x if self.shortcut is None else self.norm_shortcut(self.shortcut(x))
        return self.act(out + side)


class ResNet(nn.Module):
    def __init__(self, multiplier):
        super().__init__()
        n = 16 * multiplier
        self.conv1 = nn.Conv2d(3, n, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(1, n)
        self.act = nn.ReLU()
        before, blocks = n, []
        for stage in range(3):
            n = 16 * multiplier * 2**stage
            for _ in range(3):
                blocks.append(Block(before, n, before != n))
                before = n
        self.blocks = nn.ModuleList(blocks)
        self.classifier = nn.Linear(before, 10)

    def forward(self, x):
        x = self.act(self.norm1(self.conv1(x)))
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean((2, 3)))


def build(name):
    """The network and an input, or None where it is not written here."""
    if name.startswith("mlp-"):
        sizes = [784, *[int(name[4:])] * 3, 10]
        return Plain(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])), torch.zeros(2, 784)  # noqa: B905, RUF007
    if name == "vgg16":
        widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
        convs = [nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:])]  # noqa: B905, RUF007
        return Plain([*convs, nn.Linear(512, 10)]), torch.zeros(2, 3, 8, 8)
    if name.startswith("resnet20-x"):
        return ResNet(int(name[10:])), torch.zeros(2, 3, 32, 32)
    return None, None


def load(model, values):
    """Fills a model's parameters; both sides list them in the same order, layer by layer."""
    by_shape = list(values.values())
    with torch.no_grad():
        for parameter in model.parameters():
            match = next(i for i, v in enumerate(by_shape) if v.shape == parameter.shape)
            parameter.copy_(by_shape.pop(match))
    return model.eval()


def main():
    from rebasin import PermutationCoordinateDescent

    torch.set_num_threads(1)
    problem = torch.load(sys.argv[1])
    model, data = build(problem["name"])
    if model is None:
        print(json.dumps(None))
        return
    fixed, moving = load(model, problem["fixed"]), load(build(problem["name"])[0], problem["moving"])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        search = PermutationCoordinateDescent(fixed, moving, data)
        start = time.process_time()
        search.calculate_permutations()
        seconds = time.process_time() - start
        search.apply_permutations()
    pairs = zip(fixed.parameters(), moving.parameters())  # noqa: B905
    value = sum(float((a.double() * b.double()).sum()) for a, b in pairs)
    print(json.dumps({"cpu_s": seconds, "objective": value}))


if __name__ == "__main__":
    main()
