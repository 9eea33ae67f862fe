"""What is computed on the host says so, and everything else lives where its inputs live.

With ``meta`` as default device, a tensor made without naming a device has no values: mixing it with the inputs, or
looking at it, fails. So these tests fail where code relies on the default device, on machines without an accelerator,
too.
"""

import pytest
import torch
from test_guides_laws import GUIDES, SYMMETRY

from pyro_align import align, align_many, displacement, permute_guide, read_guide


def check_on_host(guide):
    assert {t.device.type for t in guide.state_dict().values()} == {"cpu"}


@pytest.mark.parametrize("name", GUIDES)
def test_guides_do_not_depend_on_the_default_device(name):
    a, b = GUIDES[name](0), GUIDES[name](1)
    with torch.device("meta"):
        p = SYMMETRY.random(torch.Generator().manual_seed(0))
        q = read_guide(b).permute(p)
        _, log_prob = q.push_with_log_prob(q.noise(3))
        moved, aligned = permute_guide(b, p), align(a, b, SYMMETRY)
        middle = displacement(a, b)(0.5)
    assert bool(torch.isfinite(log_prob).all())
    for guide in (moved, aligned.guide, middle):
        check_on_host(guide)


@pytest.mark.parametrize("matcher", ["coordinate", "frank_wolfe", "sinkhorn", "straight_through", "exhaustive"])
def test_matchers_do_not_depend_on_the_default_device(matcher):
    a, b = GUIDES["AutoNormal"](0), GUIDES["AutoNormal"](1)
    expected = align(a, b, SYMMETRY, matcher=matcher, restarts=2).permutation
    with torch.device("meta"):
        found = align(a, b, SYMMETRY, matcher=matcher, restarts=2).permutation
    assert all(torch.equal(found.indices[k], expected.indices[k]) for k in SYMMETRY.atoms)


def test_many_guides_do_not_depend_on_the_default_device():
    guides = [GUIDES["AutoNormal"](seed) for seed in range(3)]
    with torch.device("meta"):
        many = align_many(guides, SYMMETRY)
    for guide in (*many.guides, many.center.to_guide()):
        check_on_host(guide)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", GUIDES)
def test_guides_stay_on_cuda(name):
    a, b = (GUIDES[name](seed).to("cuda") for seed in range(2))
    aligned = align(a, b, SYMMETRY)
    q = read_guide(aligned.guide)
    values, _ = q.push_with_log_prob(q.noise(3))
    there = [*aligned.guide.state_dict().values(), *displacement(a, b)(0.5).state_dict().values(), *values.values()]
    assert {t.device.type for t in there} == {"cuda"}
