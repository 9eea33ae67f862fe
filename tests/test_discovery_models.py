"""What a model says beside its log joint: supports, constraints, what it observes, what training may change."""

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import pytest
import torch
from problems import normal
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_sample
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.distributions import constraints

from pyro_align import SymmetrySpec, align, align_many, certify, displacement, evaluate_barrier, find_symmetry
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
        certify(model, SymmetrySpec({"z": axes}, scope="likelihood"), y)


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


def slices(x, lengths, mask):
    w = normal("w", 3).square().sum()
    for i in pyro.plate("sequences", len(x)):
        pyro.sample(f"y{i}", dist.Normal(w, 1.0).expand([int(lengths[i])]).to_event(1), obs=x[i, : lengths[i]])


def narrows(x, lengths, mask):
    steps = torch.arange(lengths.max())
    w = normal("w", 3).square().sum()
    pyro.sample("y", dist.Normal(w, 1.0).expand([len(steps)]).to_event(1), obs=x[0].narrow(0, 0, lengths.max()))


def selects(x, lengths, mask):
    w = normal("w", 3)[:, None, None] * normal("v", 3, *x.shape)
    mean = w.sum(0)[mask]
    pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=x.masked_select(mask))


def through_numpy(x, lengths, mask):
    pyro.sample("y", dist.Normal(normal("w", 3).square().sum() * float(x.numpy().sum()), 1.0), obs=x[0, 0])


def sequential(x, lengths, mask):
    w = normal("w", 3)
    z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3), infer={"enumerate": "sequential"})
    pyro.sample("y", dist.Normal(w[z], 1.0), obs=x[0, 0])


def counts(x, lengths, mask):
    w = pyro.sample("w", dist.Poisson(torch.full((3,), 3.0)).to_event(1))
    pyro.sample("y", dist.Normal(w.square().sum(), 1.0), obs=x[0, 0])


def takes_gradients(x, lengths, mask):
    inputs = x.detach().requires_grad_()
    energy = (torch.tanh(inputs @ normal("v", 4, 3)) @ normal("w", 3)).sum()
    (force,) = torch.autograd.grad(energy, inputs, create_graph=True)
    pyro.sample("y", dist.Normal(force, 1.0).to_event(2), obs=x)


def scale_mixture(x, lengths, mask):
    halves = dist.Categorical(torch.ones(3, 2))
    w = pyro.sample(
        "w", dist.MixtureSameFamily(halves, dist.Normal(0.0, torch.tensor([1.0, 0.1]).expand(3, 2))).to_event(1)
    )
    pyro.sample("y", dist.Normal(w.square().sum(), 1.0), obs=x[0, 0])


def flat(x, lengths, mask):
    w = pyro.sample("w", dist.ImproperUniform(constraints.real, (), event_shape=(3,)))
    pyro.sample("y", dist.Normal(w.square().sum(), 1.0), obs=x[0, 0])


def complex_values(x, lengths, mask):
    z = torch.complex(normal("w", 3), normal("v", 3))
    pyro.sample("y", dist.Normal((z * z).abs().sum(), 1.0), obs=x[0, 0])


def two_precisions(x, lengths, mask):
    w = pyro.sample("w", dist.Normal(torch.zeros(4, 3, dtype=torch.float32), 1.0).to_event(2))
    pyro.sample("y", dist.Normal(torch.tanh(x.float() @ w).double() @ normal("v", 3), 1.0).to_event(1), obs=x[:, 0])


@pytest.mark.parametrize(
    "model",
    [slices, narrows, selects, through_numpy, sequential, counts, takes_gradients, scale_mixture, flat]
    + [complex_values, two_precisions],
)
def test_models_that_pyro_fits_are_traced(model):
    x, mask = torch.randn(2, 4), torch.tensor([[True, False, True, True], [True, True, False, True]])
    found = find_symmetry(model, x, torch.tensor([4, 3]), mask)
    assert [atom.size for atom in found.atoms.values()] == [3]
    assert any(site == "w" for site, _ in found.carriers[next(iter(found.atoms))])


