"""Rotations: models whose continuous group is known, the rules one by one, and what ends a rotation."""

import warnings

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import pytest
import torch
from architectures import ROTATED_ACTIVATIONS, random_net
from problems import normal, observe
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal, init_to_sample
from rule_samplers import SAMPLERS, Draw
from torch import nn

from pyro_align import align, align_draws, find_symmetry, load, permute_guide, save
from pyro_align.discovery import check_rotation_rule, rotation_rule
from pyro_align.errors import PyroAlignError, SymmetryError

aten = torch.ops.aten

# -- models -----------------------------------------------------------------------------------------------------------

P, K, N = 6, 3, 7  # variables, factors, observations


def factors(scale=1.0):
    w = normal("w", P, K, scale=scale)
    observe(normal("z", N, K) @ w.T)


def factors_by_covariance(y):
    w, s = normal("w", P, K), pyro.sample("s", dist.HalfNormal(torch.ones(P)).to_event(1))
    with pyro.plate("data", N):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(P), w @ w.T + torch.diag_embed(s**2)), obs=y)


def factors_of_hierarchical_scale():
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(1.0)))
    observe(normal("z", N, K) @ normal("w", P, K, scale=tau).T)


def factors_with_a_scale_each():
    tau = pyro.sample("tau", dist.HalfCauchy(torch.ones(K)).to_event(1))
    observe(normal("z", N, K) @ normal("w", P, K, scale=tau).T)


def factors_with_heavy_tails():
    w = pyro.sample("w", dist.StudentT(3.0, 0.0, 1.0).expand([P, K]).to_event(2))
    observe(normal("z", N, K) @ w.T)


def factors_around_a_mean():
    w = pyro.sample("w", dist.Normal(0.3, 1.0).expand([P, K]).to_event(2))
    observe(normal("z", N, K) @ w.T)


def factors_around_a_drawn_mean():
    """The mean of the loadings is rotated with them."""
    w = pyro.sample("w", dist.Normal(normal("mean", K), 1.0).expand([P, K]).to_event(2))
    observe(normal("z", N, K) @ w.T)


def matrix_factorization():
    u, v = normal("u", N, K), normal("v", P, K)
    observe((u[:, None] * v).sum(-1))


def by_distances():
    """A latent-space network model: only distances between places count."""
    z = normal("z", N, K)
    gap = (z[:, None] - z[None]).square().sum(-1)
    observe(torch.exp(-gap))


def by_distances_in_one_call():
    z = normal("z", N, K)
    observe(torch.exp(-torch.cdist(z, z)) + torch.nn.functional.pdist(z).sum())


def by_distances_to_constants():
    observe(torch.exp(-torch.cdist(normal("z", N, K), torch.arange(6.0).reshape(2, 3))))


def by_inner_products_and_length():
    z = normal("z", N, K)
    observe(z @ z.T / (1 + z.norm(dim=-1)))


def by_spread():
    z = normal("z", N, K)
    observe(z.square().sum(-1) + z.var(0).sum() + (z - z.mean(0)).square().mean())


def deep_linear(x):
    observe(x @ normal("a", 4, 3).T @ normal("b", 5, 4).T @ normal("c", 2, 5).T)


def linear_with_a_gain(x):
    observe((x @ normal("a", 4, 3).T * normal("gain", 4)) @ normal("c", 2, 4).T)


def linear_with_a_bias(x):
    observe((x @ normal("a", 4, 3).T + normal("bias", 4)) @ normal("c", 2, 4).T)


def linear_with_a_relu(x):
    observe(torch.relu(x @ normal("a", 4, 3).T) @ normal("c", 2, 4).T)


def linear_where_one_unit_is_read(x):
    hidden = x @ normal("a", 4, 3).T
    observe(hidden @ normal("c", 2, 4).T + hidden[:, :1])


def linear_with_a_mask(x):
    """A diagonal that is taken away belongs to no rotation."""
    m = normal("m", 4, 4).masked_fill(torch.eye(4, dtype=torch.bool), 0.0)
    observe(x @ normal("a", 4, 3).T @ m @ normal("c", 2, 4).T)


def linear_recurrence(x):
    """One matrix from the stream to itself, with its trace and its diagonal."""
    w, h = normal("w", 4, 4), x @ normal("a", 4, 3).T
    for _ in range(3):
        h = h + h @ w.T
    observe(h @ normal("c", 2, 4).T + w.diagonal().sum() + torch.trace(w @ w.T))


def linear_recurrence_with_its_diagonal(x):
    w = normal("w", 4, 4)
    observe((x @ normal("a", 4, 3).T @ w.T) @ normal("c", 2, 4).T + w.diagonal().square().sum())


