"""Every registered model: exactly the group it has, certified, and nothing missed by an exhaustive search."""

import pytest
from oracle import missed
from problems import PROBLEMS, same_group

from pyro_align.discovery import find_symmetry


def found(problem):
    model, args = problem.build()
    return find_symmetry(model, *args, **problem.options)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_exactly_the_known_group(problem):
    symmetry = found(problem)
    assert not same_group(symmetry, problem.expected(symmetry.shapes))
    assert symmetry.certificate.error <= symmetry.certificate.tolerance


@pytest.mark.slow
@pytest.mark.parametrize("problem", [p for p in PROBLEMS.values() if p.oracle], ids=lambda p: p.name)
def test_exhaustive_search_finds_nothing_more(problem):
    assert missed(problem, found(problem)) == []
