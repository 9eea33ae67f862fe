"""Long evaluations: refinement, executors, checkpoints; Pyro's ELBO objects as losses."""

import concurrent.futures
import contextlib
import functools
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import weakref
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from barrier_problems import classifier, classifier_data, linear, linear_data, make_guide, make_path
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, TraceTMC_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal, init_to_value

from pyro_align.barrier import evaluate_barrier
from pyro_align.barrier.checkpoint import Checkpoint, _piece_bytes, _read, digest_of, fingerprint
from pyro_align.errors import BarrierError
from pyro_align.paths.geodesic import displacement


@pytest.fixture
def network():
    x, y = classifier_data()
    return make_path(classifier, x, y), x, y


def same(a, b):
    assert np.array_equal(a.taus, b.taus)
    assert a.curves.keys() == b.curves.keys()
    for key in a.curves:
        assert np.array_equal(a[key].draws, b[key].draws), key
        assert np.array_equal(a[key].effective, b[key].effective, equal_nan=True), key
    assert np.array_equal(a.log_q, b.log_q)
    assert np.array_equal(a.log_prior, b.log_prior)
    assert a.num_data == b.num_data
    for name in a.likelihood:
        assert np.array_equal(a.likelihood[name], b.likelihood[name])


# -- refinement --------------------------------------------------------------------------------------------------------


def well(y):
    """Two modes, w = 2 and w = -2, with a barrier between them."""
    w = pyro.sample("w", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(w**2, 1.0), obs=y)


def well_guide(loc):
    with pyro.get_param_store().scope():
        guide = AutoNormal(well, init_loc_fn=init_to_value(values={"w": torch.tensor(loc)}), init_scale=0.05)
        guide(torch.zeros(2))
    return guide


def test_taus_gather_around_the_barrier():
    y = 4 + torch.randn(10)
    path = displacement(well_guide(2.1), well_guide(-1.7))
    coarse, fine, dense = (
        evaluate_barrier(well, path, y, losses=["expected_nll"], **options)["expected_nll"]
        for options in ({"taus": 4}, {"taus": 4, "tolerance": 0.01}, {"taus": 201})
    )
    peak, truth = fine.barrier, dense.barrier
    assert truth.height > 5
    assert abs(peak.tau - truth.tau) <= 0.011
    assert coarse.barrier.height < peak.height
    assert abs(peak.height - truth.height) < 1e-3 * truth.height
    best = int(np.argmax(fine.excess))
    assert np.diff(fine.taus)[best - 1 : best + 1].max() <= 0.01
    assert len(fine.taus) < 30
    assert set(coarse.taus) < set(fine.taus)


# -- executors ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_give_the_same_figures(network):
    path, x, y = network
    here = evaluate_barrier(classifier, path, x, y, taus=4, num_samples=4)
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=_spawn()) as pool:
        there = evaluate_barrier(classifier, path, x, y, taus=4, num_samples=4, executor=pool)
        same(here, there)
        with pytest.raises(BarrierError, match="cannot be sent to the executor's processes"):
            evaluate_barrier(lambda x, y: classifier(x, y), path, x, y, taus=3, executor=pool)


def _spawn():
    import multiprocessing

    return multiprocessing.get_context("spawn")


class Backwards(concurrent.futures.Executor):
    """Runs tasks here, the last first, after a round trip through pickle, as far as another process is concerned."""

    def __init__(self):
        self.tasks = []

    def submit(self, work, *args):
        future = Later(self, lambda: pickle.loads(pickle.dumps(work(*pickle.loads(pickle.dumps(args))))))
        self.tasks.append(future)
        return future

    def run(self):
        while self.tasks:
            task = self.tasks.pop()
            task.set_result(task.work())


class Later(concurrent.futures.Future):
    def __init__(self, executor, work):
        super().__init__()
        self.executor, self.work = executor, work


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_give_the_same_figures(network, monkeypatch, shards):
    path, x, y = network
    batches = [(x[lo : lo + 10], y[lo : lo + 10]) for lo in range(0, len(x), 10)]
    options = {"evaluation": {"train": batches, "test": (x[:7], y[:7])}, "taus": 4, "num_samples": 4}
    executor, ran = Backwards(), []

    def in_order_of_running(futures):
        ran.append(len(futures))
        executor.run()
        return reversed(futures)

    monkeypatch.setattr(concurrent.futures, "as_completed", in_order_of_running)
    here = evaluate_barrier(classifier, path, **options)
    same(here, evaluate_barrier(classifier, path, **options, executor=executor, shards=shards))
    assert ran == [4 * shards]


