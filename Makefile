PYTHON ?= python3
CONFIG ?= experiments/digits.yaml
BIN := .venv/bin
INSTALLED := .venv/.installed

# The interpreter of Triton and the BLAS of NumPy would otherwise compete for the same cores.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install fit test ratios lint clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## create .venv and install the project into it, once

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(f"Python >= 3.11 is needed, $(PYTHON) is {v}: name another with make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $@

fit: $(INSTALLED)  ## train the recipe CONFIG through the Triton kernels, on the CPU by interpreting them
	$(BIN)/convnets fit --config $(CONFIG) --backend triton

test: $(INSTALLED)  ## run the tests
	$(BIN)/python -m pytest -n 2

ratios: $(INSTALLED)  ## measure the tiles of the interpreter and the cost of the torch backend, as ratios
	$(BIN)/python -m tests.ratios

lint: $(INSTALLED)  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove .venv and caches, keep the logs
	rm -rf .venv build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