def test_batch_normalization_in_training_mode():
    net, x, y = Normalized().train(), torch.randn(8, 4), torch.randn(8)
    before = {k: v.clone() for k, v in net.bn.state_dict().items()}
    found = find_symmetry(net, x, y)
    assert [atom.size for atom in found.atoms.values()] == [6]
    assert all(torch.equal(v, before[k]) for k, v in net.bn.state_dict().items())


def test_compiled_modules_are_traced_as_they_were_written():
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    compiled = torch.compile(net, backend="eager")
    assert find_symmetry(compiled, torch.randn(4, 3)).log_order == find_symmetry(net, torch.randn(4, 3)).log_order


def test_rounding_of_constants_distinguishes_nothing():
    def model(y, states=16):
        px = pyro.sample("px", dist.Dirichlet(0.9 * torch.eye(states) + 0.1).to_event(1))
        py = pyro.sample("py", dist.Beta(0.1, 0.9).expand([states]).to_event(1))
        x = 0
        for t in pyro.markov(range(2)):
            x = pyro.sample(f"x{t}", dist.Categorical(px[x]), infer={"enumerate": "parallel"})
            pyro.sample(f"y{t}", dist.Bernoulli(py[x]), obs=y[t])

    assert [a.size for a in find_symmetry(model, torch.tensor([0.0, 1.0])).atoms.values()] == [15]


def test_small_differences_between_constants_are_seen():
    def model(y):
        scales = torch.tensor([1.0, 1.0 + 1e-6, 1.0])
        pyro.sample("y", dist.Normal((normal("w", 3) * scales).sum(), 1.0), obs=y)

    assert not any(atom.size == 3 for atom in find_symmetry(model, torch.tensor(1.0)).atoms.values())


def test_an_infinity_among_constants_is_equal_to_no_finite_number():
    """Impossible first states of a hidden Markov model have the log of zero."""

    def model(y):
        first = torch.cat([torch.zeros(1), torch.full((3,), -torch.inf)])
        pyro.sample("y", dist.Normal(torch.logsumexp(normal("w", 4) + first, 0), 1.0), obs=y)

    found = find_symmetry(model, torch.tensor(1.0))
    assert [atom.size for atom in found.atoms.values()] == [3]


# -- densities and tables that look at values --------------------------------------------------------------------------


def stable(y):
    z = pyro.sample("z", dist.Stable(torch.full((3,), 1.5), torch.zeros(3)).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y)


def angles(y):
    fn = dist.SineBivariateVonMises(torch.zeros(3), torch.zeros(3), 5.0, 6.0, correlation=torch.full((3,), 0.5))
    z = pyro.sample("z", fn.to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y)


@pytest.mark.parametrize("model", [stable, angles])
def test_priors_whose_densities_look_at_values(model):
    found = find_symmetry(model, torch.randn(4))
    assert {name: atom.size for name, atom in found.atoms.items()} == {"z": 3}


def test_what_code_keeps_from_a_run_can_be_trained_with():
    kept = {}

    class Table(dist.Normal):
        def log_prob(self, value):
            if "table" not in kept:
                kept["table"] = torch.arange(3.0)
            return super().log_prob(value) - kept["table"].sum() * 0

    def model(y):
        scale = pyro.param("scale", torch.ones(3))
        w = pyro.sample("w", Table(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal((w * scale).sum(), 1.0), obs=y)

    def guide():
        with pyro.get_param_store().scope():
            made = AutoNormal(model, init_loc_fn=init_to_sample)
            made(y)
        return made

    y = torch.randn(4)
    find_symmetry(model, y)
    assert type(kept["table"]) is torch.Tensor
    kept.clear()
    ends = [guide(), guide()]
    kept.clear()
    with pytest.warns(DiagnosticWarning, match="initial values"):
        evaluate_barrier(model, displacement(*ends), y, taus=3, num_samples=4)
    svi = SVI(model, guide(), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert torch.isfinite(torch.tensor(svi.step(y)))
