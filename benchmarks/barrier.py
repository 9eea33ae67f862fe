"""How long `evaluate_barrier` takes, against bare forward passes written by hand and against Pyro's own loops.

    python benchmarks/barrier.py                     # a quick look: digits-sized data
    python benchmarks/barrier.py --preset mnist      # MLP 784-512-512-512-10, 60,000 data, 25 taus x 32 draws
    python benchmarks/barrier.py --preset resnet     # ResNet-20, 50,000 images of 3 x 32 x 32

With one thread (OMP_NUM_THREADS=1) on a CPU, times are CPU times, which other work on the machine disturbs less.

The floor is what nobody can avoid: for every tau and draw, the network's output and the log likelihood of every datum.
Pyro's way is timed in two forms, on `--pyro-taus` taus and scaled up, both without gradients. *Lean* is the least that
Pyro needs: `Trace_ELBO` and one loop for log likelihoods and class probabilities, two forward passes a draw. *Verbs* is
how its manual has it: `Trace_ELBO`, `Predictive`, and the log likelihood at the draws: three.

Times of one repeat stand side by side; the last line gives medians of their ratios.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_sample

from pyro_align.barrier import evaluate_barrier
from pyro_align.paths.geodesic import displacement

PRESETS = {
    "digits": {"network": "mlp", "data": 1437, "inputs": 64, "hidden": [128, 128], "taus": 25, "draws": 32},
    "mnist": {"network": "mlp", "data": 60_000, "inputs": 784, "hidden": [512, 512, 512], "taus": 25, "draws": 32},
    "resnet": {"network": "resnet", "data": 50_000, "inputs": 32, "hidden": [16, 32, 64], "taus": 25, "draws": 32},
}
CLASSES = 10


# -- networks: shapes of the weights, and a forward pass that takes one draw or many -----------------------------------


def mlp_shapes(inputs, hidden):
    sizes = [inputs, *hidden, CLASSES]
    pairs = list(enumerate(itertools.pairwise(sizes)))
    weights = {f"w{i}": (a, b) for i, (a, b) in pairs}
    return weights | {f"b{i}": (1, b) for i, (_, b) in pairs}


def mlp(x, w):
    depth = len(w) // 2
    for i in range(depth):
        x = x @ w[f"w{i}"] + w[f"b{i}"]
        x = torch.relu(x) if i < depth - 1 else x
    return x


def resnet_shapes(widths, blocks=3):
    shapes, before = {"c": (widths[0], 3, 3, 3)}, widths[0]
    for i, width in enumerate(widths):
        for j in range(blocks):
            shapes[f"a{i}{j}"], shapes[f"b{i}{j}"] = (width, before, 3, 3), (width, width, 3, 3)
            before = width
    return shapes | {"w": (before, CLASSES)}


def resnet(x, w, blocks=3):
    """ResNet-20 with one group norm a convolution and parameter-free shortcuts."""
    x = torch.relu(_norm(F.conv2d(x, w["c"], padding=1)))
    for i in range(3):
        for j in range(blocks):
            first = w[f"a{i}{j}"]
            stride = 2 if i and not j else 1
            y = torch.relu(_norm(F.conv2d(x, first, padding=1, stride=stride)))
            y = _norm(F.conv2d(y, w[f"b{i}{j}"], padding=1))
            short = F.pad(x[..., ::stride, ::stride], (0, 0, 0, 0, 0, y.shape[-3] - x.shape[-3]))
            x = torch.relu(y + short)
    return x.mean((-1, -2)) @ w["w"]


def _norm(x):
    return F.group_norm(x, 4)


# -- the three contestants ---------------------------------------------------------------------------------------------


def make_model(network, shapes):
    def model(x, y=None):
        w = {}
        for name, shape in shapes.items():
            fan_in = math.prod(shape[1:]) if len(shape) == 4 else shape[0]
            prior = dist.Normal(0.0, math.sqrt(2 / fan_in)).expand(shape).to_event(len(shape))
            w[name] = pyro.sample(name, prior)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=network(x, w)), obs=y)

    return model


def floor(path, network, x, y, taus, draws, chunk):
    """Bare forward passes: everything but the network and the log likelihood is left out."""
    noise = path.posterior(0.0).noise(draws, generator=torch.Generator().manual_seed(0))
    spread = torch.func.vmap(network, in_dims=(None, 0))
    results = []
    for tau in torch.linspace(0, 1, taus).tolist():
        q = path.posterior(tau)
        moments = {name: q.marginal(name) for name in q.sites}
        values = {name: m + s * noise[name] for name, (m, s) in moments.items()}
        parts = []
        for lo in range(0, draws, chunk):
            some = {k: v[lo : lo + chunk] for k, v in values.items()}
            # one draw alone is a plain forward pass: vmap would only stand in its way
            logits = spread(x, some) if chunk > 1 else network(x, {k: v[0] for k, v in some.items()})[None]
            index = y.expand(logits.shape[0], -1).reshape(-1)
            nll = F.cross_entropy(logits.reshape(-1, CLASSES), index, reduction="none")
            parts.append(-nll.reshape(logits.shape[:2]))
        results.append(torch.cat(parts))
    return results


@torch.no_grad()
def pyro_lean(model, path, x, y, tau, draws):
    """The least that Pyro alone needs: `Trace_ELBO`, and one loop for log likelihoods and class probabilities."""
    guide, rows, classes = path(tau), [], []
    elbo = Trace_ELBO(num_particles=draws).loss(model, guide, x, y)
    for _ in range(draws):
        trace = poutine.trace(guide).get_trace(x, y)
        conditioned = poutine.trace(poutine.replay(model, trace)).get_trace(x, y)
        conditioned.compute_log_prob(lambda name, site: site["is_observed"])
        rows.append(conditioned.nodes["y"]["log_prob"])
        classes.append(conditioned.nodes["y"]["fn"].probs)
    return elbo, torch.logsumexp(torch.stack(rows), 0), torch.stack(classes).mean(0)


@torch.no_grad()
def pyro_verbs(model, path, x, y, tau, draws):
    """As the manual has it: `Trace_ELBO`; `Predictive` for classes; its draws again for the log likelihood."""
    guide, rows = path(tau), []
    elbo = Trace_ELBO(num_particles=draws).loss(model, guide, x, y)
    sites = [*path.sites, "y"]
    samples = Predictive(model, guide=guide, num_samples=draws, return_sites=sites)(x, None)
    votes = F.one_hot(samples.pop("y").reshape(draws, -1), CLASSES).float().mean(0)
    for s in range(draws):
        values = {name: samples[name][s].reshape(spec.shape) for name, spec in path.sites.items()}
        conditioned = poutine.trace(poutine.condition(model, values)).get_trace(x, y)
        conditioned.compute_log_prob(lambda name, site: site["is_observed"])
        rows.append(conditioned.nodes["y"]["log_prob"])
    return elbo, torch.logsumexp(torch.stack(rows), 0), votes


def make_path(model, x, y):
    ends = []
    for seed in (0, 1):
        pyro.set_rng_seed(seed)
        with pyro.get_param_store().scope():
            guide = AutoNormal(model, init_loc_fn=init_to_sample, init_scale=0.01)
            guide(x[:2], y[:2])
        ends.append(guide)
    return displacement(*ends)


def timed(function, *args, **kwargs):
    clock = time.process_time if torch.get_num_threads() == 1 and not torch.cuda.is_available() else time.perf_counter
    start = clock()
    result = function(*args, **kwargs)
    return result, clock() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="digits")
    parser.add_argument("--data", type=int)
    parser.add_argument("--taus", type=int)
    parser.add_argument("--draws", type=int)
    parser.add_argument("--chunk", type=int, help="draws at once in evaluate_barrier; it chooses by default")
    parser.add_argument("--chunks", type=int, nargs="+", help="draws at once in the floor; the quickest counts")
    parser.add_argument("--max-memory", type=int, default=2**30)
    parser.add_argument("--pyro-taus", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    preset = PRESETS[options.preset] | {
        k: v for k in ("data", "taus", "draws") if (v := getattr(options, k)) is not None
    }
    is_mlp = preset["network"] == "mlp"
    network = mlp if is_mlp else resnet
    shapes = mlp_shapes(preset["inputs"], preset["hidden"]) if is_mlp else resnet_shapes(preset["hidden"])
    torch.manual_seed(0)
    shape = (preset["data"], preset["inputs"]) if is_mlp else (preset["data"], 3, preset["inputs"], preset["inputs"])
    x = torch.randn(shape, device=options.device)
    y = torch.randint(0, CLASSES, (preset["data"],), device=options.device)
    model = make_model(network, shapes)
    if options.device != "cpu":
        torch.set_default_device(options.device)
    path = make_path(model, x, y)
    taus, draws = preset["taus"], preset["draws"]
    print(f"{options.preset}: {sum(map(math.prod, shapes.values())):,} weights, {preset}")
    evaluate_barrier(model, path, x[:8], y[:8], taus=3, num_samples=2)  # the first call imports parts of torch
    ratios = []
    chunks = options.chunks or [1, 4, 8, draws]
    for _ in range(options.repeats):
        with torch.inference_mode():
            times = {c: timed(floor, path, network, x, y, taus, draws, c)[1] for c in chunks}
        best = min(times.values())
        print("floor    " + ", ".join(f"chunk {c}: {t:.2f} s" for c, t in times.items()), flush=True)
        options_ours = {"taus": taus, "num_samples": draws, "chunk": options.chunk, "max_memory": options.max_memory}
        barrier, ours = timed(evaluate_barrier, model, path, x, y, **options_ours)
        print(f"ours     {ours:.2f} s, all of {', '.join(barrier.losses)}: {ours / best:.2f} x the floor", flush=True)
        ratios.append([ours / best])
        if options.pyro_taus:
            for contestant in (pyro_lean, pyro_verbs):
                inside = [tau / (options.pyro_taus + 1) for tau in range(1, options.pyro_taus + 1)]
                theirs = sum(timed(contestant, model, path, x, y, tau, draws)[1] for tau in inside)
                theirs *= taus / options.pyro_taus
                ratios[-1].append(theirs / ours)
                print(f"{contestant.__name__} {theirs:.2f} s: {theirs / ours:.1f} x ours", flush=True)
    names = ["ours / floor", "lean / ours", "verbs / ours"]
    medians = torch.tensor(ratios).median(0).values.tolist()
    print("medians  " + ", ".join(f"{name} {m:.2f}" for name, m in zip(names, medians, strict=False)))


if __name__ == "__main__":
    main()
