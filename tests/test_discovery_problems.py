"""Every registered model: exactly the group it has, certified, and nothing missed by an exhaustive search."""

from dataclasses import replace

import pytest
from oracle import missed, sign_choices
from problems import PROBLEMS, same_group

from pyro_align import discovery
from pyro_align.axes import Atom, Fixed, Product, Sum, children
from pyro_align.discovery import analyze_signs, find_symmetry
from pyro_align.discovery.source import Source

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

# Signs that no unit carries: the first site of each, and how many sites change sign together. Norms pass the sign of
# all that they see on to their gain; an output whose datum is exactly zero may change sign.
LOOSE_SIGNS = {
    "transformer_encoder_layer": [("embed.weight", 5), ("layer.linear1.weight", 6)],
    "transformer_encoder_layer_in_training_mode": [("embed.weight", 9), ("layer.linear1.weight", 3)],
    "transformer_layer_as_plain_module": [("linear1.weight", 6)],
    "language_model_with_tied_embedding": [("wte.weight", 9), ("blocks.0.ln2.weight", 3)],
    "language_model_of_two_layers": [
        ("wte.weight", 15),
        ("blocks.0.ln1.weight", 4),
        ("blocks.0.ln2.weight", 3),
        ("blocks.1.ln2.weight", 3),
    ],
    "vision_transformer": [("token", 11), ("layer.linear1.weight", 3)],
    "small_resnet_with_group_norm": [("stem.weight", 2), ("head.weight", 2)],
    "resnet_20_with_group_norm": [
        ("stem.weight", 2),
        ("blocks.0.conv2.weight", 2),
        ("blocks.1.conv2.weight", 2),
        ("blocks.3.conv2.weight", 2),
        ("blocks.4.conv2.weight", 2),
        ("blocks.6.conv2.weight", 2),
        ("blocks.7.conv2.weight", 2),
        ("head.weight", 2),
    ],
    "custom_normalizations": [("2.weight", 3)],
    "convnext_block_with_layer_scale": [("gamma", 3), ("depth.weight", 3), ("norm.weight", 3)],
    "mlp_of_width_one": [("w1", 2)],
    "mlp_with_layer_norm": [("0.weight", 3), ("3.weight", 3)],
    "tensor_factorization": [("a", 2), ("b", 2)],
    "residual_stream_through_layer_norm": [("embed.weight", 2)],
    "batch_norm_before_tanh": [("gamma", 3)],
    "simplex_under_a_flat_prior": [("w", 1)],
    "table_that_is_not_saved": [("up.weight", 3), ("up.weight", 3), ("up.weight", 3), ("up.weight", 3)],
    "table_that_is_saved": [("down.weight", 2)],
    "another_scale_for_every_unit": [("w1", 2), ("w1", 2), ("w1", 2), ("w1", 2)],
}


# Larger than a problem of the same kind: the small ResNet, and the LSTM of two layers or directions.
LONG = {
    *("resnet_20_with_group_norm", "bidirectional_gru", "gru_of_two_layers", "bidirectional_elman"),
    "elman_of_two_layers",
}


def case(problem, missed):
    why = missed.get(problem.name)
    marks = [pytest.mark.xfail(strict=True, reason=why, raises=AssertionError)] if why else []
    marks += [pytest.mark.slow] if problem.name in LONG else []
    return pytest.param(problem, id=problem.name, marks=marks)


@pytest.fixture
def one_trace(monkeypatch):
    """A model is traced, and its axes are inferred, once, whatever is asked of it."""

    def once(owner, name):
        function, known = getattr(owner, name), []
        monkeypatch.setattr(
            owner, name, lambda *given: known[0] if known else known.append(function(*given)) or known[0]
        )

    once(Source, "trace")
    once(discovery, "infer")


@pytest.mark.usefixtures("one_trace")
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=lambda p: p.name)
def test_exactly_the_known_group(problem):
    """Without signs and with them: those of units as the problem has them, the others in a list of their own."""
    model, args = problem.build()
    symmetry = find_symmetry(model, *args, **problem.options)
    assert not same_group(symmetry, problem.expected(symmetry.shapes))
    assert symmetry.certificate.error <= symmetry.certificate.tolerance
    symmetry = find_symmetry(model, *args, **problem.options, signs=True)
    names = [name for name, atom in symmetry.atoms.items() if atom.odd and name.startswith("sign of ")]
    sites = [[site for site, _ in symmetry.carriers[name]] for name in names]
    assert [(s[0], len(set(s))) for s in sites] == LOOSE_SIGNS.get(problem.name, [])
    units = replace(symmetry, sites={s: tuple(without(t, names) for t in a) for s, a in symmetry.sites.items()})
    assert not same_group(units, problem.expected(symmetry.shapes, signs=True))
    assert symmetry.certificate.error <= symmetry.certificate.tolerance


def without(axis, names):
    """The axis with some atoms of size one taken out, and runs of fixed indices joined again."""
    if isinstance(axis, Atom):
        return Fixed(1) if axis.name in names else axis
    parts = [without(part, names) for part in children(axis)]
    if isinstance(axis, Product):
        parts = [part for part in parts if part != Fixed(1)] or [Fixed(1)]
        return parts[0] if len(parts) == 1 else Product(*parts)
    if all(part == Fixed(part.size) for part in parts if isinstance(part, Atom)) and all(
        isinstance(part, Atom) for part in parts
    ):
        return Fixed(sum(part.size for part in parts))
    return Sum(*parts)


@pytest.mark.slow
@pytest.mark.parametrize("problem", [p for p in PROBLEMS.values() if p.oracle], ids=lambda p: p.name)
def test_exhaustive_search_finds_nothing_more(problem):
    model, args = problem.build()
    assert missed(problem, find_symmetry(model, *args, **problem.options)) == []


@pytest.mark.slow
@pytest.mark.parametrize("problem", [case(p, MISSED_SIGNS) for p in PROBLEMS.values()])
def test_exhaustive_search_finds_no_more_signs(problem):
    """Every way for a unit to change sign at some of its places is a solution of discovery's equations."""
    model, args = problem.build()
    for atom, true, claimed in sign_choices(problem, analyze_signs(model, *args, **problem.options)):
        assert true == claimed, atom
