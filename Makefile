PYTHON ?= python3
CONFIG ?= experiments/digits.yaml
BIN := .venv/bin
INSTALLED := .venv/.installed
# The sanitizer runs on Python 3.12 or newer, and with the Triton that it was made for.
SANITIZE_PYTHON ?= $(firstword $(foreach python,python3.14 python3.13 python3.12 $(wildcard $(HOME)/.pyenv/versions/3.1[2-9]*/bin/python),$(shell $(python) -c 'import sys; print(sys.executable) if sys.version_info >= (3, 12) else None' 2>/dev/null)))
SANITIZER := .venv-sanitize/.installed

# `make test-compiled` leaves out what it would only repeat: most of these tests run in processes of their own, which
# choose by themselves whether to interpret, and the recipes train on the torch backend.
REPEATED := $(addprefix experiments/test_,gpu.py gpu_faults.py inspect_command.py interruption.py recipes.py tune.py) \
	$(addprefix kernels/test_,estimate.py inspect.py)

# The interpreter of Triton and the BLAS of NumPy would otherwise compete for the same cores.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install fit test test-compiled compile matrix sanitize gpu gpu-bundle ratios lint clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## create .venv and install the project into it, once

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(f"Python >= 3.11 is needed, $(PYTHON) is {v}: name another with make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $@

fit: $(INSTALLED)  ## train the recipe CONFIG through the Triton kernels, on the CPU by interpreting them
	$(BIN)/convnets fit --config $(CONFIG) --backend triton

test: $(INSTALLED)  ## run the tests
	$(BIN)/python -m pytest -n auto

test-compiled: $(INSTALLED)  ## run the tests that need no GPU as a machine with a GPU does, without the interpreter
	CONVNETS_TESTS=compiled $(BIN)/python -m pytest -n auto $(addprefix --ignore=tests/,$(REPEATED))

compile: $(INSTALLED)  ## compile every kernel for NVIDIA and AMD GPUs, without one, and check what the binaries need
	$(BIN)/python -m tests.compiled

matrix: $(INSTALLED)  ## compile a part of them with each Triton that users have: the oldest, 3.6, this one, the newest
	$(BIN)/python -m tests.matrix

sanitize: $(SANITIZER)  ## run the kernels' IR on the CPU, checking bounds, races and reads of unwritten memory
	.venv-sanitize/bin/python -m tests.sanitized

$(SANITIZER): pyproject.toml
	@test -n "$(SANITIZE_PYTHON)" || { echo 'the sanitizer needs Python >= 3.12: name one with make sanitize SANITIZE_PYTHON=...' >&2; exit 1; }
	$(SANITIZE_PYTHON) -m venv .venv-sanitize
	.venv-sanitize/bin/python -m pip install ttsem==0.1.0 triton==3.8.0 torch numpy pytest hypothesis
	@touch $@

# A machine with a GPU may have no network: where there is no .venv, its own Python runs. REHEARSE=1 needs no GPU, and
# OUTPUT=DIR is where results go.
MINUTES ?= 9
gpu:  ## collect evidence from this machine's GPU within MINUTES=9, in gpu-report/; REHEARSE=1 runs it without one
	$(firstword $(wildcard $(BIN)/python) $(PYTHON)) -m experiments gpu --minutes $(MINUTES) $(if $(OUTPUT),--output $(OUTPUT)) $(if $(REHEARSE),--rehearse --again)

gpu-bundle: $(INSTALLED)  ## pack what make gpu needs on a machine without a network; TRITON=3.6.0 names its Triton
	$(or $(BUNDLE_PYTHON),$(BIN)/python) -m experiments.gpu.bundle $(if $(TRITON),--triton $(TRITON))

ratios: $(INSTALLED)  ## measure what a call costs, the tiles of the interpreter and the torch backend against others
	$(BIN)/python -m tests.ratios

lint: $(INSTALLED)  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove .venv and caches, keep the logs
	rm -rf .venv .venv-matrix .venv-sanitize build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
