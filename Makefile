# Everything from a fresh clone with python3 and make: each target sets up the virtual environment it needs.
#   make demo ARGS="--hidden 64"      make test ARGS="-k symmetry"      make lint      make docs      make clean

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
# Stamps: one per set of packages, so that no target waits for what it does not use.
STAMP := $(VENV)/.stamp
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test lint format docs tutorials clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

help:
	@sed -n '1,2s/^# *//p' Makefile

demo: $(STAMP)-demo
	$(BIN)/python -m pyro_align.demo --out demo-out $(ARGS)

test: $(STAMP)-test
	$(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(STAMP)-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)-docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

tutorials: $(STAMP)-test
	$(BIN)/python tutorials/execute.py

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build docs/tutorials demo-out .pytest_cache .ruff_cache

$(STAMP)-venv:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(STAMP)-lint: setup.cfg constraints.txt | $(STAMP)-venv
	$(PIP) ruff
	touch $@

# torch goes first, at its pinned version, so that nothing else chooses one
$(STAMP)-torch: constraints.txt | $(STAMP)-venv
	$(PIP) torch
	touch $@

$(STAMP)-demo: setup.cfg pyproject.toml constraints.txt $(STAMP)-torch
	$(PIP) -e ".[demo]"
	touch $@

$(STAMP)-test: setup.cfg pyproject.toml constraints.txt $(STAMP)-torch
	$(PIP) -e ".[test]"
	touch $@

$(STAMP)-docs: setup.cfg pyproject.toml constraints.txt $(STAMP)-torch
	$(PIP) -e ".[docs]"
	touch $@
