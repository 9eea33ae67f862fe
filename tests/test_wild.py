"""A quick part of the list of other people's models (benchmarks/wild), and the grader that judges discovery on it."""

import sys
from pathlib import Path

import pytest
import torch

from pyro_align import Symmetry

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.wild import grade as grader
from benchmarks.wild import jobs
from benchmarks.wild.__main__ import load

NETWORKS, PROGRAMS = load("networks"), load("programs")
QUICK = {
    "networks": (
        "mlp_einsum",
        "maxout",
        "geglu_interleaved",
        "tensor_train",
        "attention_view_transpose",
        "attention_packed_head_by_head",
        "attention_grouped_queries_expand",
        "grouped_convolution",
        "lstm_slices",
        "messages_index_add",
        "experts_topk_mask",
        "compl_ex",
    ),
    "programs": (
        "stick_breaking",
        "forward_algorithm",
        "factors_in_a_plate",
        "parafac",
        "seeded_topics",
        "mixed_membership_blocks",
        "units_in_a_plate",
        "horseshoe_of_nodes",
        "spectral_peaks",
    ),
}


@pytest.fixture(autouse=True)
def float32():
    """The default that people have; what the grader evaluates itself it evaluates in float64."""
    torch.set_default_dtype(torch.float32)  # conftest restores it


@pytest.mark.parametrize("name", QUICK["networks"])
def test_network_is_exact(name):
    one = grader.grade(NETWORKS[name])
    assert one.grade == "exact", one


@pytest.mark.parametrize("name", QUICK["programs"])
def test_program_is_exact(name):
    one = grader.grade(PROGRAMS[name])
    assert one.grade == "exact", one


@pytest.mark.slow
@pytest.mark.parametrize("entry", [*NETWORKS.values(), *PROGRAMS.values()], ids=lambda entry: entry.name)
def test_nothing_false_on_the_whole_list(entry):
    """Every group by hand holds, and what is found is neither false, nor more than it, nor a raw error."""
    assert grader.grade(entry).grade in ("exact", "missed", "refused")


@pytest.mark.filterwarnings("ignore::pyro_align.errors.DiagnosticWarning")  # few draws, to be quick
def test_a_job_runs_to_its_end():
    jobs.load()
    outcome = jobs.run("bayesian_cnn")
    assert outcome.complete, outcome
    assert outcome.atoms == "conv:4"


def answered(monkeypatch, axes):
    """The grade that a symmetry gets as an answer on a perceptron of four units, three inputs and two outputs."""
    shapes = {"w1": (4, 3), "b1": (4,), "w2": (2, 4)}
    answer = Symmetry.from_axes(axes, shapes=shapes)
    monkeypatch.setattr(grader.pyro_align, "find_symmetry", lambda *args, **options: answer)
    return grader.grade(NETWORKS["mlp_einsum"])


def test_the_grader_knows_a_false_answer(monkeypatch):
    one = answered(monkeypatch, {"w1": ("h", None), "b1": ("h",), "w2": (None, None)})
    assert one.grade == "false"
    assert "h 4" in one.reason


def test_the_grader_knows_a_missed_group(monkeypatch):
    one = answered(monkeypatch, {"w1": (None, None), "b1": (None,), "w2": (None, None)})
    assert (one.grade, one.found) == ("missed", 0.0)
    assert one.reason.startswith("w1[0]")


def test_the_grader_knows_a_raw_error(monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("expected scalar type Float")

    monkeypatch.setattr(grader.pyro_align, "find_symmetry", broken)
    assert grader.grade(NETWORKS["mlp_einsum"]).grade == "error"
