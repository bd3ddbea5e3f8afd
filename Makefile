# make demo: the whole loop on this machine.  make test: set up and pass the tests.  Nothing else is needed before.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(CURDIR)/$(VENV)/bin
STAMP  := $(VENV)/.installed
RUN    ?= $(CURDIR)/runs/demo
SLOTS  ?= 4
JOB    ?= jobs/loop.py jobs/loop.yaml

# What trains or serves a model takes as long as all other integration tests together.
MODELS := $(addprefix tests/integration/test_,fused_layers.py learning_curve.py loop.py loop_placement.py serving.py sweep.py training.py)

.PHONY: help install demo serve lint unit calls models test test-cluster docs lock clean
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

install: $(STAMP) ## create .venv from the pinned lock (once)
$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned packages into $(VENV) (about two minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: install ## a small model loses, is fine-tuned, is served, and is judged again
	@exec env PATH=$(BIN):$$PATH RUN=$(RUN) SLOTS=$(SLOTS) bash jobs/on_local_ray.sh $(JOB) --set run_dir=$(RUN) --set serving.adapters_dir=$(RUN)/adapters

serve: install ## the base and its adapters on http://127.0.0.1:8000, until Ctrl-C
	@exec env PATH=$(BIN):$$PATH RUN=$(RUN) SLOTS=$(SLOTS) bash jobs/on_local_ray.sh jobs/serve.py jobs/serve.yaml --set adapters_dir=$(RUN)/adapters

lint: install ## style and types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

unit: install ## the fast tests, in two processes
	@$(BIN)/python -m pytest -n 2 --dist loadfile tests/unit

calls: install ## the integration tests that train and serve nothing
	@$(BIN)/python -m pytest tests/integration $(addprefix --ignore=,$(MODELS))

models: install ## the integration tests that train or serve a model
	@$(BIN)/python -m pytest $(MODELS)

test: install lint unit calls models ## everything: style, types, unit and integration tests

test-cluster: install ## scenarios on several hosts (network namespaces), in two processes: needs root and Debian's iproute2 redis-server openssh-server rsync; skipped with the reason elsewhere
	@$(BIN)/python -m pytest -ra -n 2 --dist loadfile --no-loadscope-reorder tests/cluster

docs: install ## the documentation into site/, strictly: a broken link or a page that loads from elsewhere fails
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.docs.lock
	@env NO_MKDOCS_2_WARNING=1 VLLM_LOGGING_LEVEL=ERROR $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

lock: install ## write the locks anew from pyproject.toml, keeping versions where they still fit
	@$(BIN)/python tools/lock.py

clean: ## remove runs and caches; keeps .venv
	rm -rf runs site .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
