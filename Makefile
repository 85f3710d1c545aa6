# make demo   the main job on real data, from raw tables to a served score
# make test   every test
# make check  format, lint, types
# make bench  speed of the parts, one table

.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
DEMO_DIR ?= demo

.PHONY: help setup demo test check format bench clean

help:
	@sed -n 's/^# make/make/p' Makefile

setup: $(STAMP)

# Installed once; again when pyproject.toml changes.
$(STAMP): pyproject.toml
	@set -euo pipefail; \
	python=; \
	for each in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
	  if "$$each" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	    then python=$$each; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "riskfm needs Python 3.11 or newer with venv; found none." >&2; \
	  echo "Install it, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 2; fi; \
	echo "Setting up $(VENV) with $$("$$python" --version); this takes a few minutes, once."; \
	"$$python" -m venv $(VENV); \
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[train,demo,dev]'; \
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/riskfm demo -o $(DEMO_DIR)

test: $(STAMP)
	OMP_NUM_THREADS=1 POLARS_MAX_THREADS=2 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/python scripts/bench/run_all.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
