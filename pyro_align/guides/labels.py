"""Discrete sites whose values are labels: a mixture's assignments, a hidden Markov model's states.

A symmetry says which axes of a site's value stand for units. Where the value itself is the number of a unit,
relabeling the units must change the value; whether it is one, nothing in a guide tells. So it has to be said.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.distributions import constraints

from pyro_align.axes import leaves
from pyro_align.errors import GuideError
from pyro_align.guides.sites import SiteSpec
from pyro_align.symmetry.element import Permutation

Labels = Mapping[str, str | None]


def check_labels(labels: Labels, sites: Mapping[str, SiteSpec]) -> dict[str, str | None]:
    """The labels, checked against a guide's sites."""
    for name in labels:
        if name not in sites or not sites[name].is_discrete:
            discrete = [k for k, spec in sites.items() if spec.is_discrete]
            raise GuideError(f"labels= names the site '{name}'; the guide's discrete sites are {discrete}")
    return dict(labels)


def label_moves(p: Permutation, sites: Mapping[str, SiteSpec], labels: Labels) -> dict[str, Tensor]:
    """Site -> which old unit each new unit is, for the discrete sites whose values a relabeling changes."""
    moved = {name for name, count in p.moved().items() if count}
    found: dict[str, Tensor] = {}
    for name, spec in sites.items():
        if not moved or not spec.is_discrete:
            continue
        if name not in labels:
            if any(not atom.fixed for term in p.symmetry.sites.get(name, ()) for atom in leaves(term)):
                continue  # its axes stand for units: its values say something of them
            raise GuideError(
                f"site '{name}' is discrete, and its values may be labels of the relabeled units "
                f"({', '.join(sorted(moved))}), which would have to change, too. Say so: "
                f"read_guide(guide, labels={{'{name}': '{min(moved)}'}}), or labels={{'{name}': None}} if they are not"
            )
        atom = labels[name]
        if atom is None:
            continue
        if atom not in p.indices:
            raise GuideError(
                f"labels= says that the values of '{name}' are units of '{atom}'; the symmetry has {list(p.indices)}"
            )
        if p.indices[atom].dim() != 1:
            raise GuideError(f"the values of '{name}' cannot be units of '{atom}', which is nested in another atom")
        if atom in moved:
            found[name] = p.indices[atom]
            size = _categories(spec)
            if size is not None and size != len(found[name]):
                raise GuideError(
                    f"the values of '{name}' cannot be units of '{atom}': there are {size} values and "
                    f"{len(found[name])} units"
                )
    return found


def move_labels(spec: SiteSpec, index: Tensor, value: Tensor) -> Tensor:
    """The values of a discrete site after its labels have moved; ``index`` says which old unit each new one is."""
    index = index.to(value.device)
    if spec.event_dim:  # one entry per unit: one-hot vectors, counts
        return value[..., index]
    return index.argsort()[value.long()].to(value.dtype)


def _categories(spec: SiteSpec) -> int | None:
    """How many values a site has, where its support tells."""
    support = spec.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support is constraints.boolean:
        return 2
    if spec.event_dim:
        return spec.shape[-1]
    bound = getattr(support, "upper_bound", None)
    return None if bound is None else int(bound) + 1
