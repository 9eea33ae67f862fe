"""laplace-torch, against the real package; without it, these tests are skipped."""

import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_align.alignment.many import align_many
from pyro_align.alignment.pair import align
from pyro_align.axes import Atom, Fixed, Odd, Product
from pyro_align.discovery import find_symmetry
from pyro_align.errors import GuideError
from pyro_align.guides import MeanFieldNormal, permute_guide, read_guide
from pyro_align.guides.families.gaussian import DenseNormal
from pyro_align.paths.geodesic import displacement
from pyro_align.symmetry.group import Symmetry

pytestmark = pytest.mark.filterwarnings("ignore")  # what these packages warn about is theirs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        import laplace
    except (ImportError, RuntimeError) as error:  # a torchvision of another build raises RuntimeError
        pytest.skip(f"laplace-torch does not import here: {error}", allow_module_level=True)

X = torch.linspace(-2, 2, 96, dtype=torch.float64).reshape(32, 3).sin()
Y = (X.sum(1) > 0).long() + (X[:, 0] > 0.5).long()
every_structure = pytest.mark.parametrize("structure", ["diag", "full", "kron"])


def dense(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))


def fitted(structure, seed=0, make=dense, x=X, **options):
    net = make(seed)
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), Y).backward()
        optimizer.step()
    net.zero_grad()
    options = {"subset_of_weights": "all", "prior_precision": 2.0, **options}
    made = laplace.Laplace(net, "classification", hessian_structure=structure, **options)
    made.fit(DataLoader(TensorDataset(x, Y), batch_size=16))
    return made


def covariance(made):
    kind = type(made).__name__
    if kind == "DiagLaplace":
        return made.posterior_variance.diag()
    return made.posterior_covariance if kind == "FullLaplace" else made.posterior_precision.to_matrix(exponent=-1)


SYMMETRY = Symmetry.from_axes(
    {"0.weight": (Odd("h"), None), "0.bias": (Odd("h"),), "2.weight": (None, Odd("h"))},
    shapes={"0.weight": (5, 3), "0.bias": (5,), "2.weight": (3, 5)},
)
P = SYMMETRY.permutation({"h": [3, 0, 4, 1, 2]}, {"h": [1, -1, 1, 1, -1]})


def flat_action(p, q):
    """Index and sign of the concatenated parameters."""
    places, at = [], 1
    for name, spec in q.sites.items():
        place = torch.arange(at, at + spec.numel).reshape(spec.shape)
        at += spec.numel
        places.append((p.apply_site(name, place) if name in p.symmetry.sites else place).flatten())
    moved = torch.cat(places)
    return moved.abs() - 1, moved.sign().double()


