"""The wheel: built from the sources alone, it holds the package, says what it is, and imports from where it is put."""

import configparser
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import pyro_align

pytest.importorskip("setuptools", minversion="77")

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ["setup.cfg", "pyproject.toml", "README.md", "LICENSE", "pyro_align"]


def run(*command, cwd):
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", target]
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=source)
    (built,) = target.glob("*.whl")
    return built


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pyro_align").rglob("*.py")}
    assert names == modules | {"pyro_align/py.typed"}


def test_the_wheel_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
        assert any(name.endswith("/LICENSE") for name in archive.namelist())
    assert metadata["Name"] == "pyro_align"
    assert metadata["Version"] == pyro_align.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"plots", "demo", "test", "docs"} <= set(metadata.get_all("Provides-Extra"))


def test_the_source_distribution_carries_what_its_tests_read(tmp_path):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "_build", "demo-out")
    shutil.copytree(ROOT, source, ignore=ignored)
    code = "import sys; from setuptools.build_meta import build_sdist; print(build_sdist(sys.argv[1]))"
    name = run(sys.executable, "-c", code, tmp_path, cwd=source).splitlines()[-1]
    with tarfile.open(tmp_path / name) as archive:
        held = {member.partition("/")[2] for member in archive.getnames()}
    for folder in ("tests", "benchmarks", "studies", "validation"):
        files = {path.relative_to(source).as_posix() for path in (source / folder).rglob("*.py")}
        assert files <= held, f"missing: {sorted(files - held)[:5]}"
    assert {"README.md", "CHANGELOG.md", "constraints.txt", "docs/api.md", "tutorials/execute.py"} <= held


def test_the_wheel_imports(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import pyro_align; print(pyro_align.__file__)"
    assert run(sys.executable, "-c", code, cwd=tmp_path).strip() == str(tmp_path / "pyro_align" / "__init__.py")


def test_every_direct_dependency_is_pinned():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    asked = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lines = [line for text in asked for line in text.splitlines() if line and not line.startswith("#")]
    pins = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert {line.split(">=")[0].split("[")[0] for line in lines} <= pins
