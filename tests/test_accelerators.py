"""On an accelerator everything works as on the host: what lies there stays there, and the figures are the same.

Each test runs on CUDA where there is one, and else on the accelerator that is emulated in host memory
(``tests/accelerator.py``). Not on both: with two accelerators in one process PyTorch's autograd fails an assertion.
"""

import copy
import pickle
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from barrier_problems import make_guide
from matching_problems import STRUCTURES, features, relabel
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoDiscreteParallel,
    AutoHierarchicalNormalMessenger,
    AutoIAFNormal,
    AutoRegressiveMessenger,
)
from test_devices import UNIT, check_model_side, data, devices_of, draws_on, fitted, network
from test_guides_laws import GUIDES, SYMMETRY
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_align import (
    Symmetry,
    align,
    align_draws,
    align_many,
    certify,
    displacement,
    effective_width,
    evaluate_barrier,
    evaluate_plane,
    find_symmetry,
    learn_path,
    load,
    mean_field_guide,
    permute_guide,
    permute_model,
    repair,
    save,
    symmetrize,
    wrap_guide,
)
from pyro_align.demo.network import bayesian_mlp
from pyro_align.guides import messenger_guide, read_guide
from pyro_align.guides.barycenter import barycenter
from pyro_align.matching import Sinkhorn, StraightThrough, assignment, match
from pyro_align.model.guards import untouched
from pyro_align.objectives import Activations, MidpointLoss, PathLoss
from pyro_align.paths import path_through, plane

accelerator, MISSING = None, ""
if torch.cuda.is_available():
    MISSING = "two accelerators at once are one too many for PyTorch, and there is a real one"
else:
    try:  # before any backward pass: PyTorch counts devices at the first
        import accelerator
    except (ImportError, AttributeError) as error:
        MISSING = f"this PyTorch cannot take a device written in Python: {error}"

emulated_only = pytest.mark.skipif(accelerator is None, reason=MISSING or "-")


DEVICES = ["cuda"] if torch.cuda.is_available() else [pytest.param("accel", marks=emulated_only)]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def check_same(there, here):
    """Tensors by name, on a device and on the host: alike to rounding."""
    assert there.keys() == here.keys()
    for name, value in here.items():
        torch.testing.assert_close(there[name].cpu(), value, rtol=1e-9, atol=1e-9)


def check_same_labels(there, here):
    assert all(torch.equal(there.indices[k].cpu(), v) for k, v in here.indices.items())
    assert all(torch.equal(there.signs[k].cpu(), v) for k, v in here.signs.items())


def moved(values, device):
    return {k: tuple(t.to(device) for t in v) if isinstance(v, tuple) else v.to(device) for k, v in values.items()}


# -- the emulation itself ----------------------------------------------------------------------------------------------


@emulated_only
def test_the_emulated_device_has_the_rules_of_a_real_one():
    x, one, index = torch.arange(6.0, device="accel").reshape(2, 3), torch.ones(3), torch.tensor([1])
    forbidden = [
        lambda: x + one,
        lambda: torch.where(x > 1, x, one),
        lambda: one.add_(x[0]),
        lambda: x @ one,
        lambda: x.index_select(0, index),
        lambda: x.gather(0, index.expand(1, 3)),
        lambda: torch.take_along_dim(x, index.expand(1, 3), 0),
        lambda: torch.cat([x[0], one]),
        lambda: torch.stack([x[0, 0], one[0]]),
        lambda: one[index.to("accel")],
        lambda: torch.equal(x[0], one),
        lambda: torch.func.vmap(lambda row: row * one)(x),
        lambda: torch.randn(3, generator=torch.Generator(), device="accel"),
        lambda: torch.randperm(3, generator=torch.Generator(), device="accel"),
        lambda: x.clone().normal_(generator=torch.Generator()),
    ]
    for operation in forbidden:
        with pytest.raises((RuntimeError, IndexError), match=r"(?i)device|generator"):
            operation()
    with pytest.raises(TypeError, match="can't convert accel:0 device type tensor to numpy"):
        x.numpy()
    assert (x + torch.tensor(2.0)).device == x[index].device == x.to("accel").device == accelerator.DEVICE
    assert torch.equal(x[index].cpu(), torch.tensor([[3.0, 4.0, 5.0]]))


