"""Published networks, as the usual libraries build them: exactly the group that each has, and never a false one."""

import copy
import math

import pyro.distributions as dist
import pytest
import torch
from problems import bayesian, observe, same_group
from published import NETWORKS
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from torch.func import functional_call

from pyro_align import Symmetry
from pyro_align.axes import Atom
from pyro_align.discovery import find_symmetry
from pyro_align.errors import TraceError

pytestmark = pytest.mark.filterwarnings("ignore")  # what these packages warn about is theirs


def case(network):
    return pytest.param(network, id=network.name, marks=[pytest.mark.slow] if network.slow else [])


@pytest.mark.parametrize("network", [case(n) for n in NETWORKS.values()])
def test_exactly_the_known_group(network):
    module, inputs = network.build()
    symmetry = find_symmetry(module, *inputs)
    assert not same_group(symmetry, network.expected(symmetry.shapes))
    assert symmetry.certificate.error <= symmetry.certificate.tolerance
    assert {o.operation for o in symmetry.opaque} == set(network.opaque)
    check_by_running(module, inputs, symmetry)


def check_by_running(module, inputs, symmetry):
    """The module itself, not its graph, gives the same output at relabeled values."""
    module, inputs = copy.deepcopy(module).double(), in_double(inputs)
    named = module.state_dict()
    values = {k: generic(k, named[k]) for k in symmetry.sites}
    with torch.no_grad():
        before, after, other = (
            functional_call(module, v, inputs)
            for v in (values, symmetry.random(1).apply(values), {k: v.flip(0) for k, v in values.items()})
        )
    size = float(before.abs().max())
    torch.testing.assert_close(after, before, rtol=0, atol=2e-5 * size)  # some compute in float32 in places
    assert float((other - before).abs().max()) > 1e-2 * size  # which other relabelings do not


def generic(name, value):
    """Values at which no two units are alike."""
    noise = torch.randn(value.shape, dtype=torch.float64)
    return value + (noise.abs() if name.endswith("running_var") else 0.3 * noise)


def in_double(inputs):
    return tuple(x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs)


@pytest.mark.parametrize("network", [case(n) for n in NETWORKS.values() if n.missed])
def test_what_is_missed_holds(network):
    """The list of what is missed is no excuse: each entry is a symmetry, and the group found does not have it."""
    module, inputs = network.build()
    module, inputs = module.double(), in_double(inputs)
    values = {k: generic(k, v) for k, v in module.state_dict().items() if v.is_floating_point()}
    moved = dict(values)
    for (site, axis), index in network.missed.items():
        moved[site] = moved[site].index_select(axis, torch.tensor(index))
    with torch.no_grad():
        before, after = (functional_call(module, v, inputs) for v in (values, moved))
    torch.testing.assert_close(after, before, rtol=0, atol=2e-5 * float(before.abs().max()))
    expected = network.expected({k: tuple(v.shape) for k, v in values.items()})
    terms = {expected.sites[site][axis] for site, axis in network.missed}
    tied = {(site, axis) for site, axes in expected.sites.items() for axis, term in enumerate(axes) if term in terms}
    fixed = all(isinstance(t, Atom) and t.fixed for t in terms)
    assert fixed or tied - set(network.missed)  # the group does not move these, or moves others along


def test_experts_that_are_looped_over_are_refused():
    """Which experts run depends on the values of latents: one error, with its advice."""
    network = NETWORKS["mixtral"]
    module, inputs = network.build()
    module.model.config._experts_implementation = "eager"
    with pytest.raises(TraceError, match="SymmetrySpec"):
        find_symmetry(module, *inputs)


# -- as Pyro models ----------------------------------------------------------------------------------------------------


def with_priors(net):
    """Every parameter of every module becomes a sample site, in place."""
    to_pyro_module_(net)
    for module in net.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            setattr(module, name, PyroSample(dist.Normal(0.0, 0.5).expand(value.shape).to_event(value.dim())))
    return net


@pytest.mark.parametrize(
    "name", ["llama", "mobilenet_v3", *(pytest.param(n, marks=pytest.mark.slow) for n in ("resnet", "swin"))]
)
def test_the_same_group_with_priors_on_every_parameter(name):
    network = NETWORKS[name]
    net, inputs = network.build()
    sizes = {k: tuple(v.shape) for k, v in net.named_parameters()}
    statistics = {k: tuple(v.shape) for k, v in net.named_buffers() if k.endswith(("running_mean", "running_var"))}
    whole = network.expected(sizes | statistics)
    expected = Symmetry({f"net.{k}" if k in statistics else k: axes for k, axes in whole.sites.items()})
    net = with_priors(net)

    def model(*inputs):
        observe(net(*inputs))

    symmetry = find_symmetry(model, *inputs, parameters=True)
    assert not same_group(symmetry, expected)
    assert symmetry.scope == "joint"
    assert symmetry.certificate.error <= symmetry.certificate.tolerance


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_the_same_group_when_lifted(name):
    """Sampled values in place of the parameters, tied ones once."""
    network = NETWORKS[name]
    net, inputs = network.build()
    symmetry = find_symmetry(bayesian(net), *inputs)
    assert not same_group(symmetry, network.expected({k: tuple(v.shape) for k, v in net.named_parameters()}))


def test_a_prior_that_tells_heads_apart():
    """The same network, with a scale of its own for each group of heads of the first layer."""
    network = NETWORKS["llama"]
    net, inputs = network.build()
    shapes = {k: tuple(v.shape) for k, v in net.named_parameters()}
    net = with_priors(net)
    values = net.model.model.layers[0].self_attn.v_proj
    scale = torch.tensor([0.5, 0.7]).repeat_interleave(4)[:, None].expand(8, 16)
    values.weight = PyroSample(dist.Normal(0.0, scale).to_event(2))

    def model(*inputs):
        observe(net(*inputs))

    symmetry, whole = find_symmetry(model, *inputs), network.expected(shapes)
    assert symmetry.log_order == pytest.approx(whole.log_order - math.log(2))  # the two groups keep their places
