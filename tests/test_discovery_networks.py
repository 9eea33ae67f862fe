"""Published networks, as the usual libraries build them: exactly the group that each has, and never a false one."""

import pytest
from problems import same_group
from published import NETWORKS

from pyro_align.discovery import find_symmetry

pytestmark = pytest.mark.filterwarnings("ignore")  # what these packages warn about is theirs


def case(network):
    return pytest.param(network, id=network.name, marks=[pytest.mark.slow] if network.slow else [])


@pytest.mark.parametrize("network", [case(n) for n in NETWORKS.values()])
def test_exactly_the_known_group(network):
    module, inputs = network.build()
    symmetry = find_symmetry(module, *inputs)
    assert not same_group(symmetry, network.expected(symmetry.shapes))
    assert symmetry.certificate.error <= symmetry.certificate.tolerance
    assert not symmetry.opaque
