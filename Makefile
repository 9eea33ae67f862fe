# Everything from a fresh clone with python3 and make: each target sets up the virtual environment it needs.
#   make demo ARGS="--hidden 64"      make test ARGS="-k symmetry"      make lint      make docs      make clean
#   make test-lowest, make test-newest: the tests on the oldest versions that setup.cfg allows, and on the newest Python with ArviZ 1.x

PYTHON ?= python3
PYTHON_LOWEST ?= python3.10
PYTHON_NEWEST ?= python3.13
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
ARGS ?=

BIN := $(VENV)/bin
# Stamps: one per set of packages, so that no target waits for what it does not use.
STAMP := $(VENV)/.stamp
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)

# bytecode is kept whatever the environment says: dozens of tests start another Python
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: help demo test test-lowest test-newest coverage lint format docs tutorials clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

help:
	@sed -n '1,3s/^# *//p' Makefile

demo: $(STAMP)-demo
	$(BIN)/python -m pyro_align.demo --out demo-out $(ARGS)

test: $(STAMP)-test
	$(PYTEST) $(ARGS)

test-lowest:
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt PYTHON=$(PYTHON_LOWEST)

test-newest:
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=constraints-newest.txt PYTHON=$(PYTHON_NEWEST)

coverage: $(STAMP)-test
	$(PIP) pytest-cov
	$(PYTEST) --cov=pyro_align --cov-report=term:skip-covered $(ARGS)

lint: $(STAMP)-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python tests/typed.py

format: $(STAMP)-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)-docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

tutorials: $(STAMP)-test
	$(BIN)/python tutorials/execute.py

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest build dist *.egg-info docs/_build docs/tutorials demo-out .pytest_cache .ruff_cache

$(STAMP)-venv:
	$(PYTHON) -m venv $(VENV)
	touch $@

# pyright reads the types of what the library imports
$(STAMP)-lint: setup.cfg $(CONSTRAINTS) $(STAMP)-test
	$(PIP) -e ".[lint]"
	touch $@

# torch goes first, at its pinned version, so that nothing else chooses one
$(STAMP)-torch: $(CONSTRAINTS) | $(STAMP)-venv
	$(PIP) torch
	touch $@

$(STAMP)-demo: setup.cfg pyproject.toml $(CONSTRAINTS) $(STAMP)-torch
	$(PIP) -e ".[demo]"
	touch $@

$(STAMP)-test: setup.cfg pyproject.toml $(CONSTRAINTS) $(STAMP)-torch
	$(PIP) -e ".[test]"
	touch $@

$(STAMP)-docs: setup.cfg pyproject.toml $(CONSTRAINTS) $(STAMP)-torch
	$(PIP) -e ".[docs]"
	touch $@
