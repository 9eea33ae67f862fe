"""Whole jobs: two short fits of a model that people fit with Pyro, and everything the library does with them.

A job is a model, a guide for each seed, and the arguments. The stages are those of the quick start; the first one that
fails is reported with the first line of its error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
from pyro.infer import SVI, Trace_ELBO

import pyro_align
from pyro_align.guides import read_guide, wrap_guide

STAGES = ("fit", "find", "align", "displacement", "barrier", "summary", "to_arviz", "at", "loo", "plot")
JOBS: dict[str, Callable[[], Job]] = {}


@dataclass(frozen=True)
class Job:
    """What a user has at hand: a model with its arguments, and how one guide of it is made and fitted.

    Attributes:
        model: The model, as it is given to SVI.
        guide: Makes a new guide.
        pair: Makes a model and its guide, in place of the two, where both have networks that are learned.
        args: Arguments of model and guide.
        elbo: Makes the ELBO of the fit.
        steps: SVI steps.
        rate: Learning rate of Adam.
        parameters: Whether the model has learned parameters that belong to what is aligned.
        wrapped: Whether the guide is a function of the arguments, to be wrapped with them.
        fitted: What SVI is given in place of the guide, such as one with enumeration.
        labels: Discrete site -> the atom whose units its values number.
    """

    model: Any = None
    guide: Callable[[], Any] | None = None
    args: tuple = ()
    elbo: Callable[[], Any] = Trace_ELBO
    steps: int = 25
    rate: float = 0.02
    parameters: bool = False
    wrapped: bool = False
    fitted: Callable[[Any], Any] = lambda guide: guide
    labels: Mapping[str, str] | None = None
    pair: Callable[[], tuple[Any, Any]] | None = None


def job(source: str):
    """Registers the decorated function, which returns a :class:`Job`, under its name."""

    def register(make):
        make.source = source
        JOBS[make.__name__] = make
        return make

    return register


@dataclass
class Outcome:
    """How far a job went."""

    job: str
    stage: str
    error: str
    seconds: float
    atoms: str = ""

    @property
    def complete(self) -> bool:
        return not self.error


def fit(job: Job, seed: int):
    """One short SVI fit in a parameter store of its own: the model and its guide."""
    pyro.set_rng_seed(seed)
    with pyro.get_param_store().scope():
        model, guide = job.pair() if job.pair else (job.model, job.guide())
        svi = SVI(model, job.fitted(guide), pyro.optim.Adam({"lr": job.rate}), job.elbo())
        for _ in range(job.steps):
            svi.step(*job.args)
        guide = wrap_guide(guide, *job.args) if job.wrapped else guide
        return model, read_guide(guide, labels=job.labels) if job.labels else guide


def run(name: str) -> Outcome:
    """Runs a job to its first error."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    start, stage, atoms = time.perf_counter(), "make", ""
    try:
        for stage, value in _stages(JOBS[name]()):
            if stage == "find":
                atoms = " ".join(f"{k}:{a.size}" for k, a in value.atoms.items())
        error = ""
    except Exception as caught:
        failed = STAGES[0] if stage == "make" else STAGES[STAGES.index(stage) + 1]
        lines = str(caught).strip().splitlines() or [""]
        stage, error = failed, f"{type(caught).__name__}: {lines[0]}"
    return Outcome(name, stage, error, time.perf_counter() - start, atoms)


def _stages(job: Job):
    """Yields each stage with its result, as a user goes through the quick start."""
    (model, a), (model_b, b) = fit(job, 0), fit(job, 1)
    yield "fit", (a, b)
    options = {"parameters": True} if job.parameters else {}
    symmetry = pyro_align.find_symmetry(model, *job.args, **options)
    yield "find", symmetry
    learned = {"parameters": (model, model_b)} if job.parameters else {}
    alignment = pyro_align.align(a, b, symmetry, **learned)
    yield "align", alignment
    path = alignment.path if job.parameters else pyro_align.displacement(a, alignment.guide)
    yield "displacement", path
    barrier = pyro_align.evaluate_barrier(model, path, *job.args, taus=3, num_samples=25)
    yield "barrier", barrier
    frame = barrier.summary()
    assert len(frame)
    assert not frame.isna().all(axis=None)
    yield "summary", frame
    yield "to_arviz", barrier.to_arviz()
    yield "at", barrier.at(0.5)
    yield "loo", barrier.loo()
    import matplotlib

    matplotlib.use("Agg")
    yield "plot", barrier.plot()


def load() -> None:
    """Imports the files of jobs, which fills ``JOBS``."""
    from benchmarks.wild.jobs import deep, hmm, latent, regression  # noqa: F401


__all__ = ["JOBS", "Job", "Outcome", "job", "load", "run"]
