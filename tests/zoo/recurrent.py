"""Recurrent networks: one atom a hidden state, its gates tied."""

from __future__ import annotations

import torch
from problems import bayesian, problem
from torch import nn

from pyro_align.axes import Odd


class Sequence(nn.Module):
    """A recurrent layer and a readout of its last output.

    In both directions it is a readout of the first two outputs' mean: backwards, the last has no output before it, and
    the weights between states would do nothing.
    """

    def __init__(self, rnn: nn.Module, width: int):
        super().__init__()
        self.rnn, self.out = rnn, nn.Linear(width, 2)

    def forward(self, x):
        states = self.rnn(x)[0]
        return self.out(states[:, :2].mean(1) if self.rnn.bidirectional else states[:, -1])


def layer_axes(gates: int, layer: int, atom: str, source, suffix: str = ""):
    """The four sites of one direction of one layer."""
    rows = [atom] * gates if gates > 1 else atom
    return {
        f"rnn.weight_ih_l{layer}{suffix}": (rows, source),
        f"rnn.weight_hh_l{layer}{suffix}": (rows, atom),
        f"rnn.bias_ih_l{layer}{suffix}": (rows,),
        f"rnn.bias_hh_l{layer}{suffix}": (rows,),
    }


# The state of a gated cell changes sign with the rows of its candidate; its gates, which are sigmoids, do not.
CANDIDATE = {1: 0, 4: 2, 3: 2}


def layer_signs(gates: int, layer: int, atom: str, source, suffix: str = ""):
    """The same with signs: the candidate's rows, and every column that reads a state."""
    axes = layer_axes(gates, layer, atom, source and Odd(source), suffix)
    rows = [Odd(atom) if k == CANDIDATE[gates] else atom for k in range(gates)] if gates > 1 else Odd(atom)
    signs = {site: (rows, *rest) for site, (_, *rest) in axes.items()}
    signs[f"rnn.weight_hh_l{layer}{suffix}"] = (rows, Odd(atom))
    return signs


CELLS = {"elman": (nn.RNN, 1), "lstm": (nn.LSTM, 4), "gru": (nn.GRU, 3)}

for _name, (_cell, _gates) in CELLS.items():

    @problem(
        {**layer_axes(_gates, 0, "h", None), "out.weight": (None, "h")},
        signs={**layer_signs(_gates, 0, "h", None), "out.weight": (None, Odd("h"))},
        name=f"{_name}",
    )
    def one_layer(cell=_cell):
        return bayesian(Sequence(cell(2, 3, batch_first=True), 3)), (torch.randn(2, 3, 2),)

    @problem(
        {**layer_axes(_gates, 0, "h", None), **layer_axes(_gates, 1, "k", "h"), "out.weight": (None, "k")},
        signs={
            **layer_signs(_gates, 0, "h", None),
            **layer_signs(_gates, 1, "k", "h"),
            "out.weight": (None, Odd("k")),
        },
        name=f"{_name}_of_two_layers",
    )
    def two_layers(cell=_cell):
        return bayesian(Sequence(cell(2, 3, num_layers=2, batch_first=True), 3)), (torch.randn(2, 3, 2),)

    @problem(
        {
            **layer_axes(_gates, 0, "h", None),
            **layer_axes(_gates, 0, "r", None, "_reverse"),
            "out.weight": (None, ["h", "r"]),
        },
        signs={
            **layer_signs(_gates, 0, "h", None),
            **layer_signs(_gates, 0, "r", None, "_reverse"),
            "out.weight": (None, [Odd("h"), Odd("r")]),
        },
        name=f"bidirectional_{_name}",
    )
    def bidirectional(cell=_cell):
        return bayesian(Sequence(cell(2, 3, bidirectional=True, batch_first=True), 6)), (torch.randn(2, 3, 2),)


@problem(
    {
        "cell.weight_ih": (["h"] * 4, None),
        "cell.weight_hh": (["h"] * 4, "h"),
        "cell.bias_ih": (["h"] * 4,),
        "cell.bias_hh": (["h"] * 4,),
        "out.weight": (None, "h"),
    },
    signs={k.replace("rnn", "cell").replace("_l0", ""): v for k, v in layer_signs(4, 0, "h", None).items()}
    | {"out.weight": (None, Odd("h"))},
)
def lstm_cell_unrolled():
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.out = nn.LSTMCell(2, 3), nn.Linear(3, 2)

        def forward(self, x):
            h = c = torch.zeros(len(x), 3)
            for t in range(x.shape[1]):
                h, c = self.cell(x[:, t], (h, c))
            return self.out(h)

    return bayesian(Unrolled()), (torch.randn(2, 3, 2),)
