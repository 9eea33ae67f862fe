"""Data sets in the formats in which the world distributes them: IDX files, npz archives, scikit-learn, OpenML."""

from __future__ import annotations

import gzip
import io
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ENVIRONMENT = "PYRO_ALIGN_DATA"


@dataclass(frozen=True)
class DataSet:
    """Images and classes to train on and to test on.

    Attributes:
        name: Name for tables.
        x: Training images ``(data, pixels)`` or ``(data, channels, height, width)``.
        y: Their classes ``(data,)``.
        x_test: Test images.
        y_test: Their classes.
    """

    name: str
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.y.max()) + 1

    def flat(self) -> DataSet:
        """The same with every image as one vector."""
        return DataSet(self.name, self.x.flatten(1), self.y, self.x_test.flatten(1), self.y_test)

    def pooled(self, side: int) -> DataSet:
        """Images averaged over squares of ``side`` pixels a side, which must divide theirs."""
        x, x_test = (torch.nn.functional.avg_pool2d(part, side) for part in (self.x, self.x_test))
        return DataSet(self.name, x, self.y, x_test, self.y_test)

    def to(self, device: str) -> DataSet:
        """The same on another device."""
        return DataSet(self.name, *(t.to(device) for t in (self.x, self.y, self.x_test, self.y_test)))

    def head(self, train: int | None, test: int | None) -> DataSet:
        """The first images of both parts; None for all."""
        return DataSet(self.name, self.x[:train], self.y[:train], self.x_test[:test], self.y_test[:test])


Loader = Callable[["Path | None", "int | None"], DataSet]


def load(name: str, data_dir: str | os.PathLike | None = None, *, limit: int | None = None) -> DataSet:
    """One of :data:`LOADERS` by name.

    Args:
        name: ``"digits"`` (bundled with scikit-learn), ``"mnist"``, ``"fashion_mnist"``, ``"cifar10_exact"``,
            ``"cifar10_jpeg"``.
        data_dir: Folder of the data sets that are not bundled; by default the environment variable PYRO_ALIGN_DATA.
            Without either, MNIST and Fashion-MNIST are fetched from OpenML.
        limit: Greatest number of images of either part, the first ones; None for all.

    Raises:
        ValueError: The name is unknown.
        FileNotFoundError: The folder does not hold the data set.
    """
    if name not in LOADERS:
        raise ValueError(f"unknown data set {name!r}; there are {', '.join(LOADERS)}")
    folder = data_dir or os.environ.get(ENVIRONMENT)
    return LOADERS[name](Path(folder) if folder else None, limit).head(limit, limit)


