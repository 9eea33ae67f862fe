"""Signs that no unit carries: of whole sites, and of single indices on axes that keep their order."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import normal, observe

from pyro_align import find_symmetry

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
