# Every target sets up what it needs: a virtual environment in .venv, and the project installed in it with the versions of
# constraints.txt, or with the newest ones where LATEST=1 is given; what it finds set up the other way is changed.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready$(if $(LATEST),-latest)
.DEFAULT_GOAL := help
.PHONY: help train test mutants test-matrix test-gpu bench hub-build docs lint fix clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(READY): pyproject.toml setup.py scripts/setup.sh constraints.txt
	@PYTHON=$(PYTHON) LATEST=$(LATEST) bash scripts/setup.sh

train: $(READY)  ## teacher, unguided and guided student on 5,000 MNIST images: does guidance help?
	@$(BIN)/fastlg compare quickstart

test: $(READY)  ## the test suite (no GPU needed)
	@PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

mutants: $(READY)  ## single faults on purpose, one at a time: which of them does the suite let pass? (WORDS=...)
	@$(BIN)/python tests/mutate.py $(WORDS)

test-matrix:  ## kernels' tests and a training on the oldest and the newest stack, each in its own environment
	@$(PYTHON) scripts/test_matrix.py $(STACKS)

test-gpu: $(READY)  ## on a CUDA device: does it train, how fast, the tests that need one, the parts of a step
	@PYTHON=$(BIN)/python bash scripts/gpu.sh first

bench: $(READY)  ## measure what this machine can do
	@$(BIN)/fastlg bench

hub-build: $(READY)  ## write fastlg_kernels as Kernel Hub variants into kernels/build
	@$(BIN)/python kernels/hub_build.py

docs: $(READY)  ## the documentation as a site, build/docs/site; a dead link fails
	@$(BIN)/python -c 'import zensical' 2>/dev/null || $(BIN)/python -m pip install --quiet -e '.[docs]'
	@$(BIN)/python scripts/site.py

lint: $(READY)  ## style and import checks
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

fix: $(READY)  ## mend what lint can mend
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:  ## remove the environment, builds and caches; runs/ stays
	rm -rf .venv .venv-matrix build dist *.egg-info kernels/build kernels/torch-ext/*.egg-info .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
