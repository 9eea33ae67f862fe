"""A recorded graph is the function: at other values, whatever the function does on the way."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Interpreter

from pyro_align.discovery.recording import Recording
from pyro_align.discovery.tracing import _decompositions

OUTSIDE = nn.Parameter(torch.randn(4, dtype=torch.float64))


def several_outputs(x):
    value, index = x.max(1)
    first, *rest = x.chunk(3, 0)
    return value * index, first + sum(rest).sum(), x.topk(2)


def laid_out_in_place(x):
    y = x * 2
    before = y.sum(0)
    y.t_()
    y.unsqueeze_(0)
    return before, y @ x, y.squeeze_(0) + 1


def written_in_place(x):
    y = torch.zeros(4).add_(1.0)
    y *= x.sum(0)
    return y, torch.empty(3, 4).copy_(x)


def constants(x):
    number = torch.tensor(3)
    return x.expand(int(number), 3, 4) * OUTSIDE + torch.arange(4), torch.ones(2), 7


def transformed(x):
    slopes = torch.func.grad(lambda v: (v**3).sum())(x)
    return torch.func.vmap(lambda row, w: row @ w + row.roll(1) @ w, in_dims=(0, None))(slopes, x[0])


def differentiated(x):
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        return torch.autograd.grad((y.sin() @ y.T).sum(), y)[0]


def decomposed(x):
    h = nn.functional.layer_norm(x, (4,)) + nn.functional.group_norm(x[..., None], 2)[..., 0]
    return h.softmax(-1), nn.functional.linear(h, x), torch.einsum("ij,kj->ik", h, x)


def of_symbols(x):
    return torch.full((2, 2), x[0, 0]) + torch.full_like(x[:2, :2], 1.0)


def in_half(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return (x @ x.T).float()


FUNCTIONS = [
    several_outputs,
    laid_out_in_place,
    written_in_place,
    constants,
    transformed,
    differentiated,
    decomposed,
    of_symbols,
    in_half,
]


class Checked(Interpreter):
    """Runs a graph, and holds what its nodes note of their values against the values."""

    def run_node(self, n):
        value, noted = super().run_node(n), n.meta.get("val")
        if isinstance(value, torch.Tensor) and n.op != "output":
            assert isinstance(noted, FakeTensor)
            assert (noted.dtype, noted.shape, noted.stride()) == (value.dtype, value.shape, value.stride())
        return value


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_the_graph_is_the_function(function):
    with torch.no_grad():
        graph = Recording(_decompositions()).run(function, torch.randn(3, 4))
        x = torch.randn(3, 4)
        torch.testing.assert_close(Checked(graph).run(x), function(x), rtol=1e-12, atol=1e-12)


def test_nodes_say_where_they_come_from_and_inputs_are_told_apart():
    x = torch.randn(3)
    lines = iter(range(100))
    graph = Recording({}, where=lambda: f"line {next(lines)}").run(lambda a, b: a["x"] - 2 * b[0], {"x": x}, [x]).graph
    assert [n.stack_trace for n in graph.nodes if n.op == "call_function"] == ["line 0", "line 1"]
    first, second = (n for n in graph.nodes if n.op == "placeholder")
    assert {n.name: n.all_input_nodes for n in graph.nodes if n.op == "call_function"} == {
        "mul": [second],
        "sub": [first, next(n for n in graph.nodes if n.name == "mul")],
    }


def test_a_number_that_entries_decide_may_not_decide_what_is_done():
    def decides(x):
        n = torch.nonzero(x).shape[0]
        return x if n > 2 else -x

    with pytest.raises(Exception, match="data-dependent"):
        Recording({}).run(decides, torch.randn(3))
