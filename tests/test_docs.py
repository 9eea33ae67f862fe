"""Everything the documentation shows is run: code blocks of the pages, docstring examples, tutorials."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from reader import run_as_reader, shortened

import pyro_align

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pyro_align"
PAGES = sorted(path for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# A block of ```text shows what the code of its page prints.

# Pages whose code is a quotation of code run elsewhere, or a pattern to fill in.
NOT_RUN = {"index.md", "CONTRIBUTING.md"}


def script_of(text):
    """The Python blocks of a page as one script in which every line keeps its line number."""
    lines = [""] * (text.count("\n") + 1)
    for block in FENCE.finditer(text):
        if block[1] == "python":
            first = text.count("\n", 0, block.start(2))
            code = block[2].splitlines()
            lines[first : first + len(code)] = code
    return "\n".join(lines).rstrip() + "\n"


def runnable_pages():
    return [page for page in PAGES if page.name not in NOT_RUN and script_of(page.read_text(encoding="utf-8")).strip()]


@pytest.mark.parametrize("page", runnable_pages(), ids=lambda page: page.name)
def test_code_blocks_of_a_page_run_in_order(page, tmp_path):
    done = run_as_reader(shortened(script_of(page.read_text(encoding="utf-8"))), tmp_path / f"{page.stem}.py")
    assert done.returncode == 0, f"{page.name} (line numbers are those of the page):\n{done.stderr}"
    for shown in (block[2] for block in FENCE.finditer(page.read_text(encoding="utf-8")) if block[1] == "text"):
        assert shown in done.stdout, f"{page.name} shows\n{shown}\nbut its code prints\n{done.stdout}"


def test_the_readme_has_code_to_run():
    assert ROOT / "README.md" in runnable_pages()


NAMED = re.compile(r"`((?:[a-z_]+/)*[a-z_0-9]+\.(?:py|md|png))`|`((?:[a-z_]+/)+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    roots = (ROOT, PACKAGE, page.parent)
    named = ("".join(found) for found in NAMED.findall(page.read_text(encoding="utf-8")))
    assert [name for name in named if not any((root / name).exists() for root in roots)] == []


def module_names():
    files = (path.relative_to(ROOT).with_suffix("") for path in PACKAGE.rglob("*.py") if path.stem != "__main__")
    return sorted(".".join(file.parts).removesuffix(".__init__") for file in files)


class Finder(doctest.DocTestFinder):
    """Looks through decorators, whose own module is another."""

    def _from_module(self, module, object):
        return super()._from_module(module, inspect.unwrap(object) if inspect.isfunction(object) else object)


@pytest.mark.parametrize("name", module_names())
def test_docstring_examples(name):
    """In float32, the default that a reader has."""
    module = importlib.import_module(name)
    torch.set_default_dtype(torch.float32)  # conftest restores it
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report = []
    for test in Finder(exclude_empty=True).find(module, name):
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


def public_names():
    return [(name, getattr(pyro_align, name)) for name in pyro_align.__all__ if not name.startswith("_")]


@pytest.mark.parametrize(("name", "value"), public_names(), ids=[name for name, _ in public_names()])
def test_public_names_are_documented(name, value):
    """A docstring each, an example each, a place in the API reference each."""
    api = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert re.search(rf"^(\.\. auto\w+:: ){re.escape(name)}$", api, re.MULTILINE), f"{name} is not in docs/api.md"
    if callable(value):
        text = inspect.getdoc(value) or ""
        assert text, f"{name} has no docstring"
        assert not text.startswith(f"{name}("), f"{name} has only the docstring that dataclasses make up"
        is_error = isinstance(value, type) and issubclass(value, Exception | Warning)
        assert is_error or ">>> " in text, f"the docstring of {name} has no example"