def with_an_identity(x):
    """A multiple of the identity follows, as a prior mean and in a product."""
    w = pyro.sample("w", dist.Normal(0.5 * torch.eye(4), 1.0).to_event(2))
    observe(x @ normal("a", 4, 3).T @ (w + torch.eye(4)) @ normal("c", 2, 4).T)


def with_a_matrix_of_ones(x):
    w = pyro.sample("w", dist.Normal(torch.eye(4) + 0.5, 1.0).to_event(2))
    observe(x @ normal("a", 4, 3).T @ w @ normal("c", 2, 4).T)


def by_spread_of_units(x):
    h = x @ normal("a", 4, 3).T
    observe((h + 1) @ normal("c", 2, 4).T + h.std(-1, keepdim=True) * h.mean(-1, keepdim=True))


def layer_norms(x, gain=False):
    scale, h = normal("gain", 5) if gain else 1.0, x @ normal("embed", 4, 5)
    norm = nn.functional.layer_norm
    h = h + torch.relu(norm(h, (5,)) * scale @ normal("up", 5, 3)) @ normal("down", 3, 5)
    observe(norm(h, (5,)) * scale @ normal("head", 5, 2))


CENTERED = {"factors_around_a_mean", "with_a_matrix_of_ones", "by_spread_of_units", "layer_norms"}


def rms(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def attention(x, gain=False, causal=False):
    """A stream of 8, two heads of 3; RMSNorm without a gain, or with one."""
    scale = normal("gain", 8) if gain else 1.0
    h = x @ normal("embed", 4, 8)
    q, k, v = ((rms(h) * scale @ normal(n, 8, 6)).reshape(2, 5, 2, 3).transpose(1, 2) for n in "qkv")
    scores = q @ k.transpose(-1, -2) / 3**0.5
    if causal:
        scores = scores.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
    mixed = torch.softmax(scores, -1) @ v
    h = h + mixed.transpose(1, 2).reshape(2, 5, 6) @ normal("o", 6, 8)
    h = h + torch.relu(rms(h) @ normal("u", 8, 4)) @ normal("d", 4, 8)
    observe(rms(h).mean(1) @ normal("head", 8, 2))


def rotary(q):
    angle = torch.arange(5.0)[:, None] * torch.tensor([1.0, 0.1])
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
    return q * cos + torch.cat([-q[..., 2:], q[..., :2]], -1) * sin


def rotary_attention(x, scale=1.0):
    """Queries and keys mix in pairs of their own angle; values stay free."""
    q, k, v = (x @ normal(n, 4, 4, scale=scale) for n in "qkv")
    mixed = torch.softmax(rotary(q) @ rotary(k).transpose(-1, -2), -1) @ v
    observe(mixed @ normal("o", 4, 2))


def data(*shape):
    return lambda: (torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64),)


# model, its arguments, and what is rotated: the axes of every rotation
MODELS = {
    "factors": (factors, tuple, ["w[1] z[1]"]),
    "factors_by_covariance": (factors_by_covariance, data(N, P), ["w[1]"]),
    "factors_of_hierarchical_scale": (factors_of_hierarchical_scale, tuple, ["w[1] z[1]"]),
    "factors_around_a_drawn_mean": (factors_around_a_drawn_mean, tuple, ["mean[0] w[1] z[1]"]),
    "factors_of_ordered_scales": (lambda: factors(torch.tensor([1.0, 0.5, 0.25])), tuple, []),
    "factors_with_a_scale_each": (factors_with_a_scale_each, tuple, []),
    "factors_with_heavy_tails": (factors_with_heavy_tails, tuple, []),
    "factors_around_a_mean": (factors_around_a_mean, tuple, ["w[1] z[1]"]),
    "matrix_factorization": (matrix_factorization, tuple, ["u[1] v[1]"]),
    "by_distances": (by_distances, tuple, ["z[1]"]),
    "by_distances_in_one_call": (by_distances_in_one_call, tuple, ["z[1]"]),
    "by_distances_to_constants": (by_distances_to_constants, tuple, []),
    "by_inner_products_and_length": (by_inner_products_and_length, tuple, ["z[1]"]),
    "by_spread": (by_spread, tuple, ["z[1]"]),
    "deep_linear": (deep_linear, data(5, 3), ["a[0] b[1]", "b[0] c[1]"]),
    "linear_with_a_bias": (linear_with_a_bias, data(5, 3), ["a[0] bias[0] c[1]"]),
    "linear_with_a_gain": (linear_with_a_gain, data(5, 3), []),
    "linear_with_a_relu": (linear_with_a_relu, data(5, 3), []),
    "linear_where_one_unit_is_read": (linear_where_one_unit_is_read, data(5, 3), None),
    "linear_with_a_mask": (linear_with_a_mask, data(5, 3), []),
    "linear_recurrence": (linear_recurrence, data(5, 3), ["a[0] c[1] w[0] w[1]"]),
    "linear_recurrence_with_its_diagonal": (linear_recurrence_with_its_diagonal, data(5, 3), []),
    "with_an_identity": (with_an_identity, data(5, 3), ["a[0] c[1] w[0] w[1]"]),
    "with_a_matrix_of_ones": (with_a_matrix_of_ones, data(5, 3), ["a[0] c[1] w[0] w[1]"]),
    "by_spread_of_units": (by_spread_of_units, data(5, 3), ["a[0] c[1]"]),
    "layer_norms": (layer_norms, data(5, 4), ["down[1] embed[1] head[0] up[0]"]),
    "layer_norm_with_a_gain": (lambda x: layer_norms(x, gain=True), data(5, 4), []),
    "attention": (
        attention,
        data(2, 5, 4),
        ["d[1] embed[1] head[0] k[0] o[1] q[0] u[0] v[0]", "k[1] q[1]", "o[0] v[1]"],
    ),
    "causal_attention": (
        lambda x: attention(x, causal=True),
        data(2, 5, 4),
        ["d[1] embed[1] head[0] k[0] o[1] q[0] u[0] v[0]", "k[1] q[1]", "o[0] v[1]"],
    ),
    "attention_with_a_gain": (lambda x: attention(x, gain=True), data(2, 5, 4), ["k[1] q[1]", "o[0] v[1]"]),
}


