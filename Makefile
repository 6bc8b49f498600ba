# `make demo` and `make test` do all of their set-up in $(VENV); all they need is Python 3.11 or later and make.
#
#   make demo PYTHON=python3.12     another interpreter
#   make demo VENV=/tmp/venv        another place for the virtual environment
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#                                   the small CPU build of torch; PyPI's own build for Linux brings GBs of CUDA with it

PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV ?= .venv
PIP_ARGS ?=
JOBS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt $(PIP_ARGS)
CONFIGS = $(wildcard examples/*.toml)

.PHONY: help demo test lint types unit sweep verilog bench docs clean

help:
	@echo "make demo      train, quantize, compile and verify a network on generated RTL, one row per weight format"
	@echo "make test      linter, type checker and all tests"
	@echo "make sweep     10,000 random layers, 300 random networks, ResNet-18 at 224x224, 100,000 frames on a serial line"
	@echo "make verilog   Verilog of every examples/*.toml in build/verilog"
	@echo "make bench     speed of the simulated accelerator on this machine"
	@echo "make docs      rewrite the generated tables in docs/"
	@echo "make clean     remove build results (the virtual environment $(VENV) stays)"

demo: $(VENV)/.demo
	$(BIN)/nomul demo $(DEMO_ARGS)

test: lint types unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

sweep: $(VENV)/.dev
	$(BIN)/python -m nomul_sim.random_layers --count 10000 --seed 1
	$(BIN)/python -m nomul_sim.random_networks --count 300 --seed 1
	$(BIN)/python -m pytest -m sweep $(PYTEST_ARGS)

verilog: $(VENV)/.core
	for config in $(CONFIGS); do \
	  $(BIN)/nomul generate $$config -o build/verilog/$$(basename $$config .toml) || exit 1; done

bench: $(VENV)/.demo
	$(BIN)/python -m nomul_sim.bench

docs: $(VENV)/.core
	$(BIN)/python docs/tables.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find hw sw sim tests docs examples -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up: the stamps are older than pyproject.toml when there is something to install. ------------------------------

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nomul needs Python 3.11 or later: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	touch $@

# The simulator is compiled by g++ or clang++; where there is neither, by the compiler in the ziglang package.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[demo]'
	command -v g++ >/dev/null || command -v clang++ >/dev/null || $(PIP) ziglang
	touch $@ $(VENV)/.core

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[dev]'
	command -v g++ >/dev/null || command -v clang++ >/dev/null || $(PIP) ziglang
	touch $@ $(VENV)/.core $(VENV)/.demo
