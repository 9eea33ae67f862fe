"""Sites that change places as wholes: found, applied, and followed by guides, draws and files."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGaussian,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    init_to_sample,
)
from torch import nn

from pyro_align import (
    align,
    align_draws,
    align_many,
    certify,
    effective_width,
    find_symmetry,
    load,
    permute_guide,
    permute_model,
    save,
)
from pyro_align.errors import GuideError, PyroAlignError, SymmetryError
from pyro_align.guides import read_guide, wrap_guide

X = torch.linspace(-1.0, 1.0, 14, dtype=torch.float64).reshape(7, 2)
Y = torch.cat([torch.linspace(-4.0, -2.0, 8), torch.linspace(2.0, 4.0, 8)]).double()


def experts(x, y):
    gate = pyro.sample("gate", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
    total = 0
    for k in range(3):
        w = pyro.sample(f"w_{k}", dist.Normal(0.0, 1.0).expand([4, 2]).to_event(2))
        v = pyro.sample(f"v_{k}", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        s = pyro.sample(f"s_{k}", dist.HalfNormal(torch.tensor(1.0)))
        total = total + (x @ gate.T).softmax(-1)[:, k] * (torch.tanh(x @ w.T) @ (v * s))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(total, 1.0), obs=y)


def mixture(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    loc = torch.stack([pyro.sample(f"loc_{k}", dist.Normal(0.0, 5.0)) for k in pyro.plate("components", 3)])
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, 1.0)), obs=y)


class Experts(nn.Module):
    def __init__(self, mark=1.0):
        super().__init__()
        self.gate = nn.Linear(2, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)) for _ in range(3))
        self.mark = mark

    def forward(self, x):
        parts = self.gate(x).softmax(-1).split(1, -1)
        return sum(g * self.mark**k * e(x) for k, (g, e) in enumerate(zip(parts, self.experts, strict=True)))


@pytest.fixture(scope="module")
def symmetry():
    torch.set_default_dtype(torch.float64)
    return find_symmetry(experts, X, X[:, 0], whole_sites=True, signs=True)


def guide_of(cls, seed=1):
    pyro.set_rng_seed(seed)
    with pyro.get_param_store().scope():
        guide = cls(experts) if cls is AutoIAFNormal else cls(experts, init_loc_fn=init_to_sample)
        guide(X, X[:, 0])
    return guide


def test_experts_change_places_with_the_rows_of_their_gate(symmetry):
    assert symmetry.stacks == {"w_*": ("w_0", "w_1", "w_2"), "v_*": ("v_0", "v_1", "v_2"), "s_*": ("s_0", "s_1", "s_2")}
    assert symmetry.log_order == pytest.approx(math.log(6) + 3 * (math.log(24) + 4 * math.log(2)))
    assert {site for site, _ in symmetry.carriers["gate"]} == {"gate", "w_*", "v_*", "s_*"}
    assert symmetry.atoms["w_*[1]"].within == ("gate",)
    assert "w_* stands for w_0, w_1, w_2" in str(symmetry)
    assert symmetry.why("w_1", 1) == symmetry.why("w_*", 2)


def test_without_asking_they_are_named_and_keep_their_places():
    plain = find_symmetry(mixture, Y)
    assert not plain.stacks
    assert not plain.atoms
    assert [o.sites for o in plain.opaque if o.is_family] == [("loc_0", "loc_1", "loc_2")]
    assert "whole_sites=True" in str(plain)


def test_a_network_computes_the_same():
    net = Experts().double()
    symmetry = find_symmetry(net, X, whole_sites=True)
    assert symmetry.log_order == pytest.approx(math.log(6) + 3 * math.log(24))
    moved = symmetry.permutation({"gate": [1, 2, 0]}).apply(net)
    torch.testing.assert_close(moved.experts[0][0].weight, net.experts[1][0].weight)
    torch.testing.assert_close(moved(X), net(X))
    aligned = align(net, moved, symmetry)
    assert aligned.distance == 0.0
    torch.testing.assert_close(aligned.guide.gate.weight, net.gate.weight)


def test_what_tells_members_apart_fixes_their_places():
    assert not find_symmetry(Experts(mark=2.0).double(), X, whole_sites=True).stacks

    def unlike(y):
        loc = [pyro.sample(f"loc_{k}", dist.Normal(0.0, 5.0 + (k == 2))) for k in range(3)]
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(sum(torch.tanh(m) for m in loc), 1.0), obs=y)

    found = find_symmetry(unlike, Y, whole_sites=True)
    assert found.log_order == pytest.approx(math.log(2))
    moved = found.random(1).apply({f"loc_{k}": torch.tensor(float(k)) for k in range(3)})
    assert moved["loc_2"] == 2.0


def test_the_action_is_one_of_the_group(symmetry):
    p, q = symmetry.random(1), symmetry.random(2)
    values = {name: torch.randn(5, *shape) for name, shape in read_guide(guide_of(AutoNormal)).shapes.items()}
    once = (p @ q).apply(values, batch_dims=1)
    assert list(once) == list(values)
    twice = p.apply(q.apply(values, batch_dims=1), batch_dims=1)
    back = p.inverse().apply(p.apply(values, batch_dims=1), batch_dims=1)
    for name, value in values.items():
        torch.testing.assert_close(once[name], twice[name])
        torch.testing.assert_close(back[name], value)
    with pytest.raises(SymmetryError, match="may change places"):
        p.apply({"w_0": values["w_0"][0]})


def test_files(symmetry, tmp_path):
    p = symmetry.random(4)
    save(tmp_path / "p.safetensors", p)
    again = load(tmp_path / "p.safetensors")
    assert again == p
    assert again.symmetry.stacks == symmetry.stacks
    assert certify(experts, again.symmetry, X, X[:, 0]).certificate.error < 1e-9


CLOSED = [AutoNormal, AutoDelta, AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal]


@pytest.mark.parametrize("cls", [*CLOSED, AutoIAFNormal])
def test_a_relabeled_guide_draws_relabeled_draws(cls, symmetry):
    q = read_guide(guide_of(cls), X, X[:, 0]) if cls is AutoIAFNormal else read_guide(guide_of(cls))
    p = symmetry.random(3)
    noise = q.noise(4, generator=0)
    before, after = q.push_with_log_prob(noise), q.permute(p).push_with_log_prob(q.permute_noise(p, noise))
    for name, value in p.apply(before[0], batch_dims=1).items():
        torch.testing.assert_close(after[0][name], value)
    torch.testing.assert_close(after[1], before[1])
    if cls is not AutoIAFNormal:
        written = read_guide(q.permute(p).to_guide())
        for name in q.sites:
            torch.testing.assert_close(written.marginal(name), q.permute(p).marginal(name))


@pytest.mark.parametrize("cls", CLOSED)
def test_alignment_undoes_a_relabeling(cls, symmetry):
    guide, p = guide_of(cls), symmetry.random(3)
    aligned = align(guide, permute_guide(guide, p), symmetry, restarts=2)
    assert aligned.distance < 1e-6 < aligned.distance_before
    assert set(aligned.guide.median()) == set(guide.median())


def test_many_guides(symmetry):
    guide = guide_of(AutoNormal)
    together = align_many([guide, *(permute_guide(guide, symmetry.random(k)) for k in (1, 2))], symmetry)
    assert max(float(d) for d in torch.as_tensor(together.distances).flatten()) < 1e-6


def test_a_wrapped_guide_runs(symmetry):
    guide, p = guide_of(AutoGaussian), symmetry.random(5)
    with pytest.raises(GuideError, match=r"change places as wholes: .*, or wrap the guide"):
        permute_guide(guide, p)
    moved = permute_guide(wrap_guide(guide, X, X[:, 0]), p)
    pyro.set_rng_seed(0)
    before = guide(X, X[:, 0])
    pyro.set_rng_seed(0)
    trace = pyro.poutine.trace(moved).get_trace(X, X[:, 0])
    for name, value in p.apply({k: before[k].detach() for k in moved._posterior.sites}).items():
        torch.testing.assert_close(trace.nodes[name]["value"], value)


def test_what_cannot_follow_says_so(symmetry):
    guide = guide_of(AutoNormal)
    with pytest.raises(SymmetryError, match="a relabeled model cannot follow"):
        permute_model(experts, symmetry.random(1))
    with pytest.raises(PyroAlignError, match=r"the guide cannot follow this symmetry, as .* change places as wholes"):
        effective_width(experts, guide, symmetry, X, X[:, 0])
    with pytest.raises(GuideError, match="align posteriors"):
        align_draws([guide, guide], symmetry)


@pytest.mark.parametrize("known", [True, False])
def test_draws(known, tmp_path):
    symmetry = find_symmetry(mixture, Y, whole_sites=True)
    order = torch.rand(2, 40, 3).argsort(-1)
    loc = (torch.tensor([-3.0, 0.0, 3.0]) + 0.1 * torch.randn(2, 40, 3)).gather(-1, order)
    weights = torch.tensor([0.5, 0.1, 0.4]).expand(2, 40, 3).gather(-1, order)
    draws = {"weights": weights, **{f"loc_{k}": loc[..., k] for k in range(3)}}
    aligned = align_draws(draws, symmetry, model=mixture if known else None, args=(Y,), certify=known)
    assert list(aligned.draws) == list(draws)
    assert all(float(aligned.draws[f"loc_{k}"].std()) < 0.2 for k in range(3))
    assert bool((aligned.draws["weights"] == aligned.draws["weights"][0, 0]).all())
    assert (aligned.invariance is not None) == known
    some = aligned.relabel({k: v[1, :4] for k, v in draws.items()}, 1, slice(0, 4))
    assert all(torch.equal(some[k], aligned.draws[k][1, :4]) for k in draws)
    assert "loc_1" in aligned.to_arviz().posterior
    aligned.to_zarr(tmp_path / "draws.zarr")
    assert "loc_*" in aligned.report(modes=False).index
