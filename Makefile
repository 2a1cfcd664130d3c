# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv when it is missing.
PYTHON ?= python3
# On Linux the torch of PyPI brings several GB of CUDA libraries; where pip is offered a CPU build of this version (see
# pytorch.org for its index), it takes that. TORCH='torch==2.13.0+cpu' insists on it.
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: demo test lint

# torch first and all under constraints.txt: no later package then replaces it by another version.
$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt $(TORCH)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: $(BIN)/.installed
	$(BIN)/prism demo --out demo_output

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest
