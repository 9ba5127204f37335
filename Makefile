# One environment in .venv, made when a target first needs it: by uv if it is installed, else by venv and pip.
#   make run ARGS="--json"        more arguments for the command behind a target
#   make PYTHON=python3.12 run    with another Python (3.11 to 3.13)
#   make UV= run                  without uv

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13; do $$p --version >/dev/null 2>&1 && echo $$p && exit; done; echo python3)
UV := $(shell uv --version >/dev/null 2>&1 && echo uv)
ARGS ?=
PORT ?= 5000
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/.installed
BEGUN := $(VENV)/.installing
# pip keeps the packages it fetched beside what it unpacks from them.
NEEDED_GB := $(if $(UV),8,11)
RECENT := -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1

ifeq ($(UV),uv)
CREATE = uv venv --quiet --python $(PYTHON) $(VENV)
INSTALL = uv pip install --compile-bytecode --python $(BIN)/python
else
CREATE = $(PYTHON) -m venv $(VENV)
INSTALL = { $(BIN)/python -m pip --version >/dev/null 2>&1 || $(CREATE); } && $(BIN)/python -m pip install
endif

.DEFAULT_GOAL := help
.PHONY: help setup run test quick-test bench lint format types contracts docs k8s-golden mlflow constraints clean broken

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(DONE) ## make the environment in .venv

# A broken or unfinished environment (BEGUN exists) is made again; DONE is removed first and written last.
$(DONE): pyproject.toml constraints.txt $(if $(wildcard $(BIN)/lwfed),,broken)
	@$(PYTHON) $(RECENT) || { echo "error: $(PYTHON) is not Python 3.11 or later -> make PYTHON=python3.12 ..." >&2; exit 1; }
	@if [ -e $(BEGUN) ] || ! $(BIN)/python $(RECENT); then \
	  echo "making $(VENV) with $(if $(UV),uv,venv and pip): PyTorch and its libraries take minutes and 7 GB"; \
	  rm -f $(DONE) && rm -rf $(VENV); \
	  free=$$(df -Pk . | awk 'NR == 2 { print int($$4 / 1000000) }'); \
	  [ "$${free:-$(NEEDED_GB)}" -ge $(NEEDED_GB) ] || { echo "error: $$free GB are free here, and making $(VENV) takes $(NEEDED_GB) -> make room, or clone to a larger disk" >&2; exit 1; }; \
	  $(CREATE); \
	fi
	@touch $(BEGUN) && rm -f $(DONE)
	$(INSTALL) -c constraints.txt -e '.[dev]'
	@touch $(DONE) && rm -f $(BEGUN)

run: $(DONE) ## train the built-in experiment, from its first stage to its report
	$(BIN)/lwfed run $(ARGS)

# Files in their order, for the long ones come first; by default those with few tests, however long, would be the last.
test: $(DONE) ## run all tests except the measurements
	$(BIN)/python -m pytest -m "not bench" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

quick-test: $(DONE) ## run the tests that take no more than a few seconds
	$(BIN)/python -m pytest -m "not bench and not slow" $(ARGS)

bench: $(DONE) ## run the measurements
	$(BIN)/python -m pytest -m bench -s $(ARGS)

lint: $(DONE) ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DONE) ## fix style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DONE) ## check types
	$(BIN)/mypy

contracts: $(DONE) ## check the import rules
	$(BIN)/lint-imports

docs: $(DONE) ## write docs/spec.md and docs/cli.md again from the code
	$(BIN)/python -m lwfed.cli.reference docs

k8s-golden: $(DONE) ## write tests/golden/k8s again from k8s/ (needs kubectl or kustomize)
	$(BIN)/python -m tests.unit.k8s.rendered

mlflow: $(DONE) ## open the MLflow UI on the runs of this folder (PORT=5000)
	MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true \
	  $(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db --port $(PORT) $(ARGS)

constraints: ## take the newest versions that pyproject.toml allows, and write them to constraints.txt
	rm -f $(DONE) && rm -rf $(VENV) && $(CREATE)
	$(INSTALL) -e '.[dev]'
	{ grep '^#' constraints.txt; $(BIN)/python -c 'import re; from importlib.metadata import distributions; \
	print(*sorted({re.sub("[-_.]+", "-", found.name).lower() + "==" + found.version for found in distributions() \
	if found.name not in ("lwfed", "pip")}), sep="\n")'; } > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt && touch $(DONE)

clean: ## remove .venv, caches and build outputs; runs stay
	rm -f $(DONE)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist *.egg-info
	find lwfed tests -name __pycache__ -type d -prune -exec rm -rf {} +
