"""Procrustes and Varimax: planted rotations are undone, the log joint stays, and what is left is said."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_align import Symmetry, SymmetrySpec, align_draws
from pyro_align.axes import Atom, Odd, Rotated
from pyro_align.draws.rotations import procrustes, signed_order, varimax
from pyro_align.errors import SymmetryError

P, K, N = 8, 2, 30
LOADINGS = SymmetrySpec({"w": (None, "factor"), "f": (None, "factor")})


@pytest.fixture
def truth():
    w = torch.kron(torch.eye(K), torch.tensor([[0.9], [0.8], [-0.7], [0.6]]))
    return {"w": w, "f": torch.randn(N, K, generator=torch.Generator().manual_seed(1))}


@pytest.fixture
def draws(truth):
    """Noisy loadings and scores, each draw rotated at random, in two chains."""
    g = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(2, 40, K, K, generator=g))
    noisy = {k: v + 0.1 * torch.randn(2, 40, *v.shape, generator=g) for k, v in truth.items()}
    return {k: v @ q for k, v in noisy.items()} | {"s": 0.5 + torch.rand(2, 40, P, generator=g)}


def model(y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([P, K]).to_event(2))
    f = pyro.sample("f", dist.Normal(0.0, 1.0).expand([N, K]).to_event(2))
    s = pyro.sample("s", dist.HalfNormal(1.0).expand([P]).to_event(1))
    with pyro.plate("data", N):
        pyro.sample("y", dist.Normal(f @ w.T, s).to_event(1), obs=y)


@pytest.mark.parametrize("method", ["procrustes", "varimax"])
def test_planted_rotations_are_undone(method, draws, truth):
    y = truth["f"] @ truth["w"].T
    aligned = align_draws(draws, LOADINGS, method=method, by="w", model=model, args=(y,))
    out = aligned.draws
    assert aligned.converged
    assert aligned.relabeled.all()
    assert float(out["w"].std((0, 1)).max()) < 0.2
    assert aligned.invariance.error < 1e-6
    torch.testing.assert_close(out["f"] @ out["w"].mT, draws["f"] @ draws["w"].mT)
    assert torch.equal(out["s"], draws["s"])
    if method == "varimax":  # loadings of either factor stand on variables of their own
        mean = out["w"].mean((0, 1)).abs()
        assert bool(((mean > 0.4).sum(1) == 1).all())
    p = aligned.permutation(1, 3)
    torch.testing.assert_close(p.apply({"w": draws["w"][1, 3]})["w"], out["w"][1, 3])
    assert aligned.report(modes=False).loc["w", "rhat"] < 1.1


def test_a_reference_stays(draws, truth):
    aligned = align_draws(draws, LOADINGS, method="procrustes", by="w", reference={"w": truth["w"], "f": truth["f"]})
    expected = draws["w"] @ procrustes(draws["w"].flatten(0, 1), truth["w"]).reshape(2, 40, K, K)
    torch.testing.assert_close(aligned.draws["w"], expected)
    chains = align_draws(draws, LOADINGS, method="procrustes", by="w", level="chain").rotations["factor"]
    assert bool((chains == chains[:, :1]).all())


def test_varimax_makes_loadings_simple():
    """Against the closed form for two factors (Kaiser 1958): the angle that maximizes the variance of squares."""
    w = torch.randn(6, 2, generator=torch.Generator().manual_seed(3))
    angles = torch.linspace(0, torch.pi / 2, 2001)
    q = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).reshape(-1, 2, 2)
    criterion = (w @ q).square().var(1, correction=0).sum(1)
    found = (w @ varimax(w[None])[0]).square().var(0, correction=0).sum()
    assert float(found) >= float(criterion.max()) - 1e-6


def test_order_and_signs():
    w = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    s = signed_order(w, w[0])
    torch.testing.assert_close(s[0], torch.eye(4))
    assert bool((s.abs().sum(1) == 1).all())
    flipped = w[:1] @ torch.tensor([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]])
    torch.testing.assert_close((flipped @ signed_order(flipped, w[0]))[0], w[0])


def test_rotations_that_are_left_are_named(draws, truth):
    y = truth["f"] @ truth["w"].T
    factor = Odd("factor")
    signed = SymmetrySpec({"w": (None, factor), "f": (None, factor)})
    aligned = align_draws(draws, signed, model=model, args=(y,))
    assert aligned.continuous == ("factor",)
    assert "does not change under rotations of 'factor'" in str(aligned)
    frame = aligned.report(modes=False)
    assert frame["continuous"].to_dict() == {"w": True, "f": True, "s": False, "(all sites)": True}
    assert align_draws(draws, LOADINGS, method="procrustes", by="w", model=model, args=(y,)).continuous == ()


def spread(y):
    """What is seen subtracts the mean of the units, whose prior has one mean: their ones are fixed."""
    w = pyro.sample("w", dist.Normal(0.3, 1.0).expand([P, 3]).to_event(2))
    with pyro.plate("data", N):
        pyro.sample("y", dist.Normal((w - w.mean(-1, keepdim=True)).square().sum(-1), 1.0).to_event(1), obs=y)


def paired(y):
    """Complex numbers whose lengths alone are seen: an angle each."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
    v = pyro.sample("v", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    pyro.sample("y", dist.Normal(w.square().sum(-1) + v.square().sum(), 1.0).to_event(1), obs=y)


def test_every_kind_of_group_that_is_left_is_named():
    g = torch.Generator().manual_seed(0)
    w = {"w": torch.randn(1, 20, P, 3, generator=g)}
    aligned = align_draws(w, SymmetrySpec({"w": (None, "unit")}), model=spread, args=(torch.zeros(N, P),))
    assert aligned.continuous == ("unit",)
    plane = Rotated("plane", plane=True), Rotated("all", 4)
    spec = SymmetrySpec({"w": (Atom("pair", fixed=True), plane[0]), "v": (plane[1],)}, within={"plane": "pair"})
    values = {"w": torch.randn(1, 20, 3, 2, generator=g), "v": torch.randn(1, 20, 4, generator=g)}
    options = {"method": "procrustes", "model": paired, "args": (torch.ones(3),)}
    aligned = align_draws(values, spec, atom="all", **options)
    assert aligned.continuous == ("plane",)
    assert "under rotations of the planes 'plane', which are as they were" in str(aligned)
    assert aligned.report(modes=False)["continuous"].to_dict() == {"w": True, "v": False, "(all sites)": True}
    with pytest.raises(SymmetryError, match="it cannot be rotated"):
        align_draws(values, spec, atom="plane", **options)


def test_what_cannot_be_rotated_is_refused(draws):
    with pytest.raises(SymmetryError, match="makes one site simple"):
        align_draws(draws, LOADINGS, method="varimax")
    with pytest.raises(ValueError, match=r"by= names \['s'\]"):
        align_draws(draws, LOADINGS, method="varimax", by="s")
    with pytest.raises(SymmetryError, match="not plainly 'factor'"):
        align_draws({"w": draws["w"]}, SymmetrySpec({"w": (None, [1, "factor"])}), method="procrustes")
    rotated = align_draws(draws, LOADINGS, method="procrustes").symmetry
    assert isinstance(rotated, Symmetry)
    with pytest.raises(SymmetryError, match="use method='procrustes'"):
        align_draws(draws, rotated)
    with pytest.raises(ValueError, match="does not compare labelings"):
        align_draws(draws, LOADINGS, method="procrustes").ambiguous()
