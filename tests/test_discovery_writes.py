"""Operations that write to a tensor are rewritten where nothing else sees it, and else left to PyTorch."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_align import find_symmetry
from pyro_align.discovery.recording import Recording
from pyro_align.discovery.writes import is_mutable, without_writes


def gates(x):
    first, second = (x * 2).chunk(2, -1)
    first.sigmoid_()
    return first * second.tanh_() + first.add_(1)


def turned(x):
    y = x + 1
    y.transpose_(0, 1)
    return y @ x


def seen_by_a_view(x):
    y = x * 2
    view = y.view(-1)
    y.sigmoid_()
    return view.sum() + y.sum()


def written_by_a_view(x):
    y = x * 2
    y[0].zero_()
    return y * x


def a_piece_and_the_whole(x):
    y = x * 2
    y.chunk(2, -1)[0].tanh_()
    return y + 1


def of_another_type(x):
    return (x.float() + 1).add_(x)


def traced(function, x):
    return make_fx(function, tracing_mode="fake")(x)


@pytest.mark.parametrize("function", [gates, turned])
def test_what_nothing_else_sees_is_rewritten(function):
    x = torch.randn(4, 4)
    module = traced(function, x)
    assert any(map(is_mutable, module.graph.nodes))
    assert without_writes(module, ())
    assert not any(map(is_mutable, module.graph.nodes))
    module.graph.lint()
    module.recompile()
    torch.testing.assert_close(module(x), function(x))


@pytest.mark.parametrize("function", [seen_by_a_view, written_by_a_view, a_piece_and_the_whole, of_another_type])
def test_what_something_else_sees_is_left(function):
    x = torch.randn(4, 4)
    module = traced(function, x)
    assert not without_writes(module, ())
    module.recompile()
    torch.testing.assert_close(module(x), function(x))


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_recurrent_layer_is_traced_once(kind, monkeypatch):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.out = kind(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.out(self.layer(x)[0])

    runs, run = [], Recording.run
    monkeypatch.setattr(Recording, "run", lambda *given: runs.append(given) or run(*given))
    symmetry = find_symmetry(Net(), torch.randn(2, 3, 3))
    assert len(runs) == 1
    assert [atom.size for atom in symmetry.atoms.values()] == [4]