def test_shards_that_make_no_sense_are_refused(network):
    path, x, y = network
    with pytest.raises(BarrierError, match="give executor= too"):
        evaluate_barrier(classifier, path, x, y, shards=2)
    with pytest.raises(BarrierError, match="shards: expected a number of tasks >= 1, got 0"):
        evaluate_barrier(classifier, path, x, y, executor=Backwards(), shards=0)


def test_threads_take_turns(network):
    path, x, y = network
    here = evaluate_barrier(classifier, path, x, y, taus=5, num_samples=4)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        there = evaluate_barrier(classifier, path, x, y, taus=5, num_samples=4, executor=pool)
    assert all(np.array_equal(here[loss].draws, there[loss].draws) for loss in here.losses)
    with pytest.raises(BarrierError, match="expected a concurrent"):
        evaluate_barrier(classifier, path, x, y, executor=3)


# -- checkpoints -------------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def test_a_stopped_evaluation_goes_on(network, tmp_path, monkeypatch):
    path, x, y = network
    whole = evaluate_barrier(classifier, path, x, y, taus=6)
    calls, limit = [], [3]
    import pyro_align.barrier.run as run

    work = run.evaluate_tau

    def counted(problem, tau):
        if len(calls) == limit[0]:
            raise Stop
        calls.append(tau)
        return work(problem, tau)

    monkeypatch.setattr(run, "evaluate_tau", counted)
    with pytest.raises(Stop):
        evaluate_barrier(classifier, path, x, y, taus=6, checkpoint=tmp_path / "run")
    limit[0] = 99
    resumed = evaluate_barrier(classifier, path, x, y, taus=6, checkpoint=tmp_path / "run")
    assert sorted(calls) == list(whole.taus), "no tau is evaluated twice"
    same(whole, resumed)
    finer = evaluate_barrier(classifier, path, x, y, taus=11, checkpoint=tmp_path / "run")
    assert len(calls) == 11
    assert list(finer.taus) == list(np.linspace(0, 1, 11))


def test_another_evaluations_checkpoint_is_refused(network, tmp_path):
    path, x, y = network
    evaluate_barrier(classifier, path, x, y, taus=3, num_samples=4, checkpoint=tmp_path)

    def other(x, y=None):
        with pyro.poutine.scale(scale=2.0):
            classifier(x, y)

    cases = {
        "data": (classifier, path, x + 1, y, {}),
        "model": (other, path, x, y, {}),
        "path": (classifier, make_path(classifier, x, y, scales=(0.1, 0.2)), x, y, {}),
        "seed": (classifier, path, x, y, {"seed": 1}),
        "num_samples": (classifier, path, x, y, {"num_samples": 5}),
        "temperature": (classifier, path, x, y, {"temperature": 0.5}),
        "losses": (classifier, path, x, y, {"losses": ["kl"]}),
    }
    for what, (model, way, a, b, options) in cases.items():
        with pytest.raises(BarrierError, match=f"belongs to another evaluation, with other .*{what}"):
            evaluate_barrier(model, way, a, b, **{"taus": 3, "num_samples": 4, "checkpoint": tmp_path, **options})


def test_a_folder_of_other_things_is_refused(network, tmp_path):
    path, x, y = network
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BarrierError, match="not empty and not a checkpoint"):
        evaluate_barrier(classifier, path, x, y, checkpoint=tmp_path)
    with pytest.raises(BarrierError, match="cannot be written"):
        evaluate_barrier(classifier, path, x, y, checkpoint=tmp_path / "notes.txt")


def test_a_damaged_piece_is_named(network, tmp_path):
    path, x, y = network
    evaluate_barrier(classifier, path, x, y, taus=3, num_samples=4, checkpoint=tmp_path)
    piece = next(tmp_path.glob("tau_*"))
    piece.write_bytes(piece.read_bytes()[:50])
    with pytest.raises(BarrierError, match=r"tau_.*' is damaged"):
        evaluate_barrier(classifier, path, x, y, taus=3, num_samples=4, checkpoint=tmp_path)


