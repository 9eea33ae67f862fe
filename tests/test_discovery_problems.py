"""Every registered model: exactly the group it has, certified, and nothing missed by an exhaustive search."""

import pytest
from oracle import missed, sign_choices
from problems import PROBLEMS, same_group

from pyro_align.discovery import analyze_signs, find_symmetry

# Models in which the search finds more signs than discovery, each with the reason.
KEYS = "the softmax takes no notice of the keys' bias, so that the bias may change sign alone"
MISSED_SIGNS = {
    "attention_with_separate_projections": KEYS,
    "attention_by_scaled_dot_product": KEYS,
    "attention_with_packed_projection": KEYS,
    "transformer_encoder_layer": KEYS,
    "transformer_encoder_layer_in_training_mode": KEYS,
    "transformer_layer_as_plain_module": KEYS,
    "language_model_with_tied_embedding": KEYS,
    "language_model_of_two_layers": KEYS,
    "windowed_attention_with_relative_positions": KEYS,
    "vision_transformer": KEYS,
    "parameters_of_a_pyro_module": "the search does not reach parameters that a module announces but does not read",
    "rotation_by_complex_numbers": "complex numbers have no rule of signs, so that queries and keys keep theirs",
    "module_with_batch_norm_in_training": "the search looks at the output, not at the statistics that a call updates",
}


def case(problem, missed):
    why = missed.get(problem.name)
    marks = [pytest.mark.xfail(strict=True, reason=why, raises=AssertionError)] if why else []
    return pytest.param(problem, id=problem.name, marks=marks)


def found(problem, **options):
    model, args = problem.build()
    return find_symmetry(model, *args, **problem.options, **options)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=lambda p: p.name)
def test_exactly_the_known_group(problem):
    symmetry = found(problem)
    assert not same_group(symmetry, problem.expected(symmetry.shapes))
    assert symmetry.certificate.error <= symmetry.certificate.tolerance


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=lambda p: p.name)
def test_exactly_the_known_signs(problem, monkeypatch):
    """Of units; those of single indices and whole sites are counted in tests of their own."""
    monkeypatch.setattr("pyro_align.discovery.add_loose_signs", lambda symmetry, *args, **options: symmetry)
    symmetry = found(problem, signs=True)
    assert not same_group(symmetry, problem.expected(symmetry.shapes, signs=True))
    assert symmetry.certificate.error <= symmetry.certificate.tolerance


@pytest.mark.slow
@pytest.mark.parametrize("problem", [p for p in PROBLEMS.values() if p.oracle], ids=lambda p: p.name)
def test_exhaustive_search_finds_nothing_more(problem):
    assert missed(problem, found(problem)) == []


@pytest.mark.slow
@pytest.mark.parametrize("problem", [case(p, MISSED_SIGNS) for p in PROBLEMS.values()])
def test_exhaustive_search_finds_no_more_signs(problem):
    """Every way for a unit to change sign at some of its places is a solution of discovery's equations."""
    model, args = problem.build()
    for atom, true, claimed in sign_choices(problem, analyze_signs(model, *args, **problem.options)):
        assert true == claimed, atom
