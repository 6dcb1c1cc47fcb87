# From a bare Python 3.11 or newer: `make demo` shows it, `make test` tests it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# make bench PART="contrast isotropy" runs these benchmarks only. benchmarks/contrastive_search.py compares with transformers
# 4.55.4 where PEER names an interpreter that has it.
PART ?=
PEER ?=

.PHONY: demo test lint bench gpu clean

demo: $(VENV)/.installed
	$(BIN)/decoding demo

test: $(VENV)/.test-installed
	$(BIN)/pytest

lint: $(VENV)/.lint-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.bench-installed
	PYTHON=$(abspath $(BIN)/python) PEER="$(PEER)" benchmarks/cpu.sh $(PART)

# The GPU tests and all benchmarks, on a machine with a GPU and this library's requirements in PYTHON.
gpu:
	PYTHON=$(PYTHON) benchmarks/gpu.sh

clean:
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/.bench-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[lora,lm-eval]'
	touch $@ $(VENV)/.installed

$(VENV)/.test-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/.lint-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[test,lint]'
	touch $@ $(VENV)/.installed $(VENV)/.test-installed
