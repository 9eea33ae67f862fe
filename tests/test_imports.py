"""Imports run downwards only, from the verbs a user calls to the mathematics.

`LAYERS` lists the modules and subpackages from the top down: each may import those below it and never those above.
A new module or folder of `pyro_align/` gets one line in it, at its height.
"""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import pyro_align

PACKAGE = "pyro_align"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE

LAYERS = (
    "__main__",
    "demo",
    "io",
    "restarts",
    "alignment",
    "objectives",
    "path_losses",
    "barrier",
    "losses",
    "draws",
    "plots",
    "paths",
    "diagnostics",
    "discovery",
    "guides",
    "model",
    "matching",
    "symmetry",
    "reporting",
    "axes",
    "files",
    "errors",
    "lazy",
)

# Layers that do not know a layer below them either.
STRANGERS = {
    ("guides", "matching"),
}

# Layers that may import nothing but the standard library, the layers below them, and these.
ONLY = {
    "errors": set(),
    "axes": {"torch"},
    "symmetry": {"torch", "pandas"},  # pandas for `to_dataframe`
    "matching": {"torch", "numpy", "scipy", "lap", "tqdm"},
}

# What only these layers may import: a module is reserved together with everything inside it.
RESERVED = {
    "torch.fx": {"discovery"},
    "pyro.infer.autoguide": {"guides", "demo"},  # the demo fits its guides as a user would
    "arviz": {"reporting", "draws"},
    "matplotlib": {"plots", "reporting", "demo"},
    "sklearn": {"demo"},
    "tests": set(),
}

TOP_LEVEL = "__init__"  # the package's own __init__.py: re-exports only


@dataclass(frozen=True)
class Import:
    """`name` is what is imported or used, dotted and absolute; `line` is where."""

    name: str
    line: int

    @property
    def layer(self):
        """The layer of the package it leads to, "" for the package itself, None for a module of others."""
        top, _, rest = self.name.partition(".")
        return rest.split(".")[0] if top == PACKAGE else None


def sources():
    return sorted(ROOT.rglob("*.py"))


def layer_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path, source=None):
    """Every import in a file, inside functions too, and dotted uses such as `torch.fx.wrap` of an imported module.

    What stands under `if TYPE_CHECKING:` is for type checkers and never runs; it does not count.
    """
    package = (PACKAGE, *path.relative_to(ROOT).parent.parts)
    tree = ast.parse(path.read_text(encoding="utf-8") if source is None else source, str(path))
    found, modules = [], set()
    for node in walk_running(tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno) for alias in node.names]
            modules |= {alias.name.split(".")[0] for alias in node.names if alias.asname is None}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            found += [Import(f"{base}.{alias.name}", node.lineno) for alias in node.names]
    for node in walk_running(tree):
        if isinstance(node, ast.Attribute) and (dotted := dotted_name(node)) and dotted.split(".")[0] in modules:
            found.append(Import(dotted, node.lineno))
    return found