@contextlib.contextmanager
def files_no_larger_than(size):
    """As on a disk with that much room: the kernel refuses to write on."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_found_before_any_work(network, tmp_path, monkeypatch):
    path, x, y = network
    import pyro_align.barrier.run as run

    monkeypatch.setattr(run, "evaluate_tau", lambda *_: pytest.fail("evaluated before the disk was tried"))
    with files_no_larger_than(20_000), pytest.raises(BarrierError, match=r"cannot be written: .*too large"):
        evaluate_barrier(classifier, path, x, y, taus=25, checkpoint=tmp_path / "run")


def test_room_is_asked_for_as_much_as_pieces_take(network, tmp_path):
    path, x, y = network
    sets = {"train": (x, y), "a longer name of a data set": (x, y)}
    for draws in (2, 300):
        folder = tmp_path / str(draws)
        barrier = evaluate_barrier(
            classifier, path, evaluation=sets, taus=3, num_samples=draws, losses=None, checkpoint=folder
        )
        largest = max(piece.stat().st_size for piece in folder.glob("tau_*"))
        assert largest <= _piece_bytes(barrier.problem) <= 2.5 * largest, draws


def test_a_disk_that_fills_up_keeps_what_was_done(network, tmp_path, monkeypatch):
    path, x, y = network
    whole = evaluate_barrier(classifier, path, x, y, taus=6)
    import pyro_align.barrier.run as run

    work, done = run.evaluate_tau, []

    def filling(problem, tau):
        done.append(tau)
        if len(done) == 4:
            full.enter_context(files_no_larger_than(1000))
        return work(problem, tau)

    monkeypatch.setattr(run, "evaluate_tau", filling)
    with (
        contextlib.ExitStack() as full,
        pytest.raises(BarrierError, match=r"tau=0.6 cannot be written.*the 3 taus before it are kept: make room"),
    ):
        evaluate_barrier(classifier, path, x, y, taus=6, checkpoint=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4, "nothing half written"
    same(whole, evaluate_barrier(classifier, path, x, y, taus=6, checkpoint=tmp_path))
    assert len(done) == 7


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_for_reading_only(network, tmp_path):
    path, x, y = network
    tmp_path.chmod(0o555)
    with pytest.raises(BarrierError, match="cannot be written"):
        evaluate_barrier(classifier, path, x, y, checkpoint=tmp_path)
    tmp_path.chmod(0o755)


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import torch
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
from barrier_problems import classifier, classifier_data, make_path
from pyro_align.barrier import evaluate_barrier
x, y = classifier_data(n=2000)
evaluate_barrier(classifier, make_path(classifier, x, y), x, y, taus=30, checkpoint=sys.argv[1])
"""


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    here = Path(__file__).parent
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(paths=[str(here), str(here.parent)]))
    x, y = classifier_data(n=2000)
    path = make_path(classifier, x, y)
    whole, rng, killed = evaluate_barrier(classifier, path, x, y, taus=30), random.Random(0), 0
    for trial in range(20):
        folder = tmp_path / f"run{trial}"
        process = subprocess.Popen([sys.executable, str(script), str(folder)], env={**os.environ})
        deadline = time.monotonic() + 120
        while not (folder / "problem.json").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.8))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        same(whole, evaluate_barrier(classifier, path, x, y, taus=30, checkpoint=folder))
        assert json.loads((folder / "problem.json").read_text())["seed"] == "0"
    assert killed >= 12, "the runs ended before they could be killed"


# -- Pyro's ELBO objects -----------------------------------------------------------------------------------------------


def test_pyro_losses_on_the_path(network):
    path, x, y = network
    theirs = [Trace_ELBO(), TraceMeanField_ELBO(), RenyiELBO(alpha=0.5, num_particles=4)]
    barrier = evaluate_barrier(classifier, path, x, y, taus=3, num_samples=24, losses=["negative_elbo", *theirs])
    assert barrier.losses == ("negative_elbo", "Trace_ELBO", "TraceMeanField_ELBO", "RenyiELBO")
    ours = barrier["negative_elbo"]
    for name in ("Trace_ELBO", "TraceMeanField_ELBO"):
        curve = barrier[name]
        assert np.all(np.abs(curve.value - ours.value) < 4.5 * np.hypot(curve.se, ours.se))
        assert curve.excess_se[1] < 1.5 * curve.se[1], "the same seeds at every tau"
    assert np.all(barrier["RenyiELBO"].value < ours.value), "a tighter bound"


def mixture(y):
    locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
        pyro.sample("y", dist.Normal(locs[z], 1.0), obs=y)


