# `make demo`: from nothing to a judged embedding. `make test`: everything, with every extra.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

.venv/core: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/all: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch torchvision
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@ .venv/core

demo: .venv/core
	$(BIN)/nearfar train digits --minutes 0.9 --out runs/demo --force

test: .venv/all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/all
	$(BIN)/ruff check nearfar tests benchmarks examples

clean:
	rm -rf .venv build *.egg-info
