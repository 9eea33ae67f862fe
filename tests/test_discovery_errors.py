"""What cannot be traced is refused with one clear message; what has no rule is named with its line."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import normal, observe
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_align.discovery import certify, find_symmetry, rule
from pyro_align.errors import SymmetryError, TraceError
from pyro_align.symmetry import SymmetrySpec


def looks_at_a_site(x):
    w = normal("w", 3)
    observe(w * x if w[0] > 0 else w + x)


def drops_out(x):
    observe(nn.functional.dropout(normal("w", 3), 0.5) * x)


def numbers_of_a_site(x):
    observe(torch.tensor(normal("w", 3).numpy() ** 2).sum() * x)


def shape_from_a_site(x):
    w = normal("w", 3)
    pyro.sample("y", dist.Normal(w[w > 0].sum(), 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (looks_at_a_site, "latent site 'w'"),
        (drops_out, r"switch dropout off"),
        (numbers_of_a_site, "latent site 'w'"),
        (shape_from_a_site, "latent site 'w'"),
    ],
)
def test_one_clear_message(model, message):
    with pytest.raises(TraceError, match=message) as error:
        find_symmetry(model, torch.tensor(1.0))
    assert "SymmetrySpec" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_structure_that_changes_from_run_to_run():
    runs = []

    def model(x):
        runs.append(1)
        observe(normal("w", 3) * x)
        if len(runs) % 2:
            normal("v", 2)

    with pytest.raises(TraceError, match="SymmetrySpec"):
        find_symmetry(model, torch.tensor(1.0))


def test_a_module_in_training_mode_with_dropout():
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    with pytest.raises(TraceError, match=r"\.eval\(\)"):
        find_symmetry(net, torch.randn(5, 3))
    assert net.training


def test_wrong_arguments():
    with pytest.raises(TraceError, match="could not be run with the arguments"):
        find_symmetry(looks_at_a_site, torch.tensor(1.0), torch.tensor(1.0))


def test_the_data_may_be_looked_at():
    def model(x, lengths):
        w = normal("w", 4)
        longest = int(lengths.max())
        observe(x[:, :longest] * w.square().sum() + (1.0 if bool((lengths > 2).any()) else 0.0))

    found = find_symmetry(model, torch.randn(2, 5), torch.tensor([3, 2]))
    assert [a.size for a in found.atoms.values()] == [4]


def test_an_operation_without_a_rule_is_named_with_its_line():
    def model(x):
        w1, w2 = normal("w1", 4, 3), normal("w2", 2, 4)
        observe(torch.linalg.qr(x @ w1.T).R @ w2.T)

    found = find_symmetry(model, torch.randn(5, 3))
    assert not found.atoms
    assert [o.operation for o in found.opaque] == ["aten.linalg_qr.default"]
    assert "test_discovery_errors.py" in found.opaque[0].where
    assert set(found.opaque[0].sites) == {"w1", "w2"}


def test_sparse_matrices_are_looked_at_like_any_other():
    def model(x):
        hidden = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]]).to_sparse_csr() @ normal("w", 3, 4)
        observe(torch.tanh(hidden) @ normal("v", 4))

    assert {name: atom.size for name, atom in find_symmetry(model, torch.randn(2)).atoms.items()} == {"v": 4, "w/0": 2}


def test_every_fixed_axis_has_its_reason():
    def model(x):
        b = pyro.sample("b", dist.Normal(0.0, torch.arange(1.0, 5.0)).to_event(1))
        hidden = torch.relu(x @ normal("w1", 4, 3).T + b)
        observe(hidden @ normal("w2", 2, 4).T)

    found = find_symmetry(model, torch.randn(5, 3))
    features, units = found.why("w1", 1), found.why("w1", 0)
    assert [r.kind for r in features.reasons] == ["data"]
    assert "axis 1 of data of shape (5, 3)" in str(features)
    assert "test_discovery_errors.py" in features.reasons[0].where
    assert [r.kind for r in units.reasons] == ["constant"]
    assert "log density of site 'b'" in str(units)
    assert all(found.why(site, axis).must for site, terms in found.sites.items() for axis in range(len(terms)))
    assert not found.opaque
    with pytest.raises(SymmetryError, match="unknown site 'w3'"):
        found.why("w3", 0)
    with pytest.raises(SymmetryError, match="has 2 axes"):
        found.why("w1", 2)


def test_free_axes_and_outputs_have_theirs():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    found = find_symmetry(net, torch.randn(5, 3))
    assert not found.why("0.weight", 0).reasons
    assert [r.kind for r in found.why("2.bias", -1).reasons] == ["output"]


def test_a_loop_that_tells_units_apart_is_not_passed_over_in_silence():
    def model(x):
        w, v, hidden = normal("w", 4, 3), normal("v", 4), 0.0
        for i in range(4):
            hidden = torch.tanh(x @ w[i] * v[i] + hidden)
        observe(hidden)

    found = find_symmetry(model, torch.randn(5, 3))
    assert not found.atoms
    why = found.why("w", 0)
    assert not why.must
    assert "test_discovery_errors.py" in str(why)
    assert [(o.operation, set(o.sites)) for o in found.opaque] == [("aten.select.int", {"w", "v"})]
    assert "2 axes fixed, in whole or part, for want of a rule for aten.select.int" in str(found)


def test_a_rule_of_ones_own_in_three_lines():
    @torch.library.custom_op("pyro_align_test::scale_rows", mutates_args=())
    def scale_rows(x: torch.Tensor) -> torch.Tensor:
        return x * x.square().mean(-1, keepdim=True)

    @scale_rows.register_fake
    def _(x):
        return torch.empty_like(x)

    def model(x):
        w1, w2 = normal("w1", 4, 3), normal("w2", 2, 4)
        observe(scale_rows(x @ w1.T) @ w2.T)

    x = torch.randn(5, 3)
    assert not find_symmetry(model, x).atoms

    @rule("pyro_align_test.scale_rows")
    def normalizes(call, x):
        call.witness(x.axes[:-1])
        return x.axes

    assert [a.size for a in find_symmetry(model, x).atoms.values()] == [4]


def test_a_false_symmetry_does_not_get_its_certificate():
    def model(x):
        observe(torch.tanh(x @ normal("w1", 4, 3).T) @ normal("w2", 2, 4).T)

    x = torch.randn(5, 3)
    right = certify(model, SymmetrySpec({"w1": ("h", None), "w2": (None, "h")}), x)
    assert right.certificate.error <= right.certificate.tolerance
    with pytest.raises(SymmetryError, match=r"'h' on w1\[0\]"):
        certify(model, SymmetrySpec({"w1": ("h", None)}), x)


def test_nothing_of_the_callers_changes():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    find_symmetry(net, torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training
    assert not list(pyro.get_param_store().keys())


def packed(x, lengths):
    sequences = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    pyro.sample(
        "y", dist.Normal(nn.RNN(3, 5, batch_first=True)(sequences)[1].sum() * normal("w", 2).sum(), 1.0), obs=x[0, 0, 0]
    )


def test_what_cannot_be_traced_names_the_way_out():
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(net)
    with pytest.raises(TraceError, match=r"torch\.jit.*pass the nn.Module"):
        find_symmetry(scripted, torch.randn(4, 3))
    with pytest.raises(TraceError, match=r"packed sequences.*padded"):
        find_symmetry(packed, torch.randn(2, 4, 3), torch.tensor([4, 2]))
    with pytest.raises(TraceError, match=r"got a guide \(AutoNormal\)"):
        find_symmetry(AutoNormal(looks_at_a_site), torch.tensor(1.0))


def test_nothing_is_certified_without_a_trial():
    def model(x):
        observe(torch.tanh(x @ normal("w1", 4, 3).T) @ normal("w2", 2, 4).T)

    for trials in (0, -1):
        with pytest.raises(ValueError, match="trials must be at least 1"):
            certify(model, SymmetrySpec({"w1": ("h", None)}), torch.randn(5, 3), trials=trials)
    with pytest.raises(TypeError, match="expected a Symmetry or a SymmetrySpec, got function"):
        certify(SymmetrySpec({"w1": ("h", None)}), model, torch.randn(5, 3))


def test_a_symmetry_by_hand_needs_no_graph():
    def model(x):
        a, b = normal("a", 3), normal("b", 3)
        if float(a.sum()) > 1e9:
            raise ValueError("too large")
        observe((a * b).sum() * x)

    x = torch.tensor(1.0)
    with pytest.raises(TraceError, match="latent site 'a'"):
        find_symmetry(model, x)
    certificate = certify(model, SymmetrySpec({"a": ("k",), "b": ("k",)}), x).certificate
    assert certificate.error <= certificate.tolerance < 1e-6
    with pytest.raises(SymmetryError, match=r"atom 'k' on a\[0\]"):
        certify(model, SymmetrySpec({"a": ("k",)}), x)


def test_classes_that_labels_tell_apart_are_no_missed_symmetry():
    def classifier(x, y):
        logits = torch.tanh(x @ normal("w1", 3, 4)) @ normal("w2", 4, 3)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    found = find_symmetry(classifier, torch.randn(6, 3), torch.arange(6) % 3)
    why = found.why("w2", 1)
    assert [reason.operation for reason in why.reasons] == ["aten.gather.default"]
    assert why.must
    assert not found.opaque
    assert "want of a rule" not in str(found)