def rotated(symmetry):
    return sorted(
        " ".join(sorted(f"{site}[{axis}]" for site, axis in symmetry.carriers[name])) for name in symmetry.rotated
    )


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_exactly_the_known_rotations(name, signs):
    model, arguments, expected = MODELS[name]
    args = arguments()
    symmetry = find_symmetry(model, *args, rotations=True, signs=signs)
    if expected is not None:
        assert rotated(symmetry) == expected
        assert {symmetry.atoms[a].centered for a in symmetry.rotated} <= {name in CENTERED}
    assert symmetry.certificate.error <= symmetry.certificate.tolerance
    plain = find_symmetry(model, *args, signs=signs)
    assert not plain.rotated
    assert plain.atoms.keys() == symmetry.atoms.keys()
    assert {n: a.kind for n, a in plain.atoms.items() if n not in symmetry.rotated} == {
        n: a.kind for n, a in symmetry.atoms.items() if n not in symmetry.rotated
    }


def test_heads_rotate_one_by_one():
    symmetry = find_symmetry(attention, *data(2, 5, 4)(), rotations=True)
    heads = {name: symmetry.outer_shape(name) for name in symmetry.rotated}
    assert sorted(heads.values()) == [(), (2,), (2,)]
    assert symmetry.dimension == 8 * 7 // 2 + 2 * 2 * 3  # the stream; queries with keys and values, in either head


def test_centered_rotations_are_filed_and_aligned(tmp_path):
    x = data(5, 4)()
    symmetry = find_symmetry(layer_norms, *x, rotations=True)
    save(tmp_path / "group", symmetry)
    again = load(tmp_path / "group")
    assert dict(again.sites) == dict(symmetry.sites)
    element = symmetry.random(3)
    save(tmp_path / "element", element)
    assert load(tmp_path / "element") == element
    guide = AutoDelta(layer_norms, init_loc_fn=init_to_sample)
    guide(*x)
    found = align(guide, permute_guide(guide, element), again, restarts=2)
    assert found.distance < 1e-5
    save(tmp_path / "found", found)
    assert load(tmp_path / "found", like=guide).permutation == found.permutation


# -- planes of rotary embeddings --------------------------------------------------------------------------------------


def halves(x, angle):
    """As in Llama's public code: a pair is half of a head apart."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def neighbors(x, angle):
    """As in the paper: pairs of complex numbers."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