@every_structure
def test_relabeled_approximations(structure):
    """Same type; mean and covariance move with the units; same function, predictions and evidence."""
    made = fitted(structure)
    q = read_guide(made)
    assert isinstance(q, MeanFieldNormal if structure == "diag" else DenseNormal)
    index, sign = flat_action(P, q)
    before = {k: v.clone() for k, v in made.model.state_dict().items()}
    old_mean, old = made.mean.clone(), covariance(made).clone()
    moved = permute_guide(made, P)
    assert type(moved) is type(made)
    torch.testing.assert_close(moved.mean, sign * old_mean[index], rtol=0, atol=0)
    torch.testing.assert_close(covariance(moved), sign[:, None] * sign * old[index][:, index], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(moved.model(X), made.model(X))
    torch.testing.assert_close(moved(X), made(X))
    torch.testing.assert_close(moved.log_marginal_likelihood(), made.log_marginal_likelihood())
    drawn = moved.sample(20000, generator=torch.Generator().manual_seed(0))
    error = ((drawn.T.cov() - covariance(moved)).norm() / covariance(moved).norm()).item()
    assert error < 0.1
    moved.optimize_prior_precision()  # usable: a fit's own quantities are all there
    assert torch.equal(made.mean, old_mean)
    assert torch.equal(covariance(made), old)
    assert all(torch.equal(v, before[k]) for k, v in made.model.state_dict().items())


@every_structure
def test_snapshot_is_the_approximation(structure):
    made = fitted(structure, prior_precision=torch.tensor(3.0, requires_grad=True))
    q = read_guide(made)
    noise = q.noise(4, generator=1)
    values, log_prob = q.push_with_log_prob(noise)
    flat = torch.cat([values[k].flatten(1) for k in q.sites], dim=-1)
    expected = torch.distributions.MultivariateNormal(made.mean, covariance(made).detach()).log_prob(flat)
    torch.testing.assert_close(log_prob, expected)
    moved, moved_log_prob = q.permute(P).push_with_log_prob(q.permute_noise(P, noise))
    torch.testing.assert_close(moved_log_prob, log_prob)
    torch.testing.assert_close(moved["0.weight"], P.apply_site("0.weight", values["0.weight"], batch_dims=1))
    same = q.to_guide()
    assert torch.equal(covariance(same), covariance(made))
    assert torch.equal(same.mean, made.mean)
    with torch.no_grad():
        made.mean += 1
    assert not torch.equal(q.to_guide().mean, made.mean)
    assert q.permute(P).permute(P.inverse()).distance(q) < 1e-7
    pickle.loads(pickle.dumps(q))


@every_structure
def test_paths(structure):
    """Exact ends; in between the geodesic, of the type of the endpoints or, where that is impossible, a FullLaplace."""
    a, b = fitted(structure, 0), fitted(structure, 1)
    path = displacement(a, b)
    for tau, end in ((0.0, a), (1.0, b)):
        point = path(tau)
        assert type(point) is type(end)
        assert torch.equal(point.mean, end.mean)
        torch.testing.assert_close(covariance(point), covariance(end), rtol=1e-14, atol=0)
    middle = path(0.5)
    assert type(middle).__name__ == {"diag": "DiagLaplace", "full": "FullLaplace", "kron": "FullLaplace"}[structure]
    torch.testing.assert_close(middle.mean, (a.mean + b.mean) / 2)
    root = covariance(path.start.to_guide())
    cross = _sqrt(_sqrt(root) @ covariance(b) @ _sqrt(root))
    bures = (root + covariance(b) - 2 * cross).trace() if structure != "diag" else None
    if bures is not None:
        assert path.length**2 == pytest.approx(float((a.mean - b.mean).square().sum() + bures), rel=1e-8)
        half = read_guide(middle)
        start = path.start if structure == "full" else DenseNormal(half.sites, path.start.loc, path.start.root, None)
        assert start.distance(half) == pytest.approx(path.length / 2, rel=1e-7)
    assert middle(X).shape == (32, 3)


def _sqrt(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ (values.clamp_min(0).sqrt().unsqueeze(-1) * vectors.T)


@every_structure
def test_alignment_undoes_a_planted_relabeling(structure):
    made = fitted(structure)
    symmetry = find_symmetry(made.model, X)
    assert [atom.size for atom in symmetry.atoms.values()] == [5]
    p = symmetry.random(3)
    assert not p.is_identity
    alignment = align(made, permute_guide(made, p), symmetry)
    assert alignment.permutation == p.inverse()
    assert alignment.distance < 1e-6 < alignment.distance_before
    many = align_many([made, permute_guide(made, p)], symmetry, reference=0)
    assert many.distances.max() < 1e-6


def conv(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, (1, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize("structure", ["diag", "kron"])
def test_convolutions(structure):
    made = fitted(structure, make=conv, x=X.reshape(32, 1, 1, 3))
    symmetry = Symmetry.from_axes(
        {"0.weight": ("c", None, None, None), "0.bias": ("c",), "3.weight": (None, Product("c", Fixed(2)))},
        shapes={"0.weight": (4, 1, 1, 2), "0.bias": (4,), "3.weight": (3, 8)},
    )
    moved = permute_guide(made, symmetry.permutation({"c": [2, 0, 3, 1]}))
    assert not torch.equal(moved.mean, made.mean)
    torch.testing.assert_close(moved(X.reshape(32, 1, 1, 3)), made(X.reshape(32, 1, 1, 3)))


def test_a_nested_relabeling_without_kronecker_form_is_refused():
    made = fitted("kron")
    units = Atom("row", 3), Atom("unit", 5, within=("row",))
    symmetry = Symmetry.from_axes({"2.weight": units}, shapes={"2.weight": (3, 5)})
    with pytest.raises(GuideError, match=r"site '2.weight'.*no Kronecker form.*'full'"):
        permute_guide(made, symmetry.random(0))
    permute_guide(fitted("full"), symmetry.random(0))


def test_what_is_not_over_all_weights_is_refused():
    with pytest.raises(GuideError, match="subset_of_weights='all'"):
        read_guide(fitted("full", subset_of_weights="last_layer"))
    net = dense(0)
    with pytest.raises(GuideError, match="not fitted"):
        read_guide(laplace.Laplace(net, "classification", subset_of_weights="all", hessian_structure="diag"))
    with pytest.raises(GuideError, match="barycenter of KronNormal"):
        align_many([fitted("kron", 0), fitted("kron", 1)], SYMMETRY)


def test_float32_is_kept():
    for structure in ("diag", "full", "kron"):
        torch.set_default_dtype(torch.float32)  # conftest restores it
        made = fitted(structure, x=X.float())
        moved = permute_guide(made, P)
        assert moved.mean.dtype == torch.float32
        assert covariance(moved).dtype == torch.float32
        assert displacement(made, moved)(0.5).mean.dtype == torch.float32
        torch.testing.assert_close(moved(X.float()), made(X.float()), rtol=1e-3, atol=1e-4)