def walk_running(tree):
    """`ast.walk` without the bodies of `if TYPE_CHECKING:`."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        else:
            todo += ast.iter_child_nodes(node)


def dotted_name(node):
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def violations(layer, imports):
    """One sentence for each import that breaks a rule."""
    for found in imports:
        there = found.layer
        if there == "":
            yield f"line {found.line}: imports {PACKAGE} itself; import the module that defines the name"
        elif there is not None and there != layer:
            if there not in LAYERS:
                if layer != "demo":
                    yield f"line {found.line}: {found.name} is not a module; import from the module that defines it"
            elif LAYERS.index(there) < LAYERS.index(layer):
                yield f"line {found.line}: {layer} imports {there}, which lies above it"
            elif (layer, there) in STRANGERS:
                yield f"line {found.line}: {layer} and {there} do not know each other"
        elif there is None:
            top = found.name.split(".")[0]
            if layer in ONLY and top not in ONLY[layer] and top not in sys.stdlib_module_names:
                yield f"line {found.line}: {layer} may import {sorted(ONLY[layer]) or 'nothing'}, not {top}"
            for reserved, owners in RESERVED.items():
                if f"{found.name}.".startswith(f"{reserved}.") and layer not in owners:
                    yield f"line {found.line}: {layer} imports {found.name}, reserved for {sorted(owners)}"


def test_every_module_has_its_layer():
    unlisted = sorted({layer_of(path) for path in sources()} - {TOP_LEVEL, *LAYERS})
    assert not unlisted, f"{unlisted} are not in LAYERS of tests/test_imports.py: add each at its height"


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_run_downwards(layer):
    broken = [
        f"{path.relative_to(ROOT.parent)}, {sentence}"
        for path in sources()
        if layer_of(path) == layer
        for sentence in violations(layer, imports_of(path))
    ]
    assert not broken, "\n".join(broken)


def file_graph():
    """File -> the files of the package that it imports, inside functions too, by module name."""
    modules = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path for path in sources()}
    graph = {}
    for name, path in modules.items():
        edges = set()
        for found in imports_of(path):
            parts = found.name.split(".")
            for i in range(len(parts), 0, -1):  # the longest prefix that is a file
                if (there := ".".join(parts[:i])) in modules or (there := f"{there}.__init__") in modules:
                    edges.add(there)
                    break
        graph[name] = edges - {name}
    return graph


def circles(graph):
    """The sets of files that import each other in a circle (Tarjan's strongly connected components, iteratively)."""
    index, low, stack, on_stack, found = {}, {}, [], set(), []

    def visit(root):
        work = [(root, iter(sorted(graph[root])))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, edges = work[-1]
            for there in edges:
                if there not in index:
                    index[there] = low[there] = len(index)
                    stack.append(there)
                    on_stack.add(there)
                    work.append((there, iter(sorted(graph[there]))))
                    break
                if there in on_stack:
                    low[node] = min(low[node], index[there])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    members = set()
                    while node not in members:
                        members.add(stack.pop())
                    on_stack.difference_update(members)
                    if len(members) > 1:
                        found.append(members)

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def test_no_file_is_on_a_circle():
    assert circles(file_graph()) == []


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]


def test_the_top_level_only_re_exports():
    """`pyro_align/__init__.py`: literals, re-exports for type checkers, and the same names where they are asked for."""
    literals, shown = {}, {}
    for node in ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            literals |= {target.id: ast.literal_eval(node.value) for target in node.targets}
        elif isinstance(node, ast.If) and isinstance(node.body[0], ast.ImportFrom):
            shown |= {found.module: tuple(name.name for name in found.names) for found in node.body}
    assert set(literals) == {"__version__", "__all__", "_HOMES", "_SUBMODULES"}
    assert literals["_HOMES"] == shown
    assert sorted([*(name for names in shown.values() for name in names), "__version__"]) == literals["__all__"]
    assert {home.split(".")[1] for home in shown} | set(literals["_SUBMODULES"]) <= set(LAYERS) - {"demo"}
    assert set(literals["_SUBMODULES"]) <= set(dir(pyro_align))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pyro_align.nothing  # noqa: B018


def test_relabeling_draws_loads_no_more_than_it_needs():
    """Nor Pyro, nor what finds symmetries: draws of other tools are relabeled by a symmetry that is written down."""
    code = """
import sys, numpy, xarray
from pyro_align.draws import relabel
print([m for m in sys.modules if m in ("torch", "scipy", "arviz")])
relabel(xarray.Dataset({"mu": (("chain", "draw", "k"), numpy.random.rand(2, 9, 3))}), {"mu": ("k",)})
print([m for m in sys.modules if m in ("pyro", "sympy", "pyro_align.discovery", "pyro_align.guides")])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.stdout.split() == ["[]", "[]"], done.stdout + done.stderr


@pytest.mark.parametrize(
    ("layer", "source", "sentence"),
    [
        ("guides/normal.py", "from pyro_align.alignment.pair import align", "lies above"),
        ("guides/normal.py", "from ..alignment import align", "lies above"),
        ("guides/normal.py", "def f():\n    from ..matching import match", "do not know each other"),
        ("guides/normal.py", "from .. import Symmetry", "not a module"),
        ("paths/geodesic.py", "import pyro_align", "itself"),
        ("matching/lap.py", "import pyro", "may import"),
        ("alignment/pair.py", "import torch\ntorch.fx.wrap", "torch.fx"),
        ("alignment/pair.py", "from torch.fx.experimental.proxy_tensor import make_fx", "torch.fx"),
        ("alignment/pair.py", "from torch import fx", "torch.fx"),
        ("alignment/pair.py", "import pyro\npyro.infer.autoguide.AutoNormal", "pyro.infer.autoguide"),
        ("errors.py", "import torch", "nothing"),
        ("alignment/pair.py", "from ..guides import read\nfrom .. import paths\nimport torch", None),
        ("alignment/pair.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..demo import x", None),
    ],
)
def test_the_rules_catch_what_they_forbid(layer, source, sentence):
    path = ROOT / layer
    sentences = list(violations(layer_of(path), imports_of(path, source)))
    assert not sentences if sentence is None else any(sentence in found for found in sentences)
