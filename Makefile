# make test and make demo do their own set-up in .venv; a second run reuses it.
# On an offline machine, pip takes wheels from the folder in PIP_FIND_LINKS.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.zopeft-installed

export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

# What computes, for processors without AVX on one thread, and for AVX2 on two.
OLD ?= tests/test_golden.py tests/test_noise.py \
	tests/test_kernels_matrix.py tests/test_kernels_processors.py tests/test_engine.py \
	tests/test_methods_contracts.py tests/test_methods_directions.py tests/test_journal_rebuild.py \
	tests/test_training_mixin.py tests/test_finetuner_learned.py
AVX2 ?= tests/test_golden.py tests/test_engine.py tests/test_methods.py \
	tests/test_methods_directions.py tests/test_methods_rate.py tests/test_journal_rebuild.py \
	tests/test_training_trainer.py tests/test_finetuner_learned.py \
	tests/test_peft_matrix.py::test_the_defaults_of_a_type_converge

.PHONY: help setup test test-isa demo docs lint types format clean

help:
	@echo "make test    set up .venv, run the tests"
	@echo "make test-isa  the tests that compute, as other processors would run them"
	@echo "make demo    set up .venv, run the main job on the embedded model (under 5 minutes)"
	@echo "make docs    the pages of docs/, with strict links, into build/site"
	@echo "make lint    ruff;  make types  mypy;  make format  ruff format;  make clean"

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); echo "the venv module is missing; on Debian: apt install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --constraint constraints.txt setuptools
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	@touch $@

setup: $(STAMP)

test: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n 2 $(TESTS)

# Instruction sets of PyTorch, oneDNN and numba: a test that is green with some of them only is wrong.
test-isa: $(STAMP)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 \
		NUMBA_CPU_NAME=generic NUMBA_CPU_FEATURES= $(BIN)/python -m pytest -q -n 2 $(OLD)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \
		$(BIN)/python -m pytest -q -n 2 $(AVX2)

demo: $(STAMP)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=2 $(BIN)/zopeft demo --out demo --overwrite

docs: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt "mkdocs-material>=9"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict --site-dir build/site

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
