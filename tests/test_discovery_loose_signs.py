"""Signs that no unit carries: of whole sites, and of single indices on axes that keep their order."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import normal, observe
from pyro.infer.autoguide import AutoNormal

from pyro_align import align, align_draws, find_symmetry, load, permute_guide, permute_model, save
from pyro_align.errors import SymmetryError

N, P = 7, 5


def one_factor():
    observe(normal("z", N)[:, None] * normal("w", P))


def item_response():
    """Discrimination and ability change sign together, and so does the difficulty."""
    logits = normal("a", P) * (normal("t", N)[:, None] - normal("b", P))
    data = torch.linspace(-1, 1, N * P).reshape(N, P).mul(7).sin() > 0.1
    pyro.sample("y", dist.Bernoulli(logits=logits).to_event(2), obs=data.to(logits.dtype))


def item_response_of_equal_persons():
    """Persons with equal answers are interchangeable; the sign is that of all of them."""
    logits = normal("a", P) * (normal("t", N)[:, None] - normal("b", P))
    data = (torch.arange(N)[:, None] // 3 + torch.arange(P)) % 2
    pyro.sample("y", dist.Bernoulli(logits=logits).to_event(2), obs=data.to(logits.dtype))


def hierarchical_item_response():
    """The mean of the difficulties is a single number, and changes sign with them."""
    mean = normal("mean")
    difficulty = pyro.sample("b", dist.Normal(mean, 1.0).expand([P]).to_event(1))
    logits = normal("a", P) * (normal("t", N)[:, None] - difficulty)
    data = torch.linspace(-1, 1, N * P).reshape(N, P).mul(7).sin() > 0.1
    pyro.sample("y", dist.Bernoulli(logits=logits).to_event(2), obs=data.to(logits.dtype))


def numbers_alone():
    """A product of two numbers, of which a third, positive one scales the noise."""
    mean = normal("u") * normal("v")
    scale = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mean, scale).expand([N]).to_event(1), obs=torch.linspace(-1, 1, N) + 0.2)


def ordered_factors():
    observe(normal("z", N, 3) @ normal("w", P, 3, scale=torch.tensor([1.0, 0.5, 0.25])).T)


def two_of_three_factors():
    """The second factor's scores are around one: it has no sign."""
    z = pyro.sample("z", dist.Normal(torch.tensor([0.0, 1.0, 0.0]), 1.0).expand([N, 3]).to_event(2))
    observe(z @ normal("w", P, 3, scale=torch.tensor([1.0, 0.5, 0.25])).T)


def regression():
    observe(torch.linspace(0, 1, N)[:, None] * normal("w", P))


def network():
    observe(torch.tanh(torch.linspace(0, 1, N)[:, None] @ normal("w1", 1, 4)) @ normal("w2", 4, P))


def free_factors():
    observe(normal("z", N, 3) @ normal("w", P, 3).T)


def scores_of_positive_numbers():
    z = pyro.sample("z", dist.LogNormal(0.0, 1.0).expand([N]).to_event(1))
    observe(z[:, None] * normal("w", P))


def signs(model, **options):
    symmetry = find_symmetry(model, signs=True, **options)
    assert symmetry.certificate.error <= symmetry.certificate.tolerance
    loose = {name for name, atom in symmetry.atoms.items() if atom.size == 1 and atom.odd}
    return sorted(" ".join(sorted(f"{s}[{i}]" for s, i in symmetry.carriers[name])) for name in loose)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (one_factor, ["w[0] z[0]"]),
        (item_response, ["a[0] b[0] t[0]"]),
        (item_response_of_equal_persons, ["a[0] b[0] t[0]"]),
        (hierarchical_item_response, ["a[0] b[0] mean*[0] t[0]"]),
        (numbers_alone, ["u*[0] v*[0]"]),
        (ordered_factors, ["w[1] z[1]"] * 3),
        (two_of_three_factors, ["w[1] z[1]"] * 2),
        (regression, []),
        (scores_of_positive_numbers, []),
    ],
)
def test_exactly_the_known_signs(model, expected):
    assert signs(model) == expected


@pytest.mark.parametrize("options", [{}, {"rotations": True}])
def test_what_units_make_is_not_counted_twice(options):
    assert signs(free_factors, **options) == []
    assert signs(network, **options) == []


def test_each_sign_is_an_atom_of_one_unit():
    symmetry = find_symmetry(ordered_factors, signs=True)
    assert symmetry.log_order == pytest.approx(3 * torch.log(torch.tensor(2.0)).item())
    flip = symmetry.permutation(signs={next(iter(symmetry.atoms)): [-1]})
    values = {"z": torch.ones(N, 3), "w": torch.ones(P, 3)}
    moved = flip.apply(values)
    assert moved["z"].sum(0).tolist() == [-N, N, N]
    assert moved["w"].sum(0).tolist() == [-P, P, P]


def test_a_large_model_is_not_looked_at(monkeypatch):
    from pyro_align.discovery.signs import loose

    monkeypatch.setattr(loose, "ENTRIES", 10)
    assert signs(one_factor) == []


def test_beyond_a_number_of_indices_sites_change_sign_as_a_whole(monkeypatch):
    from pyro_align.discovery.signs import loose

    monkeypatch.setattr(loose, "UNKNOWNS", 4)
    assert signs(one_factor) == ["w[0] z[0]"]
    assert signs(ordered_factors) == ["w[1] z[1]"]  # all three columns at once


def test_a_single_number_changes_sign_with_the_others(tmp_path):
    """Through values, guides, draws, and files; what cannot follow says so."""
    symmetry = find_symmetry(hierarchical_item_response, signs=True, count=True)
    (name,) = symmetry.signed
    assert dict(symmetry.stacks) == {"mean*": ("mean",)}
    assert "mean* stands for mean" in str(symmetry)
    save(tmp_path / "found.zarr", symmetry)
    flip = load(tmp_path / "found.zarr").permutation(signs={name: [-1]})
    values = {"mean": torch.tensor(0.5), "a": torch.ones(P), "b": torch.ones(P), "t": torch.ones(N)}
    moved = flip.apply(values)
    assert moved["mean"].tolist() == -0.5
    assert (flip @ flip).apply(values)["mean"].tolist() == 0.5

    torch.manual_seed(0)
    pyro.clear_param_store()
    guide = AutoNormal(hierarchical_item_response)
    guide()
    for site in values:
        getattr(guide.locs, site).data.normal_()
    turned = permute_guide(guide, flip)
    assert torch.equal(turned.locs.mean, -guide.locs.mean)
    assert torch.equal(turned.scales.mean, guide.scales.mean)
    far = align(guide, turned, symmetry)
    assert far.permutation == flip
    assert far.distance == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(SymmetryError, match=r"mean changes sign with other sites: .* without signs=True"):
        permute_model(hierarchical_item_response, flip)

    draws = {k: v + 0.1 * torch.randn(1, 40, *v.shape) for k, v in values.items()}
    sign = torch.where(torch.arange(40) % 3 == 0, -1.0, 1.0)
    mixed = {k: v * sign.reshape(1, 40, *[1] * (v.ndim - 2)) for k, v in draws.items()}
    aligned = align_draws(mixed, symmetry).draws["mean"]
    assert torch.equal(aligned.sign(), aligned.sign()[:, :1].expand_as(aligned))
