"""The eight hidden Markov models of Pyro's example on polyphonic music, on short random sequences."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, init_to_sample
from torch import nn

from benchmarks.wild.jobs import Job, job

STATES, TONES = 4, 3
ENUMERATE = {"enumerate": "parallel"}
EXAMPLE = "Pyro, examples/hmm.py, model {}"


def tables_of(model):
    """MAP estimates of all the tables, as in the example; states are summed out."""
    exposed = poutine.block(model, expose_fn=lambda site: site["name"].startswith("probs_"))
    return AutoDelta(exposed, init_loc_fn=init_to_sample)


def hmm(model=None, *, learned=None):
    """The example's job, of a model or of what makes one with a network of its own."""
    torch.manual_seed(0)
    args = (torch.rand(3, 4, TONES) < 0.4).float(), torch.tensor([4, 3, 2])
    options = {"elbo": lambda: TraceEnum_ELBO(max_plate_nesting=2), "rate": 0.05}
    if learned:
        return Job(pair=lambda: (model := learned(), tables_of(model)), args=args, parameters=True, **options)
    return Job(model, lambda: tables_of(model), args, **options)


def transitions(name="probs_x", states=STATES):
    return pyro.sample(name, dist.Dirichlet(0.9 * torch.eye(states) + 0.1).to_event(1))


def emissions(*shape):
    return pyro.sample("probs_y", dist.Beta(0.1, 0.9).expand([*shape, TONES]).to_event(len(shape) + 1))


def state(name, probs):
    return pyro.sample(name, dist.Categorical(probs), infer=ENUMERATE)


@job(EXAMPLE.format(0))
def hmm_0():
    def model(sequences, lengths):
        px, py = transitions(), emissions(STATES)
        tones = pyro.plate("tones", TONES, dim=-1)
        for i in pyro.plate("sequences", len(sequences)):
            sequence, x = sequences[i, : lengths[i]], 0
            for t in pyro.markov(range(lengths[i])):
                x = state(f"x_{i}_{t}", px[x])
                with tones:
                    pyro.sample(f"y_{i}_{t}", dist.Bernoulli(py[x.squeeze(-1)]), obs=sequence[t])

    return hmm(model)


def vectorized(step, tables):
    """The sequences side by side, padded, those that have ended masked."""

    def model(sequences, lengths):
        given = tables()
        with pyro.plate("sequences", len(sequences), dim=-2):
            memory = None
            for t in pyro.markov(range(int(lengths.max()))):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    memory = step(t, memory, sequences, *given)

    return hmm(model)


def observe(t, sequences, probs):
    with pyro.plate(f"tones_{t}", TONES, dim=-1):
        pyro.sample(f"y_{t}", dist.Bernoulli(probs), obs=sequences[:, t])


@job(EXAMPLE.format(1))
def hmm_1():
    def step(t, x, sequences, px, py):
        x = state(f"x_{t}", px[0 if x is None else x])
        observe(t, sequences, py[x.squeeze(-1)])
        return x

    return vectorized(step, lambda: (transitions(), emissions(STATES)))


@job(EXAMPLE.format(2))
def hmm_2():
    def model(sequences, lengths):
        px, py = transitions(), emissions(STATES, 2)
        tones = pyro.plate("tones", TONES, dim=-1)
        with pyro.plate("sequences", len(sequences), dim=-2):
            x, y = 0, torch.zeros(TONES)
            for t in pyro.markov(range(int(lengths.max()))):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    x = state(f"x_{t}", px[x])
                    with tones as tone:
                        y = pyro.sample(f"y_{t}", dist.Bernoulli(py[x, y.long(), tone]), obs=sequences[:, t])

    return hmm(model)


