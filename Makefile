# `make run` and `make test` do their own set-up; see README.md.
PYTHON ?= python3.11
PYTHON := $(shell command -v $(PYTHON) 2>/dev/null || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
ADDRESS ?= 127.0.0.1
PORT ?= 5000

export MLFLOW_DISABLE_TELEMETRY ?= true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION ?= false
export PATH := $(abspath $(BIN)):$(PATH)
# the same modules are read by dozens of processes: each would compile them anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup run test test-slow test-all first-hour lint style types layers bench bench-toy ui \
	pictures clean

setup: $(VENV)/.core

$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint,uv]'
	touch $@

run: setup
	mlflow run . --env-manager=local --experiment-name wua

test: $(VENV)/.test
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: $(VENV)/.test
	python -m pytest -n 2 --dist worksteal -m "slow and not first_hour"

test-all: test test-slow

# twelve first hours with one's own work: each minutes long, from the data to a verdict
first-hour: $(VENV)/.test
	python -m pytest -n 2 --dist load -m first_hour tests/first_hour

lint: style types layers

style: $(VENV)/.test
	ruff check .

types: $(VENV)/.test
	mypy

layers: $(VENV)/.test
	lint-imports

# calflops declares packages that it does not need
$(VENV)/.bench: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps calflops
	touch $@

bench: $(VENV)/.bench
	python benchmarks

# every benchmark for a few seconds, to see that it runs; the figures mean nothing
bench-toy: $(VENV)/.test
	python benchmarks --toy

ui: setup
	python -m wua_mlflow.cli.ui --host $(ADDRESS) --port $(PORT)

pictures: $(VENV)/.test
	python docs/pictures.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
