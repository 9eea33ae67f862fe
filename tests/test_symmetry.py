"""The group and its action: axioms on every kind of axis term."""

import math
import pickle

import pytest
import torch

from pyro_align import Symmetry, SymmetrySpec
from pyro_align.axes import Atom, Fixed, Odd, Product, Rotated, Sum
from pyro_align.errors import SymmetryError

SYMMETRIES = {
    "mlp": lambda: Symmetry.from_axes(
        {"w1": ("h", None), "b1": ("h",), "w2": (None, "h")}, shapes={"w1": (5, 3), "b1": (5,), "w2": (2, 5)}
    ),
    "product": lambda: Symmetry.from_axes(
        {"conv": ("c", 3), "fc": (2, ("c", 4))}, shapes={"conv": (6, 3), "fc": (2, 24)}
    ),
    "gates": lambda: Symmetry.from_axes(
        {"w": (["h", "h", "h", "h"], "h"), "out": (2, "h")}, shapes={"w": (24, 6), "out": (2, 6)}
    ),
    "concatenation": lambda: Symmetry.from_axes(
        {"w": (2, ["a", "b", 2]), "a": ("a",), "b": ("b",)}, shapes={"w": (2, 9), "a": (4,), "b": (3,)}
    ),
    "experts": lambda: Symmetry.from_axes(
        {"w1": ("e", "h", None), "w2": ("e", 3, "h"), "gate": ("e", None), "flat": (("e", "h"), 2)},
        within={"h": "e"},
        shapes={"w1": (4, 5, 3), "w2": (4, 3, 5), "gate": (4, 3), "flat": (20, 2)},
    ),
    "fixed outer": lambda: Symmetry.from_axes(
        {"w": (Atom("member", 3, fixed=True), Atom("h", 4, within=("member",)), None)}, shapes={"w": (3, 4, 2)}
    ),
    "three deep": lambda: Symmetry.from_axes(
        {"q": ("a", "b", "c"), "r": (("a", "b", "c"),)},
        within={"b": "a", "c": ("a", "b")},
        shapes={"q": (2, 3, 4), "r": (24,)},
    ),
    "attention with signs": lambda: Symmetry.from_axes(
        {
            "qkv": (("heads", Sum(Odd("dq"), Odd("dq"), "dv")), "res"),
            "out": ("res", ("heads", "dv")),
            "rel": ("heads", Odd("dq"), Odd("dq")),
        },
        within={"dq": "heads", "dv": "heads"},
        shapes={"qkv": (20, 5), "out": (5, 8), "rel": (2, 3, 3)},
    ),
    "factors": lambda: Symmetry.from_axes(
        {"w": (None, Rotated("f")), "z": (4, Rotated("f")), "b": ([Rotated("f"), "h"], "h")},
        shapes={"w": (5, 3), "z": (4, 3), "b": (5, 2)},
    ),
    "rotated heads": lambda: Symmetry.from_axes(
        {"q": (("heads", Rotated("d")), None), "k": ("heads", Rotated("d"), 2), "o": (Rotated("res"), ("heads", 2))},
        within={"d": "heads"},
        shapes={"q": (9, 2), "k": (3, 3, 2), "o": (4, 6)},
    ),
}
ROTATED = ("factors", "rotated heads")


@pytest.fixture(params=SYMMETRIES)
def symmetry(request):
    return SYMMETRIES[request.param]()