class RotaryTransformer(nn.Module):
    """Two layers, two heads of four dimensions each, angles that grow with the position, or come with the data."""

    def __init__(self, turn, gain=False):
        super().__init__()
        self.turn, self.embed, self.head = turn, nn.Linear(3, 8), nn.Linear(8, 3)
        self.qkv = nn.ModuleList(nn.Linear(8, 24, bias=False) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(2))
        self.gain = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0])) if gain else 1.0

    def forward(self, x, positions=None):
        positions = torch.arange(x.shape[1], dtype=x.dtype) if positions is None else positions
        angle = positions[:, None] * torch.tensor([1.0, 0.1], dtype=x.dtype)
        h = self.embed(x)
        for qkv, out in zip(self.qkv, self.out, strict=True):
            q, k, v = qkv(torch.tanh(h)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            q, k = self.turn(q * self.gain, angle), self.turn(k, angle)
            h = h + out((torch.softmax(q @ k.mT, -1) @ v).transpose(1, 2).flatten(2))
        return self.head(torch.tanh(h))


def planes(symmetry):
    return {n: a for n, a in symmetry.atoms.items() if a.kind == "plane rotation"}


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("turn", [halves, neighbors])
def test_pairs_of_a_rotary_embedding_rotate_by_an_angle_each(turn, signs):
    net, x = RotaryTransformer(turn).double(), torch.randn(2, 5, 3, dtype=torch.float64)
    symmetry = find_symmetry(net, x, rotations=True, signs=signs)
    found = planes(symmetry)
    assert [symmetry.outer_shape(name) for name in found] == [(2, 2), (2, 2)]  # heads and pairs, in either layer
    assert [symmetry.carriers[name] for name in found] == [(("qkv.0.weight", 0),), (("qkv.1.weight", 0),)]
    assert symmetry.certificate.error <= symmetry.certificate.tolerance
    assert not any("sign of qkv" in name for name in symmetry.atoms)
    element = symmetry.random(1)
    torch.testing.assert_close(element.apply(net)(x), net(x), rtol=1e-10, atol=1e-10)
    assert "↻₂" in str(symmetry)


def test_planes_are_aligned_and_filed(tmp_path):
    """By points and full covariance; a mean-field guide cannot follow, and relabeling draws does not rotate planes."""
    x = data(2, 5, 4)()
    symmetry = find_symmetry(rotary_attention, *x, signs=True, rotations=True)
    save(tmp_path / "group", symmetry)
    symmetry = load(tmp_path / "group")
    element = symmetry.random(1)
    save(tmp_path / "element", element)
    assert load(tmp_path / "element") == element
    for family in (AutoDelta, AutoMultivariateNormal, AutoNormal):
        pyro.clear_param_store()
        guide = family(rotary_attention, init_loc_fn=init_to_sample)
        guide(*x)
        if family is AutoNormal:
            with pytest.raises(PyroAlignError, match="mean-field"):
                align(guide, guide, symmetry)
            continue
        found = align(guide, permute_guide(guide, element), symmetry, restarts=4)
        assert found.distance < 1e-4 * found.distance_before
        assert "units moved" in str(found)
    symmetry.plot()
    plt.close("all")
    draws = {k: torch.randn(1, 20, *shape) for k, shape in symmetry.shapes.items()}
    with pytest.raises(SymmetryError, match="plane"):
        align_draws(draws, symmetry, method="procrustes")


def test_rotary_angles_may_come_with_the_data():
    net, x = RotaryTransformer(halves).double(), torch.randn(2, 5, 3, dtype=torch.float64)
    positions = torch.tensor([0.0, 1.5, 2.0, 5.0, 9.0], dtype=torch.float64)
    assert len(planes(find_symmetry(net, x, positions, rotations=True))) == 2


def test_what_distinguishes_the_dimensions_of_a_pair_ends_its_rotation():
    net, x = RotaryTransformer(halves, gain=True).double(), torch.randn(2, 5, 3, dtype=torch.float64)
    assert not planes(find_symmetry(net, x, rotations=True))
    args = data(2, 5, 4)()
    assert len(planes(find_symmetry(rotary_attention, *args, rotations=True))) == 1
    scale = torch.tensor([1.0, 1.0, 1.0, 2.0])
    assert not planes(find_symmetry(lambda x: rotary_attention(x, scale), *args, rotations=True))


def test_a_support_that_is_not_all_real_numbers():
    def model():
        w = pyro.sample("w", dist.LogNormal(0.0, 1.0).expand([P, K]).to_event(2))
        observe(normal("z", N, K) @ w.T)

    assert not find_symmetry(model, rotations=True).rotated
    net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    assert rotated(find_symmetry(net, torch.randn(4, 3), rotations=True)) == ["0.bias[0] 0.weight[0] 1.weight[1]"]


def test_a_likelihood_has_rotations_that_a_joint_has_not():
    def model():
        w = pyro.sample("w", dist.Laplace(0.0, 1.0).expand([P, K]).to_event(2))
        observe(normal("z", N, K) @ w.T)

    assert not find_symmetry(model, rotations=True).rotated
    assert find_symmetry(model, rotations=True, scope="likelihood").rotated


def test_kinds_are_printed():
    symmetry = find_symmetry(factors, rotations=True)
    assert [atom.kind for atom in symmetry.atoms.values()] == ["rotation"]
    assert "\u21bb" in str(symmetry)


# -- rules ------------------------------------------------------------------------------------------------------------


def sampled(names):
    for name in names:
        for seed in range(5):
            case = SAMPLERS[name](Draw(f"{name} {seed}"), name)
            if rotation_rule.find(case.operation) is not None:
                yield name, case


def known_to_samplers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sorted({name for name, _ in sampled(SAMPLERS)})


@pytest.mark.parametrize("name", known_to_samplers())
def test_a_rule_claims_only_what_holds(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch thinks of a width of one
        for _, case in sampled([name]):
            options = {"constants": case.constants, "outputs": case.outputs, "trials": 3 if case.checked else 0}
            check_rotation_rule(case.operation, *case.args, **options, **case.kwargs)


@pytest.mark.parametrize(
    ("operation", "args", "rotates", "squares"),
    [
        (aten.mm.default, ((4, 3), (3, 2)), ["0[0]", "0[1]", "1[0]", "1[1]"], []),
        (aten.addmm.default, ((2,), (4, 3), (3, 2)), ["0[0]", "1[0]", "1[1]", "2[0]", "2[1]"], []),
        (aten.mul.Tensor, ((3, 4), (3, 1)), ["0[1]"], []),
        (aten.mul.Tensor, ((4,), (4,)), ["0[0]", "1[0]"], ["0[0]"]),
        (aten.add.Tensor, ((4,), (4,)), ["0[0]", "1[0]"], []),
        (aten.square.default, ((4,),), ["0[0]"], ["0[0]"]),
        (aten.pow.Tensor_Scalar, ((4,), 2), ["0[0]"], ["0[0]"]),
        (aten.pow.Tensor_Scalar, ((4,), 3), [], []),
        (aten.linalg_vector_norm.default, ((4,), 2), ["0[0]"], []),
        (aten.linalg_vector_norm.default, ((4,), 1), [], []),
        (aten.tanh.default, ((4,),), [], []),
        (aten.linalg_inv_ex.default, ((3, 3),), ["0[0]", "0[1]"], []),
        (aten.trace.default, ((3, 3),), ["0[0]", "0[1]"], []),
        (aten.diagonal.default, ((3, 3),), ["0[0]", "0[1]"], ["0[0]"]),
        (aten.div.Tensor, ((4, 3), (4, 1)), ["0[1]"], []),
    ],
)
def test_what_a_rule_leaves_free(operation, args, rotates, squares):
    """Not less than there is: a rule may not miss what these operations allow."""
    values = [torch.randn(a) if isinstance(a, tuple) else a for a in args]
    check = check_rotation_rule(operation, *values)
    assert list(check.rotated) == [f"input{place}" for place in rotates]
    assert list(check.squares) == [f"output{place}" for place in squares]


@pytest.mark.parametrize(
    ("operation", "rule"),
    [
        (aten.tanh.default, lambda call, x: call.along(x)),
        (aten.abs.default, lambda call, x: call.square(x)),
        (aten.exp.default, lambda call, x: call.along(x)),
    ],
)
def test_a_rule_that_claims_too_much_is_found_out(operation, rule, monkeypatch):
    monkeypatch.setitem(rotation_rule.rules, str(operation), rule)
    with pytest.raises(SymmetryError, match=f"the rule of rotations of {operation} claims too much for input0"):
        check_rotation_rule(operation, torch.randn(4))


def test_a_false_rule_does_not_pass_the_certificate(monkeypatch):
    monkeypatch.setitem(rotation_rule.rules, "aten.relu", lambda call, x: call.along(x))
    with pytest.raises(SymmetryError, match="changes the log joint"):
        find_symmetry(linear_with_a_relu, *data(5, 3)(), rotations=True)


# -- never false ------------------------------------------------------------------------------------------------------


def certified(seed):
    net = random_net(seed, ROTATED_ACTIVATIONS)
    return find_symmetry(net, net.input, rotations=True, trials=2, seed=seed)


@pytest.mark.parametrize("seed", range(30))
def test_random_architectures(seed):
    """The certificate draws rotations at random, and raises where one changes the output."""
    certified(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30, 500))
def test_many_random_architectures(seed):
    certified(seed)


def test_the_generator_makes_rotations():
    """Soundness of empty answers would prove nothing."""
    assert sum(bool(certified(seed).rotated) for seed in range(12)) >= 4
