"""Groups with rotations: polar factors in place of assignments."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal, init_to_sample

from pyro_align import Symmetry, SymmetrySpec, align, permute_guide
from pyro_align.axes import Atom, Odd, Rotated
from pyro_align.errors import MatchError, SymmetryError
from pyro_align.guides import read_guide
from pyro_align.matching import match
from pyro_align.symmetry.element import polar

HEADS = (Atom("h", 2), Rotated("d"))
ROTARY = (Atom("h", 2), Rotated("d", plane=True), Atom("pair", 3, fixed=True))  # half of a head apart
CASES = {
    "factors": (SymmetrySpec({"w": (None, Rotated("f")), "z": (None, Rotated("f"))}), {"w": (6, 3), "z": (5, 3)}),
    "centered": (SymmetrySpec({"w": (None, Rotated("f", centered=True))}), {"w": (6, 4)}),
    "heads": (
        SymmetrySpec(
            {"q": (HEADS, None), "k": (HEADS, None), "v": (("h", "e"), None), "o": (None, ("h", "e"))},
            within={"d": "h", "e": "h"},
        ),
        {"q": (6, 4), "k": (6, 4), "v": (6, 4), "o": (4, 6)},
    ),
    "planes": (
        SymmetrySpec({"q": (None, (Atom("pair", 3, fixed=True), Rotated("d", plane=True)))}, within={"d": "pair"}),
        {"q": (5, 6)},
    ),
    "rotary": (
        SymmetrySpec({"q": (ROTARY, None), "k": (ROTARY, None), "v": ("h", None)}, within={"d": ("h", "pair")}),
        {"q": (12, 4), "k": (12, 4), "v": (2, 3)},
    ),
    "stream": (
        SymmetrySpec(
            {
                "embedding": (None, Rotated("r")),
                "in": ("a", Rotated("r")),
                "bias": ("a",),
                "out": (Rotated("r"), "a"),
                "q": (HEADS, Rotated("r")),
                "k": (HEADS, Rotated("r")),
                "s": (Odd("u"), None),
            },
            within={"d": "h"},
        ),
        {"embedding": (9, 6), "in": (8, 6), "bias": (8,), "out": (6, 8), "q": (6, 6), "k": (6, 6), "s": (3, 2)},
    ),
}


@pytest.fixture(params=CASES)
def problem(request):
    spec, shapes = CASES[request.param]
    return spec.bind(shapes)


def points(symmetry, seed):
    generator = torch.Generator().manual_seed(seed)
    return {k: (torch.randn(shape, generator=generator),) for k, shape in symmetry.shapes.items()}


def moved(p, values):
    return {k: tuple(p.apply_site(k, t) for t in v) for k, v in values.items()}


def test_a_planted_element_is_found(problem):
    fixed, p = points(problem, 0), problem.random(1)
    found = match(problem, fixed, moved(p, fixed), odd=(True,))
    assert found.objective == pytest.approx(sum(float(t.square().sum()) for v in fixed.values() for t in v))
    assert found.permutation == p.inverse()


def test_searches_are_monotone_and_restarts_never_lose(problem):
    fixed, moving = points(problem, 0), points(problem, 1)
    alone, more = (match(problem, fixed, moving, odd=(True,), restarts=r) for r in (0, 4))
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(alone.history))
    assert more.objective >= alone.objective
    there = moved(more.permutation, moving)
    exact = sum(float((fixed[k][0] * there[k][0]).sum()) for k in fixed)
    assert more.objective == pytest.approx(exact)
    assert match(problem, fixed, moving, odd=(True,), restarts=4).permutation == more.permutation


def test_one_rotation_is_solved_exactly():
    """Against a fine grid of all rotations and reflections of the plane."""
    symmetry = Symmetry.from_axes({"w": (None, Rotated("f"))}, shapes={"w": (4, 2)})
    fixed, moving = points(symmetry, 0), points(symmetry, 1)
    found = match(symmetry, fixed, moving, odd=(True,))
    gain = fixed["w"][0].T @ moving["w"][0]
    angles = torch.linspace(0, 2 * math.pi, 20001)
    cos, sin = angles.cos(), angles.sin()
    turns = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    every = torch.cat([turns, turns @ torch.diag(torch.tensor([1.0, -1.0]))])
    assert found.status == "optimal"
    assert found.objective == pytest.approx(float((every * gain).sum((-1, -2)).max()), rel=1e-6)


def test_heads_and_their_rotations_are_matched_jointly():
    """The best of all orders of heads, with the best rotation of each pair."""
    heads = Atom("h", 3), Rotated("d")
    spec = SymmetrySpec({"q": (heads, None), "k": (heads, None)}, within={"d": "h"})
    symmetry = spec.bind({"q": (6, 4), "k": (6, 4)})
    fixed, moving = points(symmetry, 0), points(symmetry, 1)
    gains = sum(torch.einsum("irx,jsx->ijrs", fixed[k][0].view(3, 2, 4), moving[k][0].view(3, 2, 4)) for k in "qk")
    worth = torch.linalg.svdvals(gains).sum(-1)
    best = max(float(sum(worth[i, j] for i, j in enumerate(order))) for order in itertools.permutations(range(3)))
    found = match(symmetry, fixed, moving, odd=(True,))
    assert found.objective == pytest.approx(best)


def test_polar_is_the_nearest_orthogonal_matrix():
    gain = torch.randn(5, 3, 3)
    found = polar(gain)
    torch.testing.assert_close(found @ found.mT, torch.eye(3).expand(5, 3, 3))
    others = torch.linalg.qr(torch.randn(200, 1, 3, 3))[0]
    assert bool(((others * gain).sum((-1, -2)) <= (found * gain).sum((-1, -2)) + 1e-12).all())


def test_centered_rotations_leave_the_ones():
    symmetry = Symmetry.from_axes({"w": (None, Rotated("f", centered=True))}, shapes={"w": (6, 4)})
    ones = {"w": torch.ones(6, 4)}
    others = torch.stack([symmetry.random(seed).rotations["f"] for seed in range(200)])
    torch.testing.assert_close(symmetry.random(0).apply(ones)["w"], ones["w"])
    gain = 1e6 * torch.randn(4, 4)
    found = polar(gain, "centered rotation")
    torch.testing.assert_close(found.sum(-1), torch.ones(4))
    assert bool(((others * gain).sum((-1, -2)) <= (found * gain).sum()).all())
    assert symmetry.dimension == 3
    with pytest.raises(SymmetryError, match="rows add up to one"):
        symmetry.permutation(rotations={"f": -torch.eye(4)})


def test_planes_are_rotated_by_angles():
    """The best of all angles, in every pair of every head, and no reflection."""
    gain = torch.randn(5, 2, 2)
    angles = torch.linspace(0, 2 * math.pi, 20001)
    cos, sin = angles.cos(), angles.sin()
    turns = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    best = torch.einsum("axy,bxy->ab", turns, gain).max(0).values
    found = (polar(gain, "plane rotation") * gain).sum((-1, -2))
    torch.testing.assert_close(found, best, rtol=1e-6, atol=1e-6)
    spec, shapes = CASES["rotary"]
    symmetry = spec.bind(shapes)
    assert symmetry.dimension == 6
    p, q = symmetry.random(0), symmetry.random(1)
    torch.testing.assert_close(torch.linalg.det(p.rotations["d"]), torch.ones(2, 3))
    values = {k: v[0] for k, v in points(symmetry, 0).items()}
    for name, value in (p @ q).apply(values).items():
        torch.testing.assert_close(value, p.apply(q.apply(values))[name])
    assert p.inverse() @ p == symmetry.identity()
    with pytest.raises(SymmetryError, match="the matrices reflect it"):
        symmetry.permutation(rotations={"d": torch.eye(2).flip(0).expand(2, 3, 2, 2)})


def test_heads_and_their_planes_are_matched_jointly():
    """The best of all orders of heads, with the best angle in every pair of each."""
    spec, shapes = CASES["rotary"]
    symmetry = spec.bind(shapes)
    fixed, moving = points(symmetry, 0), points(symmetry, 1)
    worth = torch.einsum("ix,jx->ij", fixed["v"][0], moving["v"][0])
    views = [[v[k][0].view(2, 2, 3, 4) for k in "qk"] for v in (fixed, moving)]
    gains = sum(torch.einsum("irpx,jspx->ijprs", a, b) for a, b in zip(*views, strict=True))
    cos, sin = gains[..., 0, 0] + gains[..., 1, 1], gains[..., 1, 0] - gains[..., 0, 1]
    worth = worth + (cos.square() + sin.square()).sqrt().sum(-1)
    best = max(float(sum(worth[i, j] for i, j in enumerate(order))) for order in itertools.permutations(range(2)))
    assert match(symmetry, fixed, moving, odd=(True,)).objective == pytest.approx(best)


def test_scales_cannot_follow():
    symmetry = Symmetry.from_axes({"w": (None, Rotated("f"))}, shapes={"w": (4, 2)})
    values = {"w": (torch.randn(4, 2), torch.rand(4, 2))}
    with pytest.raises(MatchError, match=r"'w' is rotated along.*AutoMultivariateNormal"):
        match(symmetry, values, values, odd=(True, False))
    with pytest.raises(MatchError, match="are rotated, so odd= must say"):
        match(symmetry, values, values)
    one = {"w": values["w"][:1]}
    with pytest.raises(MatchError, match="'sinkhorn' does not follow rotations"):
        match(symmetry, one, one, odd=(True,), matcher="sinkhorn")


# -- guides ------------------------------------------------------------------------------------------------------------

SPEC = SymmetrySpec({"w": (None, Rotated("f")), "z": (None, Rotated("f"))})


def factors():
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([5, 2]).to_event(2))
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([4, 2]).to_event(2))
    pyro.sample("y", dist.Normal(z @ w.T, 0.1).to_event(2), obs=torch.zeros(4, 5))


def guide_of(cls, seed=0):
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(seed)
        guide = cls(factors, init_loc_fn=init_to_sample)
        guide()
        with torch.no_grad():
            for p in guide.parameters():
                p.add_(0.1 * torch.randn(p.shape))
    return guide


@pytest.mark.parametrize("cls", [AutoDelta, AutoMultivariateNormal])
def test_a_rotated_guide_is_brought_back(cls):
    guide = guide_of(cls)
    symmetry = SPEC.bind(read_guide(guide).shapes)
    p = symmetry.random(3)
    alignment = align(guide, permute_guide(guide, p), SPEC, restarts=3)
    assert alignment.distance < 1e-6 < 1e-1 < alignment.distance_before
    if cls is AutoDelta:
        assert alignment.permutation == p.inverse()


def test_rotated_draws_are_draws_of_the_rotated_guide():
    q = read_guide(guide_of(AutoMultivariateNormal))
    p = SPEC.bind(q.shapes).random(1)
    noise = q.noise(3, generator=0)
    there, here = q.permute(p).push(q.permute_noise(p, noise)), p.apply(q.push(noise), batch_dims=1)
    for site in here:
        torch.testing.assert_close(there[site], here[site])


def test_a_mean_field_guide_is_refused_with_the_remedies():
    guide = guide_of(AutoNormal)
    symmetry = SPEC.bind(read_guide(guide).shapes)
    with pytest.raises(SymmetryError, match="can follow a rotation"):
        permute_guide(guide, symmetry.random(0))
    with pytest.raises(MatchError, match=r"mean-field posterior cannot follow a rotation.*wrap_guide"):
        align(guide, guide_of(AutoNormal, 1), symmetry)
