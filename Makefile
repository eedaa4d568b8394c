# Everything one does here, each verb on its own: `make test` on a fresh machine makes .venv, installs into it and runs.
# Needed: GNU make, Python 3.11 or newer with venv, and a C++ compiler (g++ or clang++) for the CPU target.

# JOBS: test processes. ARGS are handed on: make demo ARGS="--prompt 12+34=", make test ARGS="tests/ops -k linear".

PYTHON ?= python3
JOBS ?= 2
ARGS ?=

bin := .venv/bin
comma := ,
demo_extras := hf$(if $(shell command -v nvidia-smi 2>/dev/null),$(comma)cuda)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test check lint types layers format docs clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: .venv/.installed-$(demo_extras) ## a small model that adds, compiled to one kernel and asked
	@$(bin)/python examples/adder/demo.py $(ARGS)

test: .venv/.installed-test ## the tests
	@$(bin)/pytest -q -n $(JOBS) $(ARGS)

check: lint types layers ## ruff, mypy and import-linter

lint: .venv/.installed-check
	@$(bin)/ruff check .

types: .venv/.installed-check
	@$(bin)/mypy

layers: .venv/.installed-check
	@$(bin)/lint-imports --no-logo

format: .venv/.installed-check ## the Python files, reformatted
	@$(bin)/ruff check --fix-only --select I .
	@$(bin)/ruff format .

docs: .venv/.installed-docs ## the documentation, into docs/_build/html
	@$(bin)/sphinx-build -q -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean: ## remove what was made, but not .venv
	@rm -rf build dist docs/_build .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find mkc tests examples docs -name __pycache__ -prune -exec rm -rf {} +

# The extras named by the stem, at the versions of constraints.txt; again when either file changes.
.venv/.installed-%: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing mkc-compiler[$*] into .venv (the first time takes some minutes)"
	@rm -f $@
	@( $(bin)/python -m pip install --disable-pip-version-check --progress-bar off \
	    -c constraints.txt -e '.[$*]' 2>&1 && touch $@ ) \
	  | tee .venv/install.log \
	  | grep -oE --line-buffered '^ *Downloading .* [MG]B\)|^Installing collected packages' || true
	@test -f $@ || { tail -n 40 .venv/install.log; echo "the installation failed; all of it is in .venv/install.log"; exit 1; } >&2

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mkc needs Python 3.11 or newer; name one with make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv || \
	  { rm -rf .venv; echo "$(PYTHON) cannot make a virtual environment; install its venv module (python3-venv)" >&2; exit 1; }
