# What a newcomer and a developer type. Each target brings what it needs: `make run` on a fresh clone is enough.

ENGINE ?= vllm          # vllm, or simulated, which installs no vLLM and needs no model
PYTHON ?= python3.11    # makes the virtual environment
JOBS   ?= 2             # test processes
ARGS   ?=               # handed on: make run ARGS="--workers 2", make test ARGS="-k quota"

SHELL  := bash
engine := $(strip $(ENGINE))
venv   := .venv/bin
setup   = PYTHON=$(strip $(PYTHON)) deploy/scripts/setup.sh

.DEFAULT_GOAL := help
.PHONY: help setup tools protos lint check test test-system run demo bench-mesh clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@awk -F '[?=#]+' '/^[A-Z]+ *\?=/ {printf "  %-8s %-11s %s\n", $$1, $$2, $$3}' $(MAKEFILE_LIST)

run: setup ## Start a mesh, show three tenants at work, serve until Ctrl-C
	@exec $(venv)/forebay up --engine $(engine) --demo $(ARGS)

demo: setup ## The same, and stop by itself
	@exec $(venv)/forebay up --engine $(engine) --demo --exit-after-demo $(ARGS)

setup: ## Install everything into .venv
	@$(setup) $(engine)

tools: # what checks need: no engine
	@$(setup) simulated

protos: tools ## Generate services/forebay/api from protos/
	PYTHON=$(venv)/python deploy/scripts/generate-stubs.sh

lint: tools ## Format the code and mend what can be mended
	$(venv)/ruff format
	$(venv)/ruff check --fix

check: tools ## Style, types, import contracts, protobuf contracts, stubs, dependencies
	@deploy/scripts/check.sh

test: ## Every test that needs nothing but pip
	@$(setup) vllm
	$(venv)/pytest -n $(strip $(JOBS)) --dist loadfile -m "not system" $(ARGS)

test-system: ## Tests that need packages of the system, which this installs by apt
	@$(setup) vllm
	@deploy/scripts/test-system.sh $(ARGS)

bench-mesh: tools ## Measure the mesh with an engine that costs nothing
	@$(venv)/python -m tests.bench.mesh $(ARGS)

clean: ## Remove everything that was made, except .venv and downloaded models
	rm -rf .forebay .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
