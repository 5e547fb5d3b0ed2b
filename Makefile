# `make demo` and `make test` set up .venv by themselves; the second time that takes no time.
PYTHON ?= python3
BIN := .venv/bin
# More options for pytest, such as PYTEST=--cov.
PYTEST ?=
# Large pages for PyTorch's large tensors, where the system gives them when asked: 5% less time a training step.
export THP_MEM_ALLOC_ENABLE := 1

.PHONY: help install demo demo-all test bench abuse lint sbom vulnerabilities pretrain clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

install:  ## create .venv with the pinned dependencies
	@$(PYTHON) scripts/install.py

demo: install  ## plant a backdoor in the built-in model, remove it, measure every step
	$(BIN)/disp demo

demo-all: install  ## the same for all three attack targets
	$(BIN)/disp demo --target all

test: install  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

bench: install  ## time decoding, saliency and training beside a plain loop, some ten minutes, and write the tables
	$(BIN)/python -m disp.benchmarks.speed --out docs/results/bench
	$(BIN)/python scripts/bench_tables.py

abuse: install  ## kill, starve, damage and fuzz every command, some minutes, and count
	nice $(BIN)/python -m pytest -q tests/abuse -m "abuse or not abuse" $(PYTEST)

lint: install  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Tools that only these two need, in a place of their own.
TOOLS := .venv/tools

sbom: install  ## write dist/sbom.cdx.json, a CycloneDX list of all that make installs
	@$(BIN)/python -m venv $(TOOLS)
	@$(TOOLS)/bin/pip install --quiet cyclonedx-bom
	@mkdir -p dist
	$(TOOLS)/bin/cyclonedx-py environment --of JSON -o dist/sbom.cdx.json $(BIN)/python

vulnerabilities: install  ## look the pinned versions up among known vulnerabilities (needs the network)
	@$(BIN)/python -m venv $(TOOLS)
	@$(TOOLS)/bin/pip install --quiet pip-audit
	$(TOOLS)/bin/pip-audit --no-deps --disable-pip -r requirements.lock

pretrain: install  ## train the built-in model from scratch (two hours on one core) and put it in its place
	$(BIN)/python -m studies.pretrain --out runs/pretrain
	cp runs/pretrain/*.* src/disp/models/builtin/

clean:  ## remove .venv and run folders
	rm -rf .venv runs
