# Every target sets up what it needs by itself. Nothing here must be typed first.
PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
RUN := $(VENV)/bin/python -m
READY := $(VENV)/.ready
PYTEST = pytest --numprocesses $(WORKERS) --dist loadfile
EXPERIMENT ?= default
EXPERIMENTS ?= default
SPACE ?= default
TRIALS ?= 30
WORKERS ?= 2
FORMAT ?= safetensors
ONLY ?=
SEEDS ?= 10
ARGS ?=
ACTIVATIONS := sigmoid tanh relu leaky_relu elu gelu silu softplus
# Images that set this would make every command compile all packages anew: 13 s to import dlcourse instead of 4 s.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup lock topics lint test test-fast test-lowest bench reproduce doctor ui screenshots wheel clean

help:  ## List the targets
	@grep -hE '^[a-z%<>-]+:.*##' Makefile | sed -E 's/^([a-z%-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-18s %s\n", $$1, $$2}'
	@echo; echo 'A topic stands in place of %; `make topics` lists them.'
	@echo 'ARGS="--model.lr 0.05" changes settings; EXPERIMENT=table takes experiments/<topic>/table.yaml.'
	@echo 'WORKERS=0 runs the tests in one process, where a debugger can stop them.'

setup: $(READY)  ## Make .venv from requirements.lock (every other target does it by itself)

# The interpreter, the disk and uv are looked at before anything is downloaded.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "dlcourse needs Python 3.11 or newer; set PYTHON=/path/to/one" >&2; exit 1; }
	@$(PYTHON) -c 'import os, shutil, sys; free = shutil.disk_usage(".").free / 1e9; \
		sys.exit(0 if free > 8 or os.path.exists("$(VENV)") else f"the packages take 6 GB and {free:.1f} GB of disk are free: make room for 8 GB first")'
	@command -v uv >/dev/null || test -x .tools/bin/uv || \
		$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .tools 'uv>=0.8,<1'
	@PATH="$(CURDIR)/.tools/bin:$$PATH" && \
		{ test -x $(VENV)/bin/python || uv venv --quiet --no-python-downloads --python "$$(command -v $(PYTHON))" $(VENV); } && \
		VIRTUAL_ENV="$(CURDIR)/$(VENV)" uv pip sync --quiet requirements.lock && \
		VIRTUAL_ENV="$(CURDIR)/$(VENV)" uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

lock: $(READY)  ## Renew requirements.lock to the newest versions that pyproject.toml admits
	PATH="$(CURDIR)/.tools/bin:$$PATH" uv pip compile --quiet --upgrade --universal --generate-hashes --no-annotate \
		--python-version 3.11 --all-extras --group dev pyproject.toml --output-file requirements.lock

topics: $(READY)  ## List the topics
	@$(RUN) dlcourse topics

train-%: $(READY)  ## Train a topic, as in make train-height-weight
	@$(RUN) dlcourse train $* --config $(EXPERIMENT) $(ARGS)

compare-%: $(READY)  ## Train several experiments side by side: EXPERIMENTS="sigmoid relu"
	@$(RUN) dlcourse compare $* $(EXPERIMENTS) $(ARGS)

compare-activations: $(READY)  ## The diabetes network with each activation, 1000 epochs each
	@$(RUN) dlcourse compare diabetes $(ACTIVATIONS) --trainer.max_epochs 1000 $(ARGS)

sweep-%: $(READY)  ## Choose a topic's settings by Optuna: SPACE=default TRIALS=30
	@$(RUN) dlcourse sweep $* --config $(EXPERIMENT) --space $(SPACE) --trials $(TRIALS) $(ARGS)

export-%: $(READY)  ## Write a topic's best model into exports/, verified: FORMAT=safetensors, checkpoint, pt2, onnx
	@$(RUN) dlcourse export $* --format $(FORMAT) $(ARGS)

overfit-%: $(READY)  ## Can a topic's model fit one batch? PASS or FAIL
	@$(RUN) dlcourse overfit $* --config $(EXPERIMENT) $(ARGS)

serve-%: $(READY)  ## Answer requests by a topic's champion, which dlcourse promote chooses
	@$(RUN) dlcourse serve $* $(ARGS)

doctor: $(READY)  ## Look at Python, torch, GPU, disk, data and store
	@$(RUN) dlcourse doctor $(ARGS)

ui: $(READY)  ## Open MLflow's pages on the runs
	@$(RUN) dlcourse ui $(ARGS)

lint: $(READY)  ## Style, types and the direction of imports
	@$(RUN) ruff check && $(RUN) ruff format --check && $(RUN) mypy && $(VENV)/bin/lint-imports --no-logo

test: lint  ## make lint, and all tests
	@$(RUN) $(PYTEST) $(ARGS)

test-fast: $(READY)  ## The quick tests alone, in under a minute: those not marked slow
	@$(RUN) $(PYTEST) -m "not slow" $(ARGS)

test-lowest: $(READY)  ## The tests with the lowest versions that pyproject.toml admits, in .venv-lowest
	@PATH="$(CURDIR)/.tools/bin:$$PATH" && \
		{ test -x $(LOWEST)/bin/python || uv venv --quiet --no-python-downloads --python $(VENV)/bin/python $(LOWEST); } && \
		uv pip compile --quiet --resolution lowest-direct --python $(VENV)/bin/python --no-annotate \
			--all-extras --group dev pyproject.toml --output-file $(LOWEST)/lowest.txt && \
		VIRTUAL_ENV="$(CURDIR)/$(LOWEST)" uv pip sync --quiet $(LOWEST)/lowest.txt && \
		VIRTUAL_ENV="$(CURDIR)/$(LOWEST)" uv pip install --quiet --no-deps --no-build-isolation --editable .
	@$(LOWEST)/bin/python -m $(PYTEST) $(ARGS)

bench: $(READY)  ## Measure start-up, training and tracking beside a plain loop
	@$(RUN) benchmarks.run $(ARGS)

reproduce: $(READY)  ## Measure docs/results.json anew: ONLY=topic/experiment SEEDS=10
	@$(RUN) benchmarks.reproduce $(ONLY) --seeds $(SEEDS) $(ARGS)

screenshots: $(READY)  ## Make the pictures of docs/mlflow.md anew, with Chromium
	@$(RUN) docs.take_screenshots docs/figures

wheel: $(READY)  ## Build the wheel into dist/
	@$(RUN) hatchling build --target wheel

clean:  ## Remove .venv (runs and data stay)
	rm -rf $(VENV) $(LOWEST) .tools