@emulated_only
def test_the_emulated_device_computes_and_counts():
    host = torch.linspace(-1, 1, 12).reshape(4, 3)
    with accelerator.transfers() as log:
        x = host.to("accel").requires_grad_()
        y = torch.func.vmap(lambda row: row.tanh() * torch.linalg.norm(row))(x)
        (slope,) = torch.autograd.grad(y.square().sum(), x)
        y = y.detach()
        view = y.mT[1:]
        view.mul_(2)
    assert [(t.to_host, t.shape) for t in log] == [(False, (4, 3))]
    with accelerator.transfers() as log:
        bool((y > 0).all()), float(y.sum()), (y > 0).nonzero(), y.cpu()
    assert [(t.to_host, t.shape) for t in log] == [(True, ()), (True, ()), (True, ()), (True, (4, 3))]
    want = host.clone().requires_grad_()
    z = want.tanh() * want.norm(dim=1, keepdim=True)
    torch.testing.assert_close(slope.cpu(), torch.autograd.grad(z.square().sum(), want)[0])
    torch.testing.assert_close(y.cpu()[:, 1:], 2 * z.detach()[:, 1:])
    state = torch.accel.get_rng_state()
    drawn = torch.rand(3, device="accel")
    torch.accel.set_rng_state(state)
    assert torch.equal(torch.rand(3, device="accel"), drawn)
    net = copy.deepcopy(nn.Linear(3, 2).to("accel"))
    assert devices_of(pickle.loads(pickle.dumps(net)).parameters()) == {"accel"}


# -- guides ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GUIDES)
def test_every_family_stays_where_it_was_moved(name, device):
    """Read, drawn from, relabeled, displaced, averaged, aligned and pickled."""
    (a, b), here = ([GUIDES[name](seed).to(d) for seed in range(2)] for d in (device, "cpu"))
    p, q, host = SYMMETRY.random(1), read_guide(a), read_guide(here[0])
    noise = q.noise(3)
    values, log_prob = q.push_with_log_prob(noise)
    expected, expected_log_prob = host.push_with_log_prob(host.noise(3))
    check_same({**values, "log q": log_prob}, {**expected, "log q": expected_log_prob})
    guides = permute_guide(a, p), displacement(a, b)(0.5)
    for new, known in zip(guides, (permute_guide(here[0], p), displacement(*here)(0.5)), strict=True):
        check_same(new.state_dict(), known.state_dict())
    aligned = align(a, b, SYMMETRY, matcher="coordinate")  # other matchers have tests of their own
    check_same_labels(aligned.permutation, align(*here, SYMMETRY, matcher="coordinate").permutation)
    assert q.distance(read_guide(b)) == pytest.approx(host.distance(read_guide(here[1])), rel=1e-9)
    guides += aligned.guide, pickle.loads(pickle.dumps(q)).to_guide()
    if name in ("AutoNormal", "AutoDiagonalNormal", "AutoDelta", "AutoMultivariateNormal", "laplace_approximation"):
        guides += (barycenter([q, read_guide(b)]).to_guide(),)
    relabeled = q.permute(p).push(q.permute_noise(p, noise))
    found = [*noise.values(), *values.values(), log_prob, *relabeled.values()]
    found += [t for guide in guides for t in guide.state_dict().values()]
    assert devices_of(found) == {device}


@pytest.mark.parametrize("name", GUIDES)
def test_a_moved_and_cast_guide_is_read_as_it_is(name, device):
    guide = GUIDES[name](0).to(device, torch.float32)
    q = read_guide(guide)
    values, log_prob = q.push_with_log_prob(q.noise(3))
    found = [*values.values(), log_prob, *q.permute(SYMMETRY.random(1)).to_guide().state_dict().values()]
    assert devices_of(found) == {device}
    assert {t.dtype for t in found if t.is_floating_point()} == {q.dtype} == {torch.float32}


@pytest.mark.parametrize("divergence", ["w2", "means", "kl", "reverse_kl", "jeffreys", "snr"])
def test_divergences(divergence, device):
    found, expected = (
        align(*(GUIDES["AutoNormal"](seed).to(d) for seed in range(2)), SYMMETRY, divergence=divergence)
        for d in (device, "cpu")
    )
    check_same_labels(found.permutation, expected.permutation)