def test_enumerated_models_by_pyros_loss():
    y = torch.cat([torch.randn(15) - 3, torch.randn(10) + 3])
    blocked = pyro.poutine.block(mixture, hide=["z"])
    path = displacement(*(make_guide(blocked, y, seed=s, guide_type=AutoNormal) for s in (1, 2)))
    model = config_enumerate(mixture)
    losses = {"enum": TraceEnum_ELBO(max_plate_nesting=1), "tmc": TraceTMC_ELBO(max_plate_nesting=1)}
    barrier = evaluate_barrier(model, path, y, taus=3, num_samples=40, losses=losses)
    for name, loss in losses.items():
        curve = barrier[name]
        theirs = [loss.loss(model, path(0.5), y) / len(y) for _ in range(40)]
        assert abs(curve.value[1] - np.mean(theirs)) < 4.5 * np.hypot(curve.se[1], np.std(theirs) / 40**0.5), name
    ours = evaluate_barrier(model, path, y, taus=3, num_samples=40)["negative_elbo"]
    assert abs(ours.value[1] - barrier["enum"].value[1]) < 4.5 * np.hypot(ours.se[1], barrier["enum"].se[1])


def test_pyro_losses_take_data_in_one_piece():
    x, y = linear_data()
    path = make_path(linear, x, y)
    with pytest.raises(BarrierError, match="takes data in one piece; got several batches"):
        evaluate_barrier(linear, path, evaluation={"a": [(x[:6], y[:6]), (x[6:], y[6:])]}, losses=[Trace_ELBO()])


# -- what a checkpoint rests on ----------------------------------------------------------------------------------------


def power(prediction, observed):
    return (prediction.amax(-1) - observed).abs() ** EXPONENT


EXPONENT = 2.0


def scaled(factor):
    def loss(prediction, observed):
        return factor * (prediction.argmax(-1) - observed).abs()

    return loss


def test_losses_that_differ_but_for_their_names_are_told_apart(network, tmp_path, monkeypatch):
    path, x, y = network
    how = {"taus": 3, "num_samples": 4, "checkpoint": tmp_path}
    evaluate_barrier(classifier, path, x, y, losses={"mine": scaled(1.0), "power": power}, **how)
    evaluate_barrier(classifier, path, x, y, losses={"mine": scaled(1.0), "power": power}, **how)
    for other in (scaled(2.0), lambda p, o: (p.argmax(-1) - o).abs(), "expected_nll"):
        with pytest.raises(BarrierError, match="another evaluation, with other losses"):
            evaluate_barrier(classifier, path, x, y, losses={"mine": other, "power": power}, **how)
    monkeypatch.setitem(globals(), "EXPONENT", 3.0)
    with pytest.raises(BarrierError, match="another evaluation, with other losses"):
        evaluate_barrier(classifier, path, x, y, losses={"mine": scaled(1.0), "power": power}, **how)


def test_digests_are_of_contents():
    assert digest_of(scaled(1.0)) == digest_of(scaled(1.0)) != digest_of(scaled(2.0))
    assert digest_of({"a": [torch.ones(2), 1]}) == digest_of({"a": [torch.ones(2), 1]})
    assert len({digest_of(v) for v in (1, 1.0, True, "1", [1], (1,), {1}, torch.ones(1), np.ones(1), None)}) == 10
    assert digest_of(torch.ones(2)) != digest_of(torch.ones(1, 2))
    assert digest_of({"b", "a"}) == digest_of({"a", "b"})
    assert digest_of(functools.partial(scaled, 1.0)) != digest_of(functools.partial(scaled, 2.0))
    layer = torch.nn.Linear(2, 2)
    before = digest_of(layer)
    with torch.no_grad():
        layer.bias += 1.0
    assert digest_of(layer) != before
    knot: list = []
    knot.append(knot)
    assert digest_of(knot) == digest_of(knot)


OTHER_PROCESS = """
import sys
sys.path.insert(0, sys.argv[2])
import torch
from barrier_problems import linear, linear_data, make_path
from pyro_align.barrier import evaluate_barrier
import pyro_align.barrier.run as run
torch.set_default_dtype(torch.float64)
x, y = linear_data()
if sys.argv[3] == "again":
    run.evaluate_tau = lambda *_: sys.exit("evaluated again")
def model(x, y, link):
    linear(link(x), y)
shift = 0.5
loss = lambda prediction, observed: (prediction - observed).abs() + shift
options = {"taus": 3, "num_samples": 4, "losses": {"mine": loss}, "checkpoint": sys.argv[1]}
evaluate_barrier(model, make_path(linear, x, y), x, y, lambda x: x + shift, **options)
"""


