"""No option takes a keyword that is meant for the model: every public callable refuses a name that both have."""

import functools
import importlib
import inspect
import pkgutil

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from barrier_problems import make_path
from pyro.nn import PyroModule
from torch import nn

import pyro_align
from pyro_align import evaluate_barrier
from pyro_align.errors import KeywordError
from pyro_align.model.keywords import takes_keyword


def callables():
    """Every function, constructor and method of the package by its full name."""
    for info in pkgutil.walk_packages(pyro_align.__path__, "pyro_align."):
        if info.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(info.name)).items():
            if name.startswith("_") or getattr(value, "__module__", None) != info.name:
                continue
            if inspect.isfunction(value):
                yield f"{info.name}.{name}", value
            elif inspect.isclass(value):
                for inner, method in vars(value).items():
                    if inspect.isfunction(method) and (inner == "__init__" or not inner.startswith("_")):
                        yield f"{info.name}.{name}.{inner}", method


def verbs():
    """Those that pass keywords on to a model or guide, beside options of their own."""
    for name, function in callables():
        parameters = inspect.signature(function).parameters.values()
        kinds = {p.kind for p in parameters}
        model = next((p.name for p in parameters if p.name in ("model", "guide")), None)
        if model and {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds:
            yield pytest.param(function, id=name)


def given(parameter, model):
    if parameter.name == "model":
        return model
    return model if parameter.name == "guide" else object()


def test_the_verbs_are_found():
    names = {p.id.split(".")[-1] for p in verbs()} | {p.id.split(".")[-2] for p in verbs()}
    assert {"find_symmetry", "certify", "evaluate_barrier", "evaluate_plane", "learn_path", "repair"} < names
    assert {"PathLoss", "MidpointLoss", "Activations", "effective_width", "mean_field_guide", "elbo"} < names


@pytest.mark.parametrize("verb", list(verbs()))
def test_an_option_is_no_parameter_of_the_model(verb):
    parameters = inspect.signature(verb).parameters.values()
    options = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for option in options:
        scope = {}
        exec(f"def model(x, {option}=None): ...", scope)
        first = [given(p, scope["model"]) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        with pytest.raises(KeywordError, match=rf"'{option}' is an option of .*functools.partial\(model, {option}="):
            verb(*first, **{option: 1})


def plain(x, temperature=1.0):
    return x / temperature


def keyword_only(x, *, temperature):
    return x / temperature


def through(x, **options):
    return x / options.get("temperature", 1.0)


def passing_on(function):
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class Module(nn.Module):
    def forward(self, x, temperature=1.0):
        return x / temperature


class Callable:
    def __call__(self, x, temperature=1.0):
        return x / temperature

    def method(self, x, temperature=1.0):
        return x / temperature


MODELS = [
    plain,
    keyword_only,
    through,
    passing_on(plain),
    passing_on(Module()),
    torch.no_grad()(plain),
    poutine.scale(plain, scale=0.5),
    functools.partial(plain, torch.zeros(1)),
    Module(),
    PyroModule[Module](),
    Callable(),
    Callable().method,
]


@pytest.mark.parametrize("model", MODELS)
def test_models_of_every_kind_are_seen_through(model):
    assert takes_keyword(model, "temperature")
    assert not takes_keyword(model, "seed")
    assert not takes_keyword(functools.partial(model, temperature=0.5), "temperature")


def softmax(x, y, temperature=1.0):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=x @ w / temperature), obs=y)


def test_the_remedy_works():
    x, y = torch.randn(20, 3), torch.randint(2, (20,))
    path = make_path(softmax, x, y)
    with pytest.raises(KeywordError, match=r"evaluate_barrier\(functools.partial\(softmax, temperature=0.25\), ...\)"):
        evaluate_barrier(softmax, path, x, y, temperature=0.25, taus=3)
    cold = functools.partial(softmax, temperature=0.25)
    found = evaluate_barrier(cold, path, x, y, temperature=0.5, taus=3, num_samples=4)
    w = path.posterior(0.0).push(found.problem.noise)["w"]
    nll = -dist.Categorical(logits=x @ w / 0.25).log_prob(y).mean(1)
    assert found["expected_nll"].draws[0] == pytest.approx(nll.numpy())
    assert found.temperature == 0.5
    assert evaluate_barrier(softmax, path, x, y, 0.25, taus=3).num_data == {"data": 20}
