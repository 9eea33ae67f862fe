"""Every relabeling of a small group: the oracle that the other matchers are held against."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product

import torch

from pyro_align.errors import MatchError
from pyro_align.matching.matcher import Matcher, Run, register
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry


@register("exhaustive")
@dataclass(frozen=True)
class Exhaustive(Matcher):
    """Tries every relabeling.

    Attributes:
        limit: Largest number of relabelings to try.
    """

    limit: int = 100_000

    def search(self, run: Run) -> str:
        symmetry = run.problem.symmetry
        if symmetry.log_order > math.log(self.limit) + 1e-9:
            raise MatchError(
                f"the group has e^{symmetry.log_order:.1f} relabelings, more than limit={self.limit}; "
                "use matcher='coordinate', or Exhaustive(limit=...) for a larger limit"
            )
        run.value = run.problem.objective(run.labels.permutation())
        run.record()
        for element in elements(symmetry):
            if run.clock.expired:
                run.record()
                return "time_limit"
            value = run.problem.objective(element)
            if value > run.value:
                run.value = value
                run.labels.replace(
                    {k: v.to(run.labels.device) for k, v in element.indices.items()},
                    {
                        k: element.signs.get(k, torch.ones_like(element.indices[k])).to(run.labels.device)
                        for k in symmetry.signed
                    },
                )
        run.record()
        return "optimal"


def elements(symmetry: Symmetry) -> Iterator[Permutation]:
    """All relabelings of a group, the identity first.

    Example:
        >>> symmetry = Symmetry.from_axes({"w": ("a",)}, shapes={"w": (3,)})
        >>> len(list(elements(symmetry)))
        6
    """
    choices = []
    for name, atom in symmetry.atoms.items():
        shape = (*symmetry.outer_shape(name), atom.size)
        copies = math.prod(shape[:-1])
        orders = [
            torch.tensor(rows, device="cpu").reshape(shape)
            for rows in product(permutations(range(atom.size)), repeat=copies)
        ]
        signs = [None]
        if name in symmetry.signed:
            signs = [torch.tensor(s, device="cpu").reshape(shape) for s in product((1, -1), repeat=math.prod(shape))]
        choices.append([(name, order, sign) for order in orders for sign in signs])
    for picks in product(*choices):
        yield symmetry.permutation(
            {name: order for name, order, _ in picks}, {name: s for name, _, s in picks if s is not None}
        )
