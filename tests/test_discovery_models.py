"""What a model says beside its log joint: supports, constraints, what it observes, what training may change."""

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import pytest
import torch
from problems import normal
from pyro.infer.autoguide import AutoNormal, init_to_sample
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.distributions import constraints

from pyro_align import SymmetrySpec, align, align_many, certify, find_symmetry
from pyro_align.errors import DiagnosticWarning, SymmetryError, TraceError
from pyro_align.io import load, save


class Scaled(PyroModule):
    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.ones(4), constraint=constraints.positive)
        self.w = PyroSample(dist.Normal(0.0, 1.0).expand([4]).to_event(1))

    def forward(self, y):
        pyro.sample("y", dist.Normal(torch.tanh(self.w * self.scale).sum(), 1.0), obs=y)


def read_by_name(y):
    pyro.param("scale", torch.ones(4), constraint=constraints.positive)
    w = normal("w", 4)
    pyro.sample("y", dist.Normal(torch.tanh(w * pyro.param("scale")).sum(), 1.0), obs=y)


@pytest.mark.parametrize("model", [Scaled(), read_by_name], ids=["PyroParam", "read again by name"])
def test_a_positive_parameter_has_no_sign(model):
    found = find_symmetry(model, torch.tensor(1.0), parameters=True, signs=True)
    (atom,) = found.atoms
    assert set(found.carriers[atom]) == {("w", 0), ("scale", 0)}
    assert not found.signed


def test_a_parameter_on_the_simplex():
    class Chain(PyroModule):
        def __init__(self):
            super().__init__()
            self.trans = PyroParam(torch.ones(3, 3) / 3, constraint=constraints.simplex)
            self.mu = PyroSample(dist.Normal(0.0, 5.0).expand([3]).to_event(1))

        def forward(self, y):
            hmm = dist.DiscreteHMM(torch.zeros(3), self.trans.log(), dist.Normal(self.mu, 1.0), duration=len(y))
            pyro.sample("y", hmm, obs=y)

    found = find_symmetry(Chain(), torch.randn(6), parameters=True)
    (atom,) = found.atoms
    assert set(found.carriers[atom]) == {("trans", 0), ("trans", 1), ("mu", 0)}


def test_a_triangular_parameter_keeps_its_order():
    model = gp.models.VariationalSparseGP(
        torch.randn(6, 2),
        torch.randn(6),
        gp.kernels.RBF(input_dim=2),
        Xu=torch.randn(3, 2),
        likelihood=gp.likelihoods.Gaussian(),
    ).model
    found = find_symmetry(model, parameters=True)
    assert not any(site == "u_scale_tril" for places in found.carriers.values() for site, _ in places)


@pytest.mark.parametrize(
    ("prior", "event"),
    [
        (dist.TransformedDistribution(dist.Normal(torch.zeros(4), 1.0), dist.transforms.OrderedTransform()), 1),
        (dist.LKJCholesky(4), 2),
        (dist.Uniform(torch.arange(4.0), torch.arange(4.0) + 1), 0),
    ],
    ids=["ordered", "correlation factor", "bounds of its own for each"],
)
def test_without_priors_the_support_is_kept(prior, event):
    def model(y):
        with pyro.plate("units", 4) if not event else pyro.poutine.mask(mask=True):
            z = pyro.sample("z", prior)
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y)

    y = torch.tensor(1.0)
    assert not find_symmetry(model, y, scope="likelihood").atoms
    axes = (None,) * (event - 1) + ("k",) if event else ("k",)
    with pytest.raises(SymmetryError, match=r"site 'z'.*support"):
        certify(SymmetrySpec({"z": axes}, scope="likelihood"), model, y)


def forgetful(x, y=None):
    w1, w2 = normal("w1", 3, 8), normal("w2", 8, 6)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=torch.relu(x @ w1) @ w2), obs=y)


def test_a_model_that_observes_nothing():
    x = torch.randn(5, 3)
    with pytest.warns(DiagnosticWarning, match=r"observes nothing.*was y= left out"):
        find_symmetry(forgetful, x)
    with pytest.raises(TraceError, match="no likelihood"):
        find_symmetry(forgetful, x, scope="likelihood")
    assert [a.size for a in find_symmetry(forgetful, x, torch.zeros(5)).atoms.values()] == [8]


class Normalized(PyroModule):
    def __init__(self):
        super().__init__()
        self.l1 = PyroModule[nn.Linear](4, 6, bias=False)
        self.l1.weight = PyroSample(dist.Normal(0.0, 1.0).expand([6, 4]).to_event(2))
        self.bn = nn.BatchNorm1d(6)
        self.l2 = PyroModule[nn.Linear](6, 1)
        self.l2.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 6]).to_event(2))

    def forward(self, x, y):
        mean = self.l2(torch.relu(self.bn(self.l1(x)))).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 0.3), obs=y)


def test_a_symmetry_that_rests_on_untrained_statistics(tmp_path):
    net, x, y = Normalized().eval(), torch.randn(8, 4), torch.randn(8)
    found = find_symmetry(net, x, y)
    assert {r.tensor for r in found.rests} == {"bn.running_mean", "bn.running_var", "bn.weight", "bn.bias"}
    assert "only while" in str(found)
    assert "bn.running_mean[0]" in str(found)
    save(tmp_path / "s.zip", found)
    assert load(tmp_path / "s.zip").rests == found.rests

    def guide():
        with pyro.get_param_store().scope():
            made = AutoNormal(net, init_loc_fn=init_to_sample)
            made(x, y)
        return made

    pair = guide(), guide()
    align(*pair, found)
    net.bn.running_mean.copy_(torch.randn(6))
    with pytest.raises(SymmetryError, match=r"'bn.running_mean' was constant along axis 0"):
        align(*pair, found)
    with pytest.raises(SymmetryError, match="find_symmetry again"):
        align_many(pair, found)
    again = find_symmetry(net, x, y)
    assert not again.atoms
    assert not again.rests


def test_a_symmetry_that_rests_on_an_initial_parameter():
    def model(y):
        loc = pyro.param("loc", torch.zeros(3))
        z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z.square().sum(), 1.0), obs=y)

    found = find_symmetry(model, torch.tensor(1.0))
    assert [(r.tensor, r.axis, r.runs, r.atoms) for r in found.rests] == [("loc", 0, (3,), ("z",))]
    assert not find_symmetry(model, torch.tensor(1.0), parameters=True).rests


def test_uninitialized_memory_is_not_looked_at():
    net = nn.Sequential(
        nn.Conv1d(2, 5, 3),
        nn.ReLU(),
        nn.Conv1d(5, 4, 3, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.Conv1d(4, 1, 1),
    )
    found = find_symmetry(net.eval(), torch.randn(1, 2, 6))
    assert sorted(a.size for a in found.atoms.values()) == [4, 5]


def test_atoms_have_the_whole_name_of_their_site():
    def model(y):
        lengthscale = pyro.sample("lengthscale", dist.LogNormal(0.0, 1.0).expand([3]).to_event(1))
        pyro.sample("y", dist.Normal(lengthscale.square().sum(), 1.0), obs=y)

    assert list(find_symmetry(model, torch.tensor(1.0)).atoms) == ["lengthscale"]