def test_another_process_with_functions_among_the_arguments_goes_on(tmp_path, monkeypatch):
    options = [str(tmp_path / "run"), str(Path(__file__).parent)]
    monkeypatch.setattr(sys, "argv", ["", *options, "first"])
    exec(OTHER_PROCESS, {"__name__": "__main__"})
    command = [sys.executable, "-c", OTHER_PROCESS, *options, "again"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_damage_of_a_checkpoint_is_told(tmp_path):
    x, y = linear_data()
    path = make_path(linear, x, y)
    how = {"taus": 3, "num_samples": 2, "losses": ["kl"], "checkpoint": tmp_path}
    evaluate_barrier(linear, path, x, y, **how)
    checkpoint = Checkpoint(tmp_path)
    for file in (tmp_path / "problem.safetensors", next(tmp_path.glob("tau_*"))):
        content = file.read_bytes()
        read = checkpoint.read if file.name.startswith("tau_") else (lambda: _read(tmp_path / "problem.safetensors"))
        for at in range(len(content)):
            damaged = bytearray(content)
            damaged[at] ^= 1 << at % 8
            file.write_bytes(bytes(damaged))
            with pytest.raises(BarrierError, match="damaged"):
                read()
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(BarrierError, match="damaged"):
            evaluate_barrier(linear, path, x, y, **how)
        file.write_bytes(content)
    evaluate_barrier(linear, path, x, y, **how)


def test_data_are_read_a_batch_at_a_time(tmp_path):
    x, y = linear_data(n=40)
    alive, most = weakref.WeakSet(), []

    class Batches:
        def __iter__(self):
            for part in range(10):
                batch = x[4 * part : 4 * part + 4].clone()
                alive.add(batch)
                most.append(len(alive))
                yield batch, y[4 * part : 4 * part + 4]

    path = make_path(linear, x, y)
    problem = evaluate_barrier(linear, path, evaluation={"a": Batches()}, taus=3, num_samples=2).problem
    most.clear()
    fingerprint(problem)
    assert max(most) <= 3


# -- executors that fail -----------------------------------------------------------------------------------------------


class Now:
    """An executor with futures of its own, as loky's and joblib's are, that runs at once."""

    def __init__(self, fail=None):
        self.fail, self.seen = fail, []

    def submit(self, work, tau, share):
        self.seen.append(tau)
        return _Future(work, tau, share, self.fail)


class _Future:
    def __init__(self, work, tau, share, fail):
        self.work, self.tau, self.share, self.fail = work, tau, share, fail

    def cancel(self):
        return False

    def result(self):
        if self.fail is not None and self.tau == 0.5:
            raise self.fail
        return self.work(self.tau, self.share)


def test_futures_of_another_kind(network):
    path, x, y = network
    same(
        evaluate_barrier(classifier, path, x, y, taus=3, num_samples=4),
        evaluate_barrier(classifier, path, x, y, taus=3, num_samples=4, executor=Now(), shards=2),
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BrokenProcessPool("terminated abruptly"), r"tau=0.5 failed: a worker of the executor died \(terminated"),
        (pickle.PicklingError("no"), r"tau=0.5 failed: .*cannot be sent"),
        (ZeroDivisionError("odd"), r"tau=0.5 failed: ZeroDivisionError: odd"),
    ],
)
def test_a_task_that_fails_is_named_and_finished_ones_are_kept(network, tmp_path, error, message):
    path, x, y = network
    how = {"taus": 5, "num_samples": 4, "checkpoint": tmp_path}
    with pytest.raises(BarrierError, match=message) as caught:
        evaluate_barrier(classifier, path, x, y, executor=Now(error), **how)
    assert caught.value.__cause__ is error
    assert len(list(tmp_path.glob("tau_*"))) == 4
    again = Now()
    evaluate_barrier(classifier, path, x, y, executor=again, **how)
    assert again.seen == [0.5]


def test_an_interrupt_goes_through(network, tmp_path):
    path, x, y = network
    with pytest.raises(KeyboardInterrupt):
        evaluate_barrier(classifier, path, x, y, taus=5, executor=Now(KeyboardInterrupt()), checkpoint=tmp_path)
    assert len(list(tmp_path.glob("tau_*"))) == 2
