"""Many posteriors: recovery, cycle consistency, barycenters, executors."""

import functools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import (
    AutoDelta,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    init_to_sample,
)

import pyro_align
from pyro_align import Symmetry
from pyro_align.errors import DiagnosticWarning, GuideError
from pyro_align.guides import barycenter, read_guide
from pyro_align.matching import coordinate

SYMMETRY = Symmetry.from_axes({"w": ("h", None), "v": (None, "h")}, shapes={"w": (6, 3), "v": (2, 6)})


def test_an_interrupt_is_not_swallowed(monkeypatch):
    guides = [make_guide(AutoNormal, seed) for seed in range(3)]

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(coordinate, "sweep_until_converged", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pyro_align.align_many(guides, SYMMETRY)


def model():
    pyro.sample("w", dist.Normal(0.0, 1.0).expand([6, 3]).to_event(2))
    pyro.sample("v", dist.Normal(0.0, 1.0).expand([2, 6]).to_event(2))


def make_guide(cls, seed, noise=1.0, base=None):
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(seed)
        guide = cls(model, init_loc_fn=init_to_sample)
        guide()
        with torch.no_grad():
            for name, p in guide.named_parameters():
                start = p if base is None else dict(base.named_parameters())[name]
                p.copy_(start + noise * torch.randn(p.shape))
    return guide


def relabeled_copies(cls, count, noise):
    base = make_guide(cls, 0)
    hidden = [SYMMETRY.random(10 + i) for i in range(count)]
    return [pyro_align.permute_guide(make_guide(cls, i + 1, noise, base), p) for i, p in enumerate(hidden)], hidden


@pytest.mark.parametrize("cls", [AutoNormal, AutoDelta, AutoMultivariateNormal])
@pytest.mark.parametrize("reference", [None, 1])
def test_noisy_copies_are_brought_together(cls, reference):
    guides, hidden = relabeled_copies(cls, 4, 0.01)
    aligned = pyro_align.align_many(guides, SYMMETRY, reference=reference)
    assert aligned.status == "converged"
    for i in range(4):
        for j in range(4):
            assert aligned.relative(i, j) == hidden[i] @ hidden[j].inverse()
    off = ~np.eye(4, dtype=bool)
    assert aligned.distances[off].max() < 0.2 * aligned.distances_before[off].min()
    if reference is not None:
        assert aligned.permutations[reference].is_identity


@pytest.mark.parametrize("cls", [AutoNormal, AutoMultivariateNormal])
def test_rounds_never_move_apart_and_relabelings_are_consistent(cls):
    aligned = pyro_align.align_many([make_guide(cls, seed) for seed in range(3)], SYMMETRY)
    history = np.array(aligned.history)
    assert (np.diff(history) <= 1e-9 * history[:-1]).all()
    assert aligned.relative(0, 1) @ aligned.relative(1, 2) == aligned.relative(0, 2)
    assert type(aligned.guides[0]) is cls
    assert type(aligned.center_guide) is cls
    spread = np.mean([aligned.center.distance(q) ** 2 for q in aligned.posteriors])
    assert np.isclose(spread, history[-1])
    assert "mean pairwise W2" in str(aligned)


@pytest.mark.parametrize("cls", [AutoNormal, AutoDelta, AutoMultivariateNormal])
def test_the_barycenter_minimizes_the_mean_squared_distance(cls):
    posteriors = [read_guide(make_guide(cls, seed, 0.3)) for seed in range(3)]
    center = barycenter(posteriors)
    spread = np.mean([center.distance(q) ** 2 for q in posteriors])
    for other in posteriors:
        for step in (0.01, 0.1):
            beside = center.displace(other, step)
            assert np.mean([beside.distance(q) ** 2 for q in posteriors]) > spread


def test_the_barycenter_of_one_or_of_equals_is_itself():
    q = read_guide(make_guide(AutoNormal, 0))
    assert barycenter([q]).distance(q) < 1e-12
    assert barycenter([q, q]).distance(q) < 1e-12


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_the_result_does_not_depend_on_the_executor(pool):
    guides = [make_guide(AutoNormal, seed) for seed in range(3)]
    here = pyro_align.align_many(guides, SYMMETRY)
    if pool == "threads":
        executor = ThreadPoolExecutor(2)
    else:
        executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    with executor:
        there = pyro_align.align_many(guides, SYMMETRY, executor=executor)
    assert here.permutations == there.permutations
    assert here.history == there.history


class FailsOnce(ThreadPoolExecutor):
    """Loses the second job it is given."""

    jobs = 0

    def submit(self, fn, /, *args, **kwargs):
        self.jobs += 1
        return super().submit(_die if self.jobs == 2 else fn, *args, **kwargs)


def _die(*args, **kwargs):
    raise OSError("the worker is gone")


def test_a_worker_that_dies_loses_nothing():
    guides = [make_guide(AutoNormal, seed) for seed in range(3)]
    with FailsOnce(1) as executor, pytest.warns(DiagnosticWarning, match=r"guide 2 failed.*the worker is gone"):
        there = pyro_align.align_many(guides, SYMMETRY, executor=executor)
    assert there.permutations == pyro_align.align_many(guides, SYMMETRY).permutations


def test_progress_is_shown(capfd):
    guides = [make_guide(AutoNormal, seed) for seed in range(3)]
    pyro_align.align_many(guides, SYMMETRY, reference=0, progress=True)
    assert "2match" in capfd.readouterr().err
    pyro_align.align_many(guides, SYMMETRY, reference=0)
    assert capfd.readouterr().err == ""


def test_a_family_without_a_barycenter_needs_a_reference():
    make = functools.partial(AutoLowRankMultivariateNormal, rank=2)
    guides = [make_guide(make, seed) for seed in range(3)]
    with pytest.raises(GuideError, match=r"barycenter of LowRankNormal.*reference=0"):
        pyro_align.align_many(guides, SYMMETRY)
    aligned = pyro_align.align_many(guides, SYMMETRY, reference=0)
    assert (aligned.distances[0] <= aligned.distances_before[0]).all()
    assert {type(guide) for guide in aligned.guides} == {AutoLowRankMultivariateNormal}


def test_bad_input_is_refused():
    guides = [make_guide(AutoNormal, seed) for seed in range(2)]
    with pytest.raises(GuideError, match="at least two"):
        pyro_align.align_many(guides[:1], SYMMETRY)
    with pytest.raises(GuideError, match="reference must be"):
        pyro_align.align_many(guides, SYMMETRY, reference=2)
    with pytest.raises(GuideError, match=r"guide 2 does not fit guide 0.*two families"):
        pyro_align.align_many([*guides, make_guide(AutoDelta, 3)], SYMMETRY)