def test_hand_written_wrapped_and_messenger_guides(device):
    x, y = data(device)

    def by_hand(x, y=None):
        loc = pyro.param("loc", lambda: x.new_zeros(5, 2))
        scale = pyro.param("scale", lambda: x.new_ones(5, 2), constraint=dist.constraints.positive)
        pyro.sample("w1", dist.Normal(loc, scale).to_event(2))
        pyro.sample("w2", dist.Normal(loc.sum(-1), scale.sum(-1)).to_event(1))

    by_hand(x, y)
    guides = [mean_field_guide(by_hand, x, y), wrap_guide(by_hand, x, y)]
    for cls, options in [
        (AutoHierarchicalNormalMessenger, {}),
        (AutoRegressiveMessenger, {}),
        (AutoIAFNormal, {"hidden_dim": [30]}),
    ]:
        with pyro.get_param_store().scope(), torch.device(device):
            guide = cls(network, **options)
            guide(x, y)
        guides.append((wrap_guide if cls is AutoIAFNormal else messenger_guide)(guide, x, y))
    guides.append(read_guide([{k: v[0, i] for k, v in draws_on(device).items()} for i in range(4)]))
    for q in guides:
        new = q.permute(UNIT.random(3))
        values, log_prob = new.push_with_log_prob(new.noise(3))
        assert devices_of([*values.values(), log_prob]) == {device}
        with pyro.get_param_store().scope():
            assert devices_of(permute_guide(q, UNIT.random(3))(x, y).values()) == {device}


def test_discrete_guides(device):
    def labeled(x):
        with pyro.plate("data", len(x), device=x.device):
            k = pyro.sample("k", dist.Categorical(x.new_ones(3)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(k.to(x.dtype), x.new_ones(())), obs=x)

    x = torch.linspace(0, 2, 6)
    with pyro.get_param_store().scope():
        guide = AutoDiscreteParallel(labeled)
        guide(x)
    symmetry = Symmetry.from_axes({"loc": ("unit",)}, shapes={"loc": (3,)})
    q, p = read_guide(guide.to(device), labels={"k": "unit"}), symmetry.random(3)
    new = q.permute(p)
    values, log_prob = new.push_with_log_prob(q.permute_noise(p, q.noise(2)))
    assert devices_of([*values.values(), log_prob, *new.to_guide().state_dict().values()]) == {device}


@pytest.mark.parametrize("name", ["AutoNormal", "AutoDelta", "AutoMultivariateNormal", "AutoGaussian"])
def test_files_go_from_device_to_host_and_back(name, device, tmp_path):
    here, there = GUIDES[name](0), GUIDES[name](0).to(device)
    aligned = align(there, GUIDES[name](1).to(device), SYMMETRY, with_margins=True)
    for what, value in {"guide": aligned.guide, "alignment": aligned}.items():
        save(tmp_path / what, value)
    for like, kind in ((here, "cpu"), (there, device)):
        guide, again = load(tmp_path / "guide", like=like), load(tmp_path / "alignment", like=like)
        for read in (guide, again.guide):
            assert devices_of(read.state_dict().values()) == {kind}
            check_same(read.state_dict(), {k: v.cpu() for k, v in aligned.guide.state_dict().items()})
        check_same_labels(again.permutation, aligned.permutation)
    save(tmp_path / "host", load(tmp_path / "guide", like=here))
    assert (tmp_path / "host").read_bytes() == (tmp_path / "guide").read_bytes()
    torch.save(there.state_dict(), tmp_path / "state.pt")
    check_same(torch.load(tmp_path / "state.pt", map_location="cpu"), here.state_dict())


# -- matching ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "matcher"),
    [
        *((name, "coordinate") for name in STRUCTURES),
        *((name, "frank_wolfe") for name in ("recurrent", "heads", "signs, nested", "concatenation")),
    ],
)
def test_every_structure_is_matched_as_on_the_host(name, matcher, device):
    structure = STRUCTURES[name]
    fixed = features(structure.symmetry, 0)
    moving = relabel(fixed, structure.symmetry.random(3), structure.odd, 0.3, 1)
    options = {"odd": structure.odd, "matcher": matcher, "restarts": 1, "with_margins": True}
    here = match(structure.symmetry, fixed, moving, **options)
    there = match(structure.symmetry, moved(fixed, device), moved(moving, device), **options)
    check_same_labels(there.permutation, here.permutation)
    assert there.objective == pytest.approx(here.objective, rel=1e-12)
    check_same(dict(there.margins), dict(here.margins))


