"""Relabeling a guide, alone or together with its model's learned parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro_align.guides.families.network import beside, by_axes
from pyro_align.guides.posterior import Guide
from pyro_align.guides.registry import read_guide, relabelable
from pyro_align.symmetry.element import Permutation


def permute_guide(guide: Any, p: Permutation, *, parameters: Callable[..., Any] | None = None) -> Guide:
    """A new guide of the same type whose draws are the relabeled draws of ``guide``, exactly.

    Its log density at a relabeled draw equals the old one at the draw. The old guide stays as it is.

    Args:
        guide: The guide, or a plain network, a state dict, or a dict of draws.
        p: The relabeling.
        parameters: The model, where parameters were learned beside the guide: they are relabeled with it, and the
            result is a :class:`~pyro_align.guides.GuideAndModel`.

    Raises:
        GuideError: The guide cannot be read, or not be relabeled exactly; the message names the site and a remedy.

    Example:
        >>> from pyro_align import Symmetry, permute_guide
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal, init_to_sample
        >>> def model():
        ...     pyro.sample("w", dist.Normal(0.0, 1.0).expand([6, 2]).to_event(2))
        >>> with pyro.get_param_store().scope():
        ...     guide = AutoNormal(model, init_loc_fn=init_to_sample)
        ...     _ = guide()
        >>> symmetry = Symmetry.from_axes({"w": ("unit", None)}, shapes={"w": (6, 2)})
        >>> moved = permute_guide(guide, symmetry.permutation({"unit": [5, 4, 3, 2, 1, 0]}))
        >>> bool((moved.median()["w"] == guide.median()["w"].flip(0)).all())
        True
    """
    guide = by_axes(guide, p.symmetry)
    q = read_guide(guide if parameters is None else beside(guide, parameters))
    return (q if p.is_identity else relabelable(q, p.symmetry)).permute(p).to_guide()