def load_digits(folder: Path | None = None, limit: int | None = None) -> DataSet:
    """The 1797 8x8 digits of scikit-learn, 1437 to train on and 360 held out (a fixed random split)."""
    from sklearn.datasets import load_digits as bundled

    pixels, classes = bundled(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(classes)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return DataSet("digits", x[train], y[train], x[test], y[test])


def idx_loader(name: str, openml: str) -> Loader:
    """A loader of a data set in MNIST's four files, from a folder or else from OpenML."""

    def loader(folder: Path | None, limit: int | None = None) -> DataSet:
        if folder is None:
            return _from_openml(name, openml)
        parts = [
            read_idx(_find(folder / name, f"{part}-{what}"))
            for part in ("train", "t10k")
            for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
        ]
        images = [torch.from_numpy(p).float().div(255)[:, None] for p in parts[::2]]
        classes = [torch.from_numpy(p).long() for p in parts[1::2]]
        return DataSet(name, images[0], classes[0], images[1], classes[1])

    return loader


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped or not: two zero bytes, type, number of axes, big-endian sizes, values.

    Raises:
        ValueError: It is no such file, or is cut short.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        magic = file.read(4)
        if len(magic) < 4 or magic[:3] != b"\0\0\x08":
            raise ValueError(f"{path} is not an IDX file of unsigned bytes")
        shape = struct.unpack(f">{magic[3]}I", file.read(4 * magic[3]))
        values = np.frombuffer(file.read(), np.uint8)
    if values.size != np.prod(shape):
        raise ValueError(f"{path}: the header promises shape {shape}, the file holds {values.size} values")
    return values.reshape(shape).copy()


def load_cifar10_exact(folder: Path | None, limit: int | None = None) -> DataSet:
    """The exact pixels of the first 4,000 training and 1,000 test images of CIFAR-10, channels standardized."""
    archive = _cifar10(folder, "cifar10_exact", "cifar10_lossless_4000_1000.npz")
    return _standardized("cifar10_exact", *(archive[key] for key in ("x_train", "y_train", "x_test", "y_test")))


def load_cifar10_jpeg(folder: Path | None, limit: int | None = None) -> DataSet:
    """JPEG CIFAR-10: all 50,000 + 10,000 images after lossy compression (quality 75), channels standardized.

    The archive has one JPEG header for all images, their scans one after the other, and the classes; 50,000 images to
    train on come first. Figures on it do not compare with those published for CIFAR-10.

    Args:
        folder: The data folder.
        limit: Greatest number of images of either part; what is beyond is not decoded.
    """
    from PIL import Image

    archive = _cifar10(folder, "cifar10_jpeg", "cifar10_jpegq75_60000.npz")
    header, scans, offsets, classes = (archive[key] for key in ("header", "scan", "offsets", "labels"))
    head, body = header.tobytes(), scans.tobytes()

    def decoded(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        last = last if limit is None else min(last, first + limit)
        files = (io.BytesIO(head + body[offsets[i] : offsets[i + 1]]) for i in range(first, last))
        return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]), classes[first:last]

    return _standardized("cifar10_jpeg", *decoded(0, 50000), *decoded(50000, len(classes)))


def _cifar10(folder: Path | None, name: str, file: str) -> dict[str, np.ndarray]:
    if folder is None:
        raise FileNotFoundError(f"{name} needs --data-dir or {ENVIRONMENT}")
    path = folder / "cifar10" / file
    if not path.exists():
        raise FileNotFoundError(f"no {path}")
    with np.load(path) as archive:
        return {key: archive[key] for key in archive.files}


def _standardized(name: str, x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> DataSet:
    """Bytes ``(data, height, width, channels)`` as numbers, channels standardized by the training data."""
    parts = [torch.from_numpy(np.moveaxis(part, -1, 1).copy()).float() for part in (x, x_test)]
    mean, sd = (moment((0, 2, 3), keepdim=True) for moment in (parts[0].mean, parts[0].std))
    train, test = ((part - mean) / sd for part in parts)
    return DataSet(name, train, torch.from_numpy(y).long(), test, torch.from_numpy(y_test).long())


def _find(folder: Path, stem: str) -> Path:
    for path in (folder / f"{stem}.gz", folder / stem):
        if path.exists():
            return path
    raise FileNotFoundError(f"no {stem}[.gz] in {folder}; give the folder above it by --data-dir or {ENVIRONMENT}")


def _from_openml(name: str, openml: str) -> DataSet:
    from sklearn.datasets import fetch_openml

    pixels, classes = fetch_openml(openml, version=1, return_X_y=True, as_frame=False)
    x = torch.tensor(pixels / 255, dtype=torch.float32).reshape(-1, 1, 28, 28)
    y = torch.tensor(classes.astype(int))
    return DataSet(name, x[:60000], y[:60000], x[60000:], y[60000:])


LOADERS: dict[str, Loader] = {
    "digits": load_digits,
    "mnist": idx_loader("mnist", "mnist_784"),
    "fashion_mnist": idx_loader("fashion_mnist", "Fashion-MNIST"),
    "cifar10_exact": load_cifar10_exact,
    "cifar10_jpeg": load_cifar10_jpeg,
}
