# make demo   set up and run the example jobs: generate, show, score, accuracy
# make test   set up and run the tests
# make lint   formatting, lint and types
# make bench  the benchmarks, with figures to compare with bench/RESULTS.md

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
BIN := $(VENV)/bin
DEMO := jobs/examples/arithmetic

.PHONY: demo test lint bench clean

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

lint: $(VENV)/.installed-$(EXTRAS)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.installed-$(EXTRAS)
	$(BIN)/python -m bench.throughput
	$(BIN)/python -m bench.pipeline_overhead
	$(BIN)/python -m bench.plan_and_commit
	$(BIN)/python -m bench.load_checkpoint

clean:
	rm -rf $(VENV) $(DEMO)/out
