"""The map that carries one law into another, fitted on draws of both.

It is the transport map between the Gaussians that have the draws' means and covariances (Takatsu 2011), of all
coordinates jointly where there are many draws per coordinate, and coordinate by coordinate elsewhere. What could be
sampling noise is shrunk away (James & Stein 1961), so that between two sets of draws of one law the map is close to
the identity in any number of dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

DRAWS_PER_COORDINATE = 8  # below this, correlations are noise: the map is diagonal


@dataclass(frozen=True, eq=False)
class Transport:
    """The affine map ``T(u) = center + shift + linear (u - center)``.

    Attributes:
        center: The first law's mean, ``(D,)``.
        shift: From the first law's mean to the second's, ``(D,)``.
        linear: The linear part, ``(D, D)``, or its diagonal, ``(D,)``.
    """

    center: Tensor = field(repr=False)
    shift: Tensor = field(repr=False)
    linear: Tensor = field(repr=False)

    def displace(self, u: Tensor, tau: float, *, from_end: bool = False) -> tuple[Tensor, Tensor]:
        """Where draws of the first law are at ``tau`` on their way to the second, or of the second where ``from_end``.

        Also the log of the volume change, the same for all draws.
        """
        one = torch.ones_like(self.center)
        between = torch.lerp(one if self.linear.dim() == 1 else one.diag(), self.linear, tau)
        gap, volume = u - self.center, _log_det(between)
        if from_end:
            gap, volume = _solve(self.linear, gap - self.shift), volume - _log_det(self.linear)
        return self.center + tau * self.shift + _apply(between, gap), volume


def fit_transport(x: Tensor, y: Tensor, sizes: Sequence[int]) -> Transport:
    """The map from the law of ``x`` to that of ``y``, from draws ``(draws, D)`` in float64."""
    count, (mx, my), (sx, sy) = len(x), (x.mean(0), y.mean(0)), (x.std(0, correction=0), y.std(0, correction=0))
    known = (sx > 0) & (sy > 0)
    sx, sy = torch.where(known, sx, 1.0), torch.where(known, sy, 1.0)
    white_x, white_y = (x - mx) / sx, (y - my) / sy
    shift = _shrunk(my - mx, (y - x).var(0, correction=1) / count if count > 1 else 0 * mx, sizes)
    influence = 0.5 * (white_y.square() - white_x.square())  # of each draw on the log of the ratio of scales
    log_scale = _shrunk((sy / sx).log(), influence.var(0, correction=0) / count, sizes)
    diagonal = log_scale.exp()
    if not 1 < x.shape[1] <= count / DRAWS_PER_COORDINATE:
        return Transport(mx, shift, diagonal)
    turn = _correlation_map(white_x, white_y)
    halves = [_correlation_map(white_x[i::2], white_y[i::2]) for i in range(2)]
    one = torch.eye(len(mx), dtype=x.dtype, device=x.device)
    common, total = ((halves[0] - one) * (halves[1] - one)).sum(), (turn - one).square().sum()
    if not common > 0:  # what one half of the draws says of the correlations, the other does not
        return Transport(mx, shift, diagonal)
    turn = torch.lerp(one, turn, float((common / total).clamp(0.0, 1.0)))
    return Transport(mx, shift, (sx * diagonal).unsqueeze(-1) * turn / sx)


def squared_distance(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Squared W2 distance of the Gaussian marginals of two laws, from draws ``(draws, D)``, and its standard error.

    A lower bound of the squared W2 distance of the laws themselves (Gelbrich 1990), estimated without the bias that
    comes from squaring a noisy difference.
    """
    count, (mx, my), (sx, sy) = len(x), (x.mean(0), y.mean(0)), (x.std(0, correction=0), y.std(0, correction=0))
    gap = torch.cat([my - mx, sy - sx])
    if count == 1:
        return float(gap.square().sum()), 0.0
    floor = torch.finfo(x.dtype).tiny
    spread = 0.5 * ((y - my).square() / sy.clamp_min(floor) - (x - mx).square() / sx.clamp_min(floor))
    single = torch.cat([y - x - (my - mx), spread - spread.mean(0)], dim=-1)  # what each draw adds to the gap
    gram = single @ single.T / (count - 1)
    noise = gram.diagonal().sum() / count
    both = gram.square().sum() - gram.diagonal().square().sum()  # the trace of the squared covariance
    variance = 4 * (single @ gap).square().sum() / (count - 1) / count + 2 * both / count**2
    return float(gap.square().sum() - noise), float(variance.clamp_min(0.0).sqrt())


def energy_coefficient(x: Tensor, y: Tensor) -> float:
    """How different two laws are, from 0, equal, to 1, estimated from draws (Szekely & Rizzo 2013)."""
    count = len(x)
    if count < 2:
        return 0.0
    across = torch.cdist(x, y)
    across = (across.sum() - across.diagonal().sum()) / (count * (count - 1))  # pairs may share their noise
    within = sum(torch.cdist(z, z).sum() / (count * (count - 1)) for z in (x, y))
    return float(((2 * across - within) / (2 * across)).clamp_min(0.0)) if across > 0 else 0.0


def _shrunk(value: Tensor, variance: Tensor, sizes: Sequence[int]) -> Tensor:
    """Positive-part James-Stein, site by site."""
    parts = []
    for v, noise in zip(value.split(list(sizes)), variance.split(list(sizes)), strict=True):
        total = float(v.square().sum())
        parts.append(v * max(0.0, 1.0 - float(noise.sum()) / total) if total > 0 else v)
    return torch.cat(parts)


def _correlation_map(x: Tensor, y: Tensor) -> Tensor:
    """The transport map between centered Gaussians with the covariances of standardized draws, symmetric."""
    a, b = (z.T @ z / len(z) for z in (x, y))
    root, inverse = _roots(a)
    return inverse @ _roots(root @ b @ root)[0] @ inverse


def _roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Square root and inverse square root of a covariance."""
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp_min(1e-8 * float(values[-1].clamp_min(1e-8))).sqrt()
    return vectors * values @ vectors.T, vectors / values @ vectors.T


def _apply(linear: Tensor, rows: Tensor) -> Tensor:
    return rows * linear if linear.dim() == 1 else rows @ linear.T


def _solve(linear: Tensor, rows: Tensor) -> Tensor:
    return rows / linear if linear.dim() == 1 else torch.linalg.solve(linear, rows.T).T


def _log_det(linear: Tensor) -> Tensor:
    return linear.log().sum() if linear.dim() == 1 else torch.linalg.slogdet(linear).logabsdet