@pytest.mark.parametrize("matcher", ["coordinate", "frank_wolfe", "sinkhorn", "straight_through", "exhaustive"])
def test_matchers_work_where_the_features_lie(matcher, monkeypatch, device):
    """Gain matrices are made and looked at on the device; only what argmax does not settle is solved on the host."""
    seen, assign = set(), assignment.assign

    def watched(gain):
        seen.add(gain.device.type)
        return assign(gain)

    for name, module in list(sys.modules.items()):
        if name.startswith("pyro_align.matching.") and getattr(module, "assign", None) is assign:
            monkeypatch.setattr(module, "assign", watched)
    a, b = (GUIDES["AutoNormal"](seed) for seed in range(2))
    short = {"sinkhorn": Sinkhorn(max_steps=10), "straight_through": StraightThrough(max_steps=5)}.get(matcher, matcher)
    expected = align(a, b, SYMMETRY, matcher=short).permutation
    seen.clear()
    found = align(a.to(device), b.to(device), SYMMETRY, matcher=short).permutation
    check_same_labels(found, expected)
    assert seen <= {device}
    assert bool(seen) == (matcher != "exhaustive")


@emulated_only
@pytest.mark.parametrize(
    ("matcher", "init"),
    [
        *(("coordinate", init) for init in ("identity", "spectral", "random")),
        *((m, "spectral") for m in ("frank_wolfe", Sinkhorn(max_steps=2), StraightThrough(max_steps=2))),
    ],
    ids=["coordinate", "spectral", "random", "frank_wolfe", "sinkhorn", "straight_through"],
)
def test_only_square_matrices_travel(matcher, init):
    """Sites have far more entries than n x n: none of them, nor anything of their size, goes to the host or back."""
    n, wide = 14, 50  # more units than a population has members, whose indices travel; too many to enumerate
    axes = {"w1": ("h", None), "wh": ("h", "h", None), "w2": (None, "h")}
    symmetry = Symmetry.from_axes(axes, shapes={"w1": (n, wide), "wh": (n, n, wide), "w2": (wide, n)})
    fixed = features(symmetry, 0)
    fixed, moving = moved(fixed, "accel"), moved(features(symmetry, 1), "accel")
    with accelerator.transfers() as log:
        match(symmetry, fixed, moving, matcher=matcher, init=init, restarts=1, with_margins=True)
    assert any(t.shape[-2:] == (n, n) for t in log)  # of a population, those of all members at once
    assert all(np.prod(t.shape) <= (16 if t.shape[-2:] == (n, n) else 1) * n * n for t in log)


@emulated_only
def test_a_settled_matrix_does_not_travel():
    gain = torch.eye(5).expand(4, 5, 5).roll(1, -1).to("accel")
    with accelerator.transfers() as log:
        assignment.assign(gain)
    assert sum(np.prod(t.shape) for t in log) <= 4 * 5


# -- models, paths, barriers -------------------------------------------------------------------------------------------


def three(device):
    return [fitted(seed, device) for seed in range(3)]


def test_models_and_draws_stay(device):
    check_model_side(device, default="cpu")


def test_discovery_and_relabeled_models(device):
    x, y = data(device)
    symmetry, p = find_symmetry(network, x, y), UNIT.random(3)
    assert symmetry.sites == find_symmetry(network, *data("cpu")).sites
    assert certify(network, symmetry, x, y).certificate is not None
    z = {k: v[0, 0] for k, v in draws_on(device).items()}

    def log_joint(model, values):
        return poutine.trace(poutine.condition(model, values)).get_trace(x, y).log_prob_sum()

    found = log_joint(permute_model(network, p), p.apply(z))
    assert found.device.type == device
    torch.testing.assert_close(found, log_joint(network, z))