def values_of(symmetry, *, batch=()):
    return {site: torch.randn(*batch, *shape) for site, shape in symmetry.shapes.items()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def alike(a, b):
    return all(torch.allclose(a[k], b[k], rtol=0, atol=1e-12) for k in a)


def test_action_is_a_homomorphism(symmetry):
    v, p, q = values_of(symmetry), symmetry.random(1), symmetry.random(2)
    assert not same(p.apply(v), v)
    assert alike((p @ q).apply(v), p.apply(q.apply(v)))


def test_group_axioms(symmetry):
    p, q, r = (symmetry.random(seed) for seed in range(3))
    identity = symmetry.identity()
    assert (p @ q) @ r == p @ (q @ r)
    assert p @ p.inverse() == identity
    assert p.inverse() @ p == identity
    assert p @ identity == p
    assert identity @ p == p
    assert identity.is_identity
    assert not p.is_identity
    assert (p @ q).inverse() == q.inverse() @ p.inverse()


def test_identity_is_bit_exact(symmetry):
    v = values_of(symmetry)
    assert same(symmetry.identity().apply(v), v)


def test_batches_are_relabeled_one_by_one(symmetry):
    v, p = values_of(symmetry, batch=(2, 3)), symmetry.random(1)
    moved = p.apply(v, batch_dims=2)
    assert alike({k: t[1, 2] for k, t in moved.items()}, p.apply({k: t[1, 2] for k, t in v.items()}))


def test_flat_index_is_the_action(symmetry):
    if symmetry.rotated:
        with pytest.raises(SymmetryError, match=r"can follow a rotation"):
            symmetry.random(1).flat_index(next(iter(symmetry.sites)))
        return
    v, p = values_of(symmetry), symmetry.random(1)
    for site, value in v.items():
        flat = value.flatten()[p.flat_index(site)]
        assert torch.equal(flat.reshape(value.shape), p.apply_site(site, value, signs=False))


@pytest.mark.parametrize("name", [k for k in SYMMETRIES if k not in ROTATED])
def test_action_moves_every_entry_once(name):
    symmetry = SYMMETRIES[name]()
    p = symmetry.random(3)
    for site, shape in symmetry.shapes.items():
        assert sorted(p.flat_index(site).tolist()) == list(range(math.prod(shape)))


def test_random_is_reproducible_and_advances_a_generator(symmetry):
    generator = torch.Generator().manual_seed(0)
    first = symmetry.random(generator)
    assert first == symmetry.random(0)
    assert first != symmetry.random(generator)


def test_log_order_counts_the_group():
    assert math.isclose(SYMMETRIES["mlp"]().log_order, math.log(math.factorial(5)))
    assert math.isclose(SYMMETRIES["experts"]().log_order, math.log(math.factorial(4) * math.factorial(5) ** 4))
    signed = math.log(2 * (6 * 8) ** 2 * 24**2 * 120)
    assert math.isclose(SYMMETRIES["attention with signs"]().log_order, signed)


def test_nested_atoms_need_not_move_with_all_others_alike():
    symmetry = SYMMETRIES["experts"]()
    p = symmetry.permutation({"h": torch.stack([torch.arange(5)] * 3 + [torch.tensor([1, 0, 2, 3, 4])])})
    v = values_of(symmetry)
    moved = p.apply(v)
    assert torch.equal(moved["w1"][:3], v["w1"][:3])
    assert torch.equal(moved["w1"][3, :2], v["w1"][3, [1, 0]])


def test_sizes_are_solved_from_shapes():
    symmetry = SymmetrySpec({"fc": (None, ("c", 49)), "conv": ("c", None)})
    assert symmetry.bind({"fc": (10, 98), "conv": (2, 9)}).atoms["c"].size == 2
    gates = SymmetrySpec({"w": (["h"] * 4, None)}).bind({"w": (12, 5)})
    assert gates.atoms["h"].size == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Symmetry.from_axes({"w": ("h",)}, shapes={"w": (3, 2)}), "'w'.*1 axes.*shape"),
        (lambda: Symmetry.from_axes({"w": ("h",), "v": ("h",)}, shapes={"w": (3,), "v": (4,)}), "'v'.*axis 0.*size 3"),
        (lambda: Symmetry.from_axes({"w": (("h", 4),)}, shapes={"w": (10,)}), "'w'.*axis 0"),
        (lambda: Symmetry.from_axes({"w": ("h",)}, shapes={"v": (3,)}), r"not there: \['w'\]"),
        (lambda: SymmetrySpec({"w": ("h",)}, within={"k": "h"}), "no axis carries.*k"),
        (lambda: SymmetrySpec({"w": ("h",)}, within={"h": "e"}), "nested in 'e'"),
        (lambda: Symmetry.from_axes({"w": ("h",)}), "size of 'h' is open.*SymmetrySpec"),
        (lambda: SymmetrySpec({"w": ("h", Rotated("h"))}), "described in two ways"),
        (lambda: SymmetrySpec({"w": (Rotated("h"), "k")}, within={"k": "h"}), "is rotated: its units have no identity"),
        (lambda: SymmetrySpec({"w": (Atom("h", kind="other"),)}), "kind must be one of"),
        (lambda: SymmetrySpec({"w": ("",)}), "may not be empty"),
        (lambda: SymmetrySpec({"w": ("h", 2.5)}), "got 2.5"),
        (lambda: SymmetrySpec({"w": "h"}), "one entry per axis"),
        (
            lambda: Symmetry.from_axes({"w": ("a", "b")}, shapes={"w": (0, 2)}).random().apply({"w": torch.ones(3)}),
            "'w'",
        ),
        (
            lambda: Symmetry.from_axes(
                {"w": ("e", "h"), "v": ("h",)}, within={"h": "e"}, shapes={"w": (2, 3), "v": (3,)}
            ),
            "site 'v'.*'h' is nested in 'e'.*found 0",
        ),
        (
            lambda: Symmetry.from_axes({"w": ("a", "b")}, within={"b": "a", "a": "b"}, shapes={"w": (2, 3)}),
            "must come before|circle",
        ),
    ],
)
def test_bad_symmetries_are_refused(make, message):
    with pytest.raises(SymmetryError, match=message):
        make()


@pytest.mark.parametrize(
    ("indices", "signs", "message"),
    [
        ({"h": [0, 1, 2, 3, 3]}, {}, "'h'.*not a permutation"),
        ({"h": [0, 1, 2]}, {}, r"'h'.*shape \(5,\).*got \(3,\)"),
        ({"k": [0, 1]}, {}, "unknown atoms"),
        ({}, {"h": [1, 1, -1, 1, 1]}, "'h' has no signs"),
    ],
)
def test_bad_permutations_are_refused(indices, signs, message):
    with pytest.raises(SymmetryError, match=message):
        SYMMETRIES["mlp"]().permutation(indices, signs)


