# `make help` says what there is. Everything runs from .venv, which needs only python3 with its venv module.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test check format bench chaos screenshot metrics clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

demo: .venv/runs ## import a real disk image through a daemon of its own and show the records
	$(BIN)/imageopsd demo

test: .venv/tests ## run every test; what the machine lacks is skipped and counted
	$(BIN)/python -m pytest $(ARGS)

check: .venv/tests ## format, lint, types, floors
	$(BIN)/ruff format --check daemon tests
	$(BIN)/ruff check daemon tests
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: .venv/tests ## put the code into its form
	$(BIN)/ruff format daemon tests
	$(BIN)/ruff check --fix daemon tests

bench: .venv/tests ## measure, and print ratios against peers and the machine's own limit
	$(BIN)/python -m tests.bench $(ARGS)

chaos: .venv/tests ## end the daemon some hundred times under load and count what is lost or doubled
	$(BIN)/python -m tests.chaos $(ARGS)

screenshot: .venv/tests ## take the README's picture of the live page again
	$(BIN)/python -m tests.acceptance.screenshot daemon/docs/live-page.png

metrics: .venv/tests ## write the metric reference, daemon/METRICS.md, again
	$(BIN)/python -m tests.telemetry.metric_reference

clean: ## remove what these commands made
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis daemon/*.egg-info

.venv/runs: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "imageopsd needs Python 3.11 or newer; try make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	touch $@

.venv/tests: .venv/runs
	$(INSTALL) --editable '.[test,check]'
	touch $@
