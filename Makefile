# make demo   set up and run the example jobs: generate, show, score, accuracy
# make test   set up and run the tests
# make test-all  the slow ones too, with programs compiled as users compile them
# make lint   formatting, lint and types
# make audit  dependencies that do not fit each other, or have known vulnerabilities
# make bench  the benchmarks, with figures to compare with bench/RESULTS.md

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
BIN := $(VENV)/bin
DEMO := jobs/examples/arithmetic

.PHONY: demo test test-all lint audit bench clean

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Penstock needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-$(EXTRAS): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(VENV)/.installed
	@rm -rf $(DEMO)/out
	$(BIN)/penstock run $(DEMO)/generate.yaml
	$(BIN)/penstock show $(DEMO)/out/generate --limit 5 --columns prompt,text,answer
	$(BIN)/penstock run $(DEMO)/score.yaml
	$(BIN)/python -m jobs.examples.arithmetic.accuracy $(DEMO)/out/generate $(DEMO)/out/score

test: $(VENV)/.installed-$(EXTRAS)
	$(BIN)/python -m pytest

test-all: $(VENV)/.installed-$(EXTRAS)
	PENSTOCK_TESTS_COMPILE="as users do" $(BIN)/python -m pytest -m ''

lint: $(VENV)/.installed-$(EXTRAS)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

audit: $(VENV)/.installed-$(EXTRAS)
	$(BIN)/python -m pip check
	@if $(BIN)/python -c 'import socket; socket.create_connection(("api.osv.dev", 443), 5)' 2>/dev/null; then \
	  $(BIN)/python -m pip install --quiet pip-audit && \
	  $(BIN)/python -m pip_audit --vulnerability-service osv --skip-editable --progress-spinner off; \
	else echo "not audited for vulnerabilities: api.osv.dev cannot be reached from here"; fi

bench: $(VENV)/.installed-$(EXTRAS)
	$(BIN)/python -m bench.throughput
	$(BIN)/python -m bench.pipeline_overhead
	$(BIN)/python -m bench.plan_and_commit
	$(BIN)/python -m bench.load_checkpoint

clean:
	rm -rf $(VENV) $(DEMO)/out