def test_rotations_are_what_they_say():
    symmetry = SYMMETRIES["rotated heads"]()
    assert {k: a.kind for k, a in symmetry.atoms.items()} == {
        "heads": "permutation",
        "d": "rotation",
        "res": "rotation",
    }
    assert symmetry.dimension == 3 * 3 + 6
    assert math.isclose(symmetry.log_order, math.log(6))
    p, v = symmetry.random(0), values_of(symmetry)
    heads, turns = p.indices["heads"], p.rotations["d"]
    expected = torch.einsum("hrs,hsi->hri", turns, v["k"][heads])
    torch.testing.assert_close(p.apply_site("k", v["k"]), expected)
    torch.testing.assert_close(p.apply_site("q", v["q"]), (turns @ v["q"].reshape(3, 3, 2)[heads]).reshape(9, 2))
    assert p.only("res").moved() == {"heads": 0, "d": 0, "res": 4}
    low = symmetry.permutation(rotations={"res": p.rotations["res"].float()})  # of single precision
    gram = low.rotations["res"] @ low.rotations["res"].mT
    torch.testing.assert_close(gram, torch.eye(4), rtol=0, atol=1e-14)


def test_random_rotations_are_uniform():
    """Under the Haar measure entries have mean 0 and variance 1/n, and half the matrices are reflections."""
    symmetry = Symmetry.from_axes({"w": ("m", Rotated("r"))}, within={"r": "m"}, shapes={"w": (4000, 3)})
    drawn = symmetry.random(0).rotations["r"]
    assert float(drawn.mean(0).abs().max()) < 5 * (1 / 3 / 4000) ** 0.5
    torch.testing.assert_close(drawn.square().mean(0), torch.full((3, 3), 1 / 3), rtol=0, atol=0.03)
    assert abs(float((torch.linalg.det(drawn) < 0).double().mean()) - 0.5) < 0.04


@pytest.mark.parametrize(
    ("rotations", "message"),
    [
        ({"f": torch.ones(3, 3)}, "'f'.*not orthogonal"),
        ({"f": torch.eye(2)}, r"'f'.*shape \(3, 3\)"),
        ({"h": torch.eye(2)}, "'h' is not rotated"),
    ],
)
def test_bad_rotations_are_refused(rotations, message):
    with pytest.raises(SymmetryError, match=message):
        SYMMETRIES["factors"]().permutation(rotations=rotations)


def test_scales_and_integers_cannot_follow_a_rotation():
    p = SYMMETRIES["factors"]().random(0)
    with pytest.raises(SymmetryError, match=r"'w'.*can follow a rotation"):
        p.apply_site("w", torch.ones(5, 3), signs=False)
    with pytest.raises(SymmetryError, match=r"'w'.*can follow a rotation"):
        p.apply_site("w", torch.ones(5, 3, dtype=torch.int64))


def test_a_spec_prints_pickles_and_binds():
    spec = SymmetrySpec({"w": ("e", "h"), "v": (Odd("k"),)}, within={"h": "e"}, scope="likelihood")
    again = pickle.loads(pickle.dumps(spec))
    assert str(again) == str(spec)
    assert "w: e | h" in str(spec)
    symmetry = again.bind({"w": (2, 3), "v": (4,), "other": (5,)})
    assert (symmetry.scope, symmetry.signed, symmetry.outer_shape("h")) == ("likelihood", {"k"}, (2,))


def test_values_of_unknown_sites_or_shapes_are_refused():
    p = SYMMETRIES["mlp"]().random(0)
    with pytest.raises(SymmetryError, match="'other' is not part"):
        p.apply({"other": torch.ones(5)})
    with pytest.raises(SymmetryError, match=r"'b1'.*\(4,\)"):
        p.apply({"b1": torch.ones(4)})


def test_dtypes_are_kept():
    p = SYMMETRIES["attention with signs"]().random(0)
    for dtype in (torch.float32, torch.float64, torch.int64):
        assert p.apply_site("out", torch.ones(5, 8, dtype=dtype)).dtype == dtype


def test_table_shows_atoms_sites_and_axes(symmetry):
    text = str(symmetry)
    for name in symmetry.atoms:
        assert name in text
    for site in symmetry.sites:
        assert site in text
    frame = symmetry.to_dataframe()
    assert list(frame.columns) == ["site", "axis", "size", "term", "atoms"]
    assert len(frame) == sum(len(shape) for shape in symmetry.shapes.values())


def test_terms_print_what_they_are():
    assert str(Product("c", 49)) == "c x fixed 49"
    assert str(Sum("a", Fixed(2))) == "a + fixed 2"
    assert str(Product(2, Sum("a", Odd("b")))) == "fixed 2 x (a + ±b)"