class Recurrent(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell, self.out = cell(2, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x):
        return self.out(self.cell(x)[0])


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_fused_recurrent_layers_keep_their_symmetry(cell, device):
    net, x = Recurrent(cell), torch.randn(2, 3, 2)
    here, there = find_symmetry(net, x), find_symmetry(copy.deepcopy(net).to(device), x.to(device))
    assert here.atoms
    assert there.sites == here.sites


@pytest.mark.usefixtures("few_draws")
def test_align_by_model(device):
    """Divergences that run the model, losses of the midpoint and of the path, and what is chosen by them."""
    x, y = data(device)
    a, b, c = three(device)
    here, host = three("cpu"), data("cpu")
    symmetry, weights = find_symmetry(network, x, y), {"w2": 1.0, "means": 0.5}

    def options(x, y, a):
        loss = MidpointLoss(network, a, x, y, num_samples=3)
        return [
            {"divergence": Activations(network, x, y)},
            {"divergence": {**weights, Activations(network, x, y): 0.5}},
            {"divergence": weights, "with_margins": True},
            {"restarts": 2, "select": PathLoss(network, x, y, num_samples=3)},
            {"matcher": Sinkhorn(loss=loss, max_steps=3)},
            {"matcher": StraightThrough(loss=loss, max_steps=3)},
        ]

    for there, expected in zip(options(x, y, a), options(*host, here[0]), strict=True):
        found = align(a, b, symmetry, **there)
        check_same_labels(found.permutation, align(*here[:2], symmetry, **expected).permutation)
        assert devices_of(found.guide.state_dict().values()) == {device}
    for reference in (None, 0):
        many = align_many([a, b, c], UNIT, reference=reference)
        tensors = [v for guide in (*many.guides, many.center.to_guide()) for v in guide.state_dict().values()]
        assert devices_of(tensors) == {device}


def test_barriers_are_those_of_the_host(device, tmp_path):
    """All losses; in chunks, from a DataLoader, refined, resumed from a checkpoint."""
    (x, y), (hx, hy) = data(device), data("cpu")
    path, host = (displacement(*three(d)[:2]) for d in (device, "cpu"))
    names = ("expected_nll", "predictive_nll", "negative_elbo", "kl")
    losses = {**{name: name for name in names}, "mse": lambda prediction, y: (prediction - y).square()}
    options = {"taus": 3, "num_samples": 4}
    expected = evaluate_barrier(network, host, hx, hy, losses=losses, **options)

    def check(barrier, *key):
        for name in barrier.losses:
            np.testing.assert_allclose(barrier[(*key, name) if key else name].value, expected[name].value, rtol=1e-9)

    check(evaluate_barrier(network, path, x, y, losses=losses, **options))
    check(evaluate_barrier(network, path, x, y, chunk=2, **options))
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    check(evaluate_barrier(network, path, evaluation={"test": loader}, **options), "test")
    for _ in range(2):
        barrier = evaluate_barrier(network, path, x, y, checkpoint=tmp_path / "run", **options)
        check(barrier)
    assert evaluate_barrier(network, path, x, y, tolerance=0.1, **options).summary() is not None
    assert evaluate_barrier(network, path, x, y, losses=Trace_ELBO(), **options).losses
    assert barrier.to_arviz() is not None


def test_learned_repaired_and_plane(device):
    (x, y), (a, b, c), here = data(device), three(device), three("cpu")
    learned = learn_path(network, a, b, x, y, max_steps=3, batch_size=4)
    assert learned.losses == pytest.approx(
        learn_path(network, *here[:2], *data("cpu"), max_steps=3, batch_size=4).losses
    )
    surface = evaluate_plane(network, plane(a, b, c), x, y, grid=2, num_samples=4)
    expected = evaluate_plane(network, plane(*here), *data("cpu"), grid=2, num_samples=4)
    np.testing.assert_allclose(surface["negative_elbo"], expected["negative_elbo"], rtol=1e-9)
    net, inputs, labels = bayesian_mlp([4, 5, 4, 3]), torch.randn(20, 4), torch.arange(20) % 3
    ends = [make_guide(net, inputs, labels, seed=s, scale=0.05) for s in (1, 2)]
    host = repair(net, displacement(*ends), inputs, labels, num_samples=2)
    ends = [make_guide(net, inputs, labels, seed=s, scale=0.05).to(device) for s in (1, 2)]
    repaired = repair(net, displacement(*ends), inputs.to(device), labels.to(device), num_samples=2)
    check_same(repaired(0.5).state_dict(), host(0.5).state_dict())
    guides = [learned(0.3), plane(a, b, c)(0.2, 0.3), path_through([a, b, c])(0.7), repaired(0.5)]
    assert devices_of([t for guide in guides for t in guide.state_dict().values()]) == {device}
    width, known = (effective_width(network, g, UNIT, *data(d)) for g, d in ((a, device), (here[0], "cpu")))
    assert str(width) == str(known)


# -- draws -------------------------------------------------------------------------------------------------------------


def mixture(x):
    """The bounds of a site's support lie where the data do."""
    ones = x.new_ones(3)
    loc = pyro.sample("loc", dist.Normal(0 * ones, 5 * ones).to_event(1))
    scale = pyro.sample("scale", dist.Uniform(0 * ones, 3 * ones).to_event(1))
    weight = pyro.sample("weight", dist.Dirichlet(ones))
    with pyro.plate("data", len(x), device=x.device):
        k = pyro.sample("k", dist.Categorical(weight), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[k], scale[k]), obs=x)


