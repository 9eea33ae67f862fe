"""Every model that the documentation shows goes through the whole quick start.

Models are found by reading README, the pages, the tutorials and the docstrings: whatever observes something. A model
without a line in the table below fails `test_no_model_is_left_out`.
"""

import ast
import importlib
from pathlib import Path

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal, init_to_sample
from pyro.nn import AutoRegressiveNN, PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from test_docs import PAGES, ROOT, Finder, module_names, script_of

import pyro_align


def classes(n, k):
    return torch.arange(n) % k


def regressive():
    network = AutoRegressiveNN(13, [14], permutation=torch.arange(13))
    to_pyro_module_(network)
    for module in network.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            prior = pyro.distributions.Normal(0.0, 0.3).expand(value.shape).to_event(value.dim())
            setattr(module, name, PyroSample(prior))
    return {"network": network}


def table():
    """Place and name of each model -> its arguments, small."""
    pair, points = (torch.randn(5, 3), torch.randn(5, 2)), (torch.randn(12),)
    column = torch.linspace(-2, 2, 12).unsqueeze(1)
    return {
        "README.md:model": (torch.rand(12, 64), classes(12, 10)),
        "align.md:model": (column, column.sin()),
        "align.md:LastLayer": (column, column.sin()),
        "discovery.md:perceptron": pair,
        "discovery.md:horseshoe": pair,
        "discovery.md:one_by_one": (pair[0], torch.randn(5)),
        "discovery.md:named": (torch.randn(5, 3), torch.randn(5)),
        "discovery.md:normalized": pair,
        "discovery.md:ordered": (torch.randn(7, 6),),
        "discovery.md:factors": (torch.randn(7, 6),),
        "rotations.md:factors": (torch.randn(7, 6),),
        "draws.md:model": points,
        "guides.md:mixture": points,
        "01_two_posteriors.py:model": (torch.rand(12, 64), classes(12, 10)),
        "02_full_covariance.py:model": (torch.randn(12, 10), torch.randn(12)),
        "03_your_own_guide.py:model": (torch.randn(12, 13), classes(12, 3)),
        "04_label_switching.py:model": points,
        "06_rhat_of_a_network.py:model": (torch.linspace(-2, 2, 12), torch.randn(12)),
        "07_an_existing_model.py:model": (torch.randn(12, 13),),
        "09_factors.py:model": (torch.randn(7, 8),),
        "10_are_my_fits_the_same.py:model": (torch.full((7, 40), 2.0), 3),
        "pyro_align.alignment.pair:model": pair,
        "pyro_align.barrier.evaluate:model": points,
        "pyro_align.discovery:model": (),
        "pyro_align.draws.symmetrized:model": (),
        "pyro_align.guides.families.network:LastLayer": (column,),
    }


GLOBALS = {"07_an_existing_model.py:model": regressive}  # what a page's model takes from code that is not run here
SUMMED_OUT = {"guides.md:mixture": ["z"]}  # discrete sites, which the guide leaves out


def sources():
    """Place -> the Python that it shows."""
    found = {page.name: script_of(page.read_text(encoding="utf-8")) for page in PAGES}
    tutorials = sorted((ROOT / "tutorials").glob("[0-9]*.py"))
    found |= {path.name: Path(path).read_text(encoding="utf-8") for path in tutorials}
    for name in module_names():
        tests = Finder(exclude_empty=True).find(importlib.import_module(name), name)
        for test in tests:
            found.setdefault(name, "")
            found[name] += "".join(example.source for example in test.examples)
    return found


def observes(node):
    keywords = (k.arg for call in ast.walk(node) if isinstance(call, ast.Call) for k in call.keywords)
    return isinstance(node, ast.FunctionDef | ast.ClassDef) and "obs" in keywords


@pytest.fixture(scope="module")
def models():
    """Place and name -> the page's tree and the model's definition; a definition shown twice is there once."""
    found, seen = {}, set()
    for place, text in sources().items():
        tree = ast.parse(text)
        for node in filter(observes, tree.body):
            if (text := ast.dump(node)) not in seen:
                seen.add(text)
                found[f"{place}:{node.name}"] = tree, node
    return found


def defined(key, tree, node):
    """The model, run with the imports, helpers and constants of its page and nothing else."""
    needed, todo = {node.name}, [node]
    helpers = {d.name: d for d in tree.body if isinstance(d, ast.FunctionDef | ast.ClassDef)}
    while todo:
        names = {n.id for n in ast.walk(todo.pop()) if isinstance(n, ast.Name)} - needed
        needed |= names
        todo += [helpers[name] for name in names & helpers.keys()]
    kept = [part for part in tree.body if belongs(part, needed, node)]
    scope = GLOBALS.get(key, dict)()
    exec(compile(ast.Module(kept, []), key, "exec"), scope)
    return scope[node.name]


def belongs(part, needed, model):
    if isinstance(part, ast.Import | ast.ImportFrom):
        return True
    if isinstance(part, ast.Assign):
        targets = {n.id for t in part.targets for n in ast.walk(t) if isinstance(n, ast.Name)}
        return bool(targets & needed) and all(isinstance(n, ast.Constant) for n in leaves(part.value))
    if isinstance(part, ast.FunctionDef | ast.ClassDef):
        if part.name == model.name:
            return part is model
        decorators = [d.value for d in part.decorator_list if isinstance(d, ast.Attribute)]
        return part.name in needed or any(isinstance(d, ast.Name) and d.id in needed for d in decorators)
    return False


def leaves(value):
    return value.elts if isinstance(value, ast.Tuple) else [value]


def test_no_model_is_left_out(models):
    shown, listed = set(models), set(table())
    assert not shown - listed, "shown in the documentation, and not in the table above"
    assert not listed - shown, "in the table above, and not in the documentation"


@pytest.mark.filterwarnings("ignore")  # few draws: errors and shapes are not what this is about
@pytest.mark.parametrize("key", table())
def test_quick_start(key, models):
    model, args = defined(key, *models[key]), table()[key]
    learned = isinstance(model, type) and issubclass(model, PyroModule)
    ends = [(model() if learned else model) for _ in range(2)]
    guides = []
    for seed, end in enumerate(ends):
        pyro.set_rng_seed(seed)
        with pyro.get_param_store().scope():
            shown = poutine.block(end, hide=SUMMED_OUT.get(key, []))
            guides.append(AutoNormal(shown, init_loc_fn=init_to_sample, init_scale=0.05))
            guides[-1](*args)
    symmetry = pyro_align.find_symmetry(ends[0], *args, parameters=learned)
    alignment = pyro_align.align(*guides, symmetry, parameters=tuple(ends) if learned else None)
    assert alignment.distance <= alignment.distance_before * (1 + 1e-9)
    path = alignment.path if learned else pyro_align.displacement(guides[0], alignment.guide)
    barrier = pyro_align.evaluate_barrier(ends[0], path, *args, taus=3, num_samples=25)  # ArviZ 1.x takes no fewer
    assert not barrier.summary().isna().all(axis=None)
    assert barrier.at(0.5).log_likelihood.sizes["draw"] == 25
    assert {"loss_draws", "log_prior"} <= set(barrier.to_arviz().sample_stats)
    assert list(barrier.loo().index) == [0.0, 0.5, 1.0]
    assert barrier.plot() is not None
