# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv when it is missing.
PYTHON ?= python3
# On Linux the torch of PyPI brings several GB of CUDA libraries; where pip is offered a CPU build of this version (see
# pytorch.org for its index), it takes that. TORCH='torch==2.13.0+cpu' insists on it.
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: demo docs matbench-demo test lint

# torch first and all under constraints.txt: no later package then replaces it by another version. The extra
# device-search lies beside, where its test finds it: matgl would import what comes with it.
$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt $(TORCH)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/pip install -q --no-deps matbench==0.6
	$(BIN)/pip install -q -c constraints.txt --no-deps --target .venv/device-search nvalchemi-toolkit-ops warp-lang
	touch $@

demo: $(BIN)/.installed
	$(BIN)/prism demo --out demo_output

# Matbench from its file to a validated submission: alloys in place of the official data, two seeds, a small model.
matbench-demo: $(BIN)/.installed
	rm -rf demo_output/matbench
	$(BIN)/python examples/matbench/make_trial_data.py demo_output/matbench/trial.json.gz
	$(BIN)/python examples/matbench/run.py --task matbench_jdft2d --data demo_output/matbench/trial.json.gz --seeds 0 1 \
		--out demo_output/matbench/runs --epochs 5 --lr 5e-3 --set dim=32 --set num_layers=2 --set cell_cutoff=8.0
	$(BIN)/python examples/matbench/assemble.py demo_output/matbench/runs --authors "A. Trial" --allow-local-data \
		--out demo_output/matbench/submission

# The site, into site/; every warning is an error.
docs: $(BIN)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

# One thread a worker: several that wait for each other take longer than one.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(shell nproc) --dist worksteal
