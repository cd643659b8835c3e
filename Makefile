# What a newcomer and a developer type. Each target brings what it needs: `make run` on a fresh clone is enough.

ENGINE ?= vllm          # vllm, or simulated, which installs no vLLM and needs no model
PYTHON ?=               # makes the virtual environment; the first of python3.11, 3.12, 3.13 and python3 by default
PINNED ?= yes           # no installs the newest releases instead of those of deploy/constraints/, which were tested
JOBS   ?= 2             # test processes
MODEL  ?=               # a directory or a hub id; SmolLM2-135M by default
TRACE  ?=               # a CSV of t,client,prompt_len,output_len for bench-fairness; generated traffic by default
ARGS   ?=               # handed on: make run ARGS="--workers 2", make test ARGS="-k quota"

SHELL  := bash
# gRPC tells of every connection that a test breaks on purpose.
export GRPC_VERBOSITY ?= ERROR
engine := $(strip $(ENGINE))
up      = $(venv)/forebay up --engine $(engine) $(if $(strip $(MODEL)),--model $(strip $(MODEL))) --demo
venv   := .venv/bin
setup   = PYTHON=$(strip $(PYTHON)) PINNED=$(strip $(PINNED)) deploy/scripts/setup.sh

.DEFAULT_GOAL := help
.PHONY: help install setup tools upgrade protos baseline lint format check check-versions test test-quick test-system run demo bench-mesh bench-quota bench-fairness chaos clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@sed -nE 's/^([A-Z]+) *\?= *(\S*) *# (.*)/  \1\t\2\t\3/p' $(MAKEFILE_LIST) | expand -t 14,26

run: install ## Start a mesh, show three tenants at work, serve until Ctrl-C
	@exec $(up) $(ARGS)

demo: install ## The same, and stop by itself
	@exec $(up) --exit-after-demo $(ARGS)

install: ## Install what serving needs into .venv: no linters, no test tools
	@$(setup) $(engine) run

setup: ## Install everything into .venv
	@$(setup) $(engine)

tools: # what checks need: no engine
	@$(setup) simulated

upgrade: tools ## Renew deploy/constraints/ with the newest releases, show what changed, run all tests; ARGS=--no-tests
	@PYTHON=$(strip $(PYTHON)) $(venv)/python deploy/scripts/upgrade.py $(engine) $(ARGS)

protos: tools ## Generate services/forebay/api from protos/
	PYTHON=$(venv)/python deploy/scripts/generate-stubs.sh

baseline: tools ## Take the present contracts as those that must not break
	$(venv)/buf build protos -o protos/baseline.binpb

lint: tools ## Style alone, in a second
	$(venv)/ruff check
	$(venv)/ruff format --check

format: tools ## Mend what style can mend by itself
	$(venv)/ruff check --fix
	$(venv)/ruff format

check: tools ## Style, types, import contracts, protobuf contracts, stubs, dependencies
	@deploy/scripts/check.sh

check-versions: tools ## Types and dependencies for Python 3.11, 3.12 and 3.13; no other interpreter is needed
	@$(venv)/python deploy/scripts/check_versions.py

test: ## Every test that needs nothing but pip
	@$(setup) vllm
	$(venv)/pytest -n $(strip $(JOBS)) --dist loadgroup -m "not system" $(ARGS)

test-quick: tools ## The quick tests: no vLLM, nothing slow, under a minute
	$(venv)/pytest -n $(strip $(JOBS)) --dist loadgroup -m "not system and not slow and not vllm" $(ARGS)

test-system: ## Tests that need packages of the system, which this installs by apt
	@$(setup) vllm
	@deploy/scripts/test-system.sh $(ARGS)

bench-mesh: tools ## Measure the mesh with an engine that costs nothing
	@$(venv)/python tests/bench/mesh.py $(ARGS)

bench-quota: tools ## Measure reservations, and try to overrun every limit while processes are killed
	@$(venv)/python tests/bench/quota.py $(ARGS)

bench-fairness: tools ## Compare the scheduler's fairness with others' in the simulator; TRACE=file for a trace of yours
	@$(venv)/python tests/bench/fairness.py $(if $(strip $(TRACE)),--trace $(strip $(TRACE))) $(ARGS)

chaos: tools ## Kill, pause and starve every kind of process under load; nothing may be lost, billed twice, hang or be left open
	@$(venv)/python -m tests.chaos.run $(ARGS)

clean: ## Remove everything that was made, except .venv and downloaded models
	rm -rf .forebay .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