NAMES = ("loc", "scale", "weight")
SITES = Symmetry.from_axes(dict.fromkeys(NAMES, ("k",)), shapes=dict.fromkeys(NAMES, (3,)))


def switching():
    g = torch.Generator().manual_seed(0)
    order = torch.rand(2, 10, 3, generator=g).argsort(-1)
    draws = {
        "loc": torch.tensor([-3.0, 0.0, 3.0]) + 0.1 * torch.randn(2, 10, 3, generator=g),
        "scale": 0.3 + 0.1 * torch.rand(2, 10, 3, generator=g),
        "weight": dist.Dirichlet(torch.ones(3)).expand([2, 10]).sample(),
    }
    return {k: v.gather(-1, order) for k, v in draws.items()}


METHODS = ["pivot", "barycenter", "stephens", "ecr", "ecr_iterative_1", "ecr_iterative_2", "ordering"]


@pytest.mark.parametrize("method", METHODS)
def test_draws_are_relabeled_as_on_the_host(method, device):
    x, draws = torch.tensor([-3.0, -2.9, 0.1, 0.2, 3.0, 3.1]), switching()
    there = moved(draws, device)
    options = {"method": method, **({"by": "loc"} if method == "ordering" else {})}
    here = align_draws(draws, SITES, model=mixture, args=(x,), **options)
    found = align_draws(there, SITES, model=mixture, args=(x.to(device),), **options)
    assert devices_of(found.draws.values()) == {device}
    assert all(torch.equal(found.permutations[k], v) for k, v in here.permutations.items())
    np.testing.assert_allclose(found.log_joint, here.log_joint, rtol=1e-12)
    assert found.invariance.draws == here.invariance.draws > 0
    if method == "pivot":
        at = {k: v[0, 0] for k, v in there.items()}
        for more in ({"weights": "diagonal"}, {"reference": at}, {"level": "chain"}):
            align_draws(there, SITES, model=mixture, args=(x.to(device),), **more)
        assert len(found.report()) == len(NAMES) + 1
        assert found.to_arviz() is not None
    if method == "stephens":
        given = torch.softmax(torch.randn(2, 10, 6, 3), -1).to(device)
        align_draws(there, SITES, method=method, reference=(0, 0), allocations=given)


def test_ensembles_and_symmetrized_guides(device):
    x, y = data(device)
    guides, here = three(device), three("cpu")
    found, expected = align_draws(guides, UNIT), align_draws(here, UNIT)
    assert all(torch.equal(found.permutations[k], v) for k, v in expected.permutations.items())
    assert devices_of(found.draws.values()) == {device}
    worth = symmetrize(guides[0], UNIT, components=4).elbo(network, x, y, num_samples=20)
    assert worth.mixture == pytest.approx(
        symmetrize(here[0], UNIT, components=4).elbo(network, *data("cpu"), num_samples=20).mixture
    )
    assert devices_of(symmetrize(guides[0], UNIT, components=4)().values()) == {device}


# -- what is left behind -----------------------------------------------------------------------------------------------


def test_random_state_of_the_device_is_left_as_it_was(device):
    module, drawn = torch.get_device_module(device), []
    for _ in range(2):
        torch.rand(1, device=device)
        before = module.get_rng_state()
        with untouched(seed=1):
            drawn.append(torch.rand(3, device=device))
        assert torch.equal(module.get_rng_state(), before)
    assert torch.equal(*drawn)
