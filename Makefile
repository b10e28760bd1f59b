# Everything runs from .venv, which the first target that needs it creates. `make` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
SOURCES := service workers kernels deploy tests hatch_build.py
# Flags of the demo and of pytest: make demo FLAGS="--tokens 32768", make test FLAGS="-k client -n 0".
FLAGS ?=

.PHONY: help install demo test lint format bench lock clean distclean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Create .venv with the pinned dependencies

$(STAMP): requirements.lock pyproject.toml hatch_build.py $(shell find proto -name '*.proto')
	@deploy/quickstart/install.sh $(VENV)
	@touch $@

demo: $(STAMP) ## Start everything on loopback, ask about a book, show the figures, stop everything
	@$(PYTHON) deploy/quickstart/demo.py $(FLAGS)

test: $(STAMP) ## Run the tests that need no GPU
	@$(PYTHON) -m pytest -n 2 $(FLAGS)

lint: $(STAMP) ## Check format, style and types
	@$(PYTHON) -m ruff format --check $(SOURCES)
	@$(PYTHON) -m ruff check $(SOURCES)
	@$(PYTHON) -m mypy

format: $(STAMP) ## Format, and fix what can be fixed
	@$(PYTHON) -m ruff format $(SOURCES)
	@$(PYTHON) -m ruff check --fix $(SOURCES)

bench: $(STAMP) ## Run the benchmarks that fit this machine
	@$(PYTHON) tests/bench/decode_cpu.py $(FLAGS)

lock: $(STAMP) ## Resolve the dependencies anew and write requirements.lock
	@$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --extra dev --upgrade \
	  --no-emit-index-url --no-annotate --custom-compile-command "make lock" \
	  --output-file requirements.lock pyproject.toml

clean: ## Remove caches and generated stubs; sessions in .tactic stay
	@rm -rf dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find $(SOURCES) proto -name __pycache__ -prune -exec rm -rf {} +
	@find proto -name '*_pb2*.py*' -delete
	@rm -f $(STAMP)

distclean: clean ## Remove .venv, too
	@rm -rf $(VENV)