@job(EXAMPLE.format(3))
def hmm_3():
    def step(t, before, sequences, pw, px, py):
        w, x = before or (0, 0)
        w, x = state(f"w_{t}", pw[w]), state(f"x_{t}", px[x])
        observe(t, sequences, py[w.squeeze(-1), x.squeeze(-1)])
        return w, x

    return vectorized(step, lambda: (transitions("probs_w", 3), transitions("probs_x", 3), emissions(3, 3)))


@job(EXAMPLE.format(4))
def hmm_4():
    def tables():
        px = pyro.sample("probs_x", dist.Dirichlet(0.9 * torch.eye(3) + 0.1).expand([3, 3]).to_event(2))
        return transitions("probs_w", 3), px, emissions(3, 3)

    def step(t, before, sequences, pw, px, py):
        w, x = before or (torch.tensor(0), torch.tensor(0))
        w = state(f"w_{t}", pw[w])
        x = state(f"x_{t}", px[w, x])
        observe(t, sequences, py[w.squeeze(-1), x.squeeze(-1)])
        return w, x

    return vectorized(step, tables)


class Tones(nn.Module):
    """Logits of the next tones from the present state and the last tones."""

    def __init__(self, width=5):
        super().__init__()
        self.state, self.recurrent, self.out = (
            nn.Linear(STATES, width),
            nn.Linear(TONES, width),
            nn.Linear(width, TONES),
        )

    def forward(self, x, y):
        one_hot = torch.eye(STATES)[x.squeeze(-1)] if x.dim() else torch.eye(STATES)[x]
        return self.out(torch.relu(self.state(one_hot) + self.recurrent(y)))


@job(EXAMPLE.format(5))
def hmm_5():
    def learned():
        tones = Tones()

        def model(sequences, lengths):
            pyro.module("tones", tones)
            px = transitions()
            with pyro.plate("sequences", len(sequences), dim=-2):
                x, y = 0, torch.zeros(len(sequences), TONES)
                for t in pyro.markov(range(int(lengths.max()))):
                    with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                        x = state(f"x_{t}", px[x])
                        with pyro.plate(f"tones_{t}", TONES, dim=-1):
                            y = pyro.sample(f"y_{t}", dist.Bernoulli(logits=tones(x, y)), obs=sequences[:, t])

        return model

    return hmm(learned=learned)


@job(EXAMPLE.format(6))
def hmm_6():
    def tables():
        first, second = transitions("probs_x1"), transitions("probs_x2")
        mix = pyro.sample("probs_mix", dist.Beta(2.0, 1.0))
        return first, second, mix, emissions(STATES)

    def step(t, before, sequences, first, second, mix, py):
        last, present = before or (torch.tensor(0), torch.tensor(0))
        x = state(f"x_{t}", mix * first[last] + (1 - mix) * second[present])
        observe(t, sequences, py[x.squeeze(-1)])
        return present, x

    def model(sequences, lengths):
        given = tables()
        with pyro.plate("sequences", len(sequences), dim=-2):
            memory = None
            for t in pyro.markov(range(int(lengths.max())), history=2):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    memory = step(t, memory, sequences, *given)

    return hmm(model)


@job(EXAMPLE.format(7))
def hmm_7():
    def learned():
        tones = Tones()

        def model(sequences, lengths):
            pyro.module("tones", tones)
            px = transitions()
            with pyro.plate("sequences", len(sequences)):
                before = torch.nn.functional.pad(sequences, (0, 0, 1, -1))
                x = torch.arange(STATES)
                logits = tones(x[:, None], before.unsqueeze(-2))
                first = torch.full((STATES,), -torch.inf)
                first[0] = 0.0
                emission = dist.Bernoulli(logits=logits).to_event(1)
                hidden = dist.DiscreteHMM(first, px.log(), emission)
                mask = torch.arange(sequences.shape[1]) < lengths[:, None]
                observed = (
                    hidden if bool(mask.all()) else dist.DiscreteHMM(first, px.log(), emission.mask(mask[..., None]))
                )
                pyro.sample("y", observed, obs=sequences)

        return model

    return hmm(learned=learned)
