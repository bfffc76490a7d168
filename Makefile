# Everything a person does with a checkout. `make` alone lists it.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON := .venv/bin/python
# Processes that run tests at once: half as many again as there are cores, as many tests wait for servers.
CORES := $(shell getconf _NPROCESSORS_ONLN)
JOBS ?= $(shell echo $$(($(CORES) * 3 / 2)))
# More options for pytest: make test ARGS="-k restore"
ARGS ?=

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Tests start hundreds of processes: each would compile the program anew.
unexport PYTHONDONTWRITEBYTECODE

# --- Try it ---

.PHONY: run
run: .venv/service ## Set up, back up FOLDER (default: this project), prove a restore, serve the console
	$(PYTHON) manage.py demo --serve $(if $(FOLDER),--folder "$(FOLDER)")

.PHONY: demo
demo: .venv/service ## The same, but end after the proof
	$(PYTHON) manage.py demo $(if $(FOLDER),--folder "$(FOLDER)")

# --- Check it ---

.PHONY: check
check: lint test ## All checks and all tests

.PHONY: lint
lint: .venv/dev ## Format, lint, layers, types, Django's checks, missing migrations
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	.venv/bin/lint-imports
	$(PYTHON) -m mypy
	$(PYTHON) -m yamllint --strict deploy
	$(PYTHON) manage.py check
	$(PYTHON) manage.py makemigrations --check --dry-run

.PHONY: test
test: .venv/dev ## All tests, with real servers where they are or can be installed
	-deploy/dev-services install
	$(PYTHON) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

.PHONY: test-fast
test-fast: .venv/dev ## Tests that need no server
	$(PYTHON) -m pytest -n $(JOBS) --dist worksteal -m "not services and not scenario and not slow" $(ARGS)

.PHONY: fuzz
fuzz: .venv/dev ## Feed one decoder, TARGET=name, with a coverage-guided fuzzer (pip install atheris)
	$(PYTHON) -m tests.fuzz $(TARGET) $(ARGS)

.PHONY: bench
bench: .venv/dev ## Measure everything, beside other backup programs: ARGS="compare big" (bench/)
	-$(PYTHON) -m bench.peers
	$(PYTHON) -m bench $(ARGS)

.PHONY: format
format: .venv/dev ## Format the code and fix what can be fixed
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

.PHONY: rules
rules: .venv/dev ## Write docs/rules.md from the tests' markers
	$(PYTHON) -m tests.support.rules_page

.PHONY: limits
limits: .venv/dev ## Write docs/limits.md from the code's constants
	$(PYTHON) -m tests.support.limits_page

.PHONY: invariants
invariants: .venv/dev ## Write docs/invariants.md from the tests' markers
	$(PYTHON) -m tests.support.invariants_page

# --- Servers for development ---

.PHONY: services
services: ## Start Redis, PostgreSQL, MinIO and Ceph RGW on loopback ports
	deploy/dev-services start

.PHONY: services-stop
services-stop: ## End them and delete their data
	deploy/dev-services stop

.PHONY: clean
clean: services-stop ## Remove what was built; var/ (your data) stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis staticfiles
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- The environment: stamps that say what is installed in .venv ---

.venv/service: requirements.txt requirements-engine.txt deploy/bootstrap
	deploy/bootstrap requirements.txt
	@touch $@

.venv/dev: requirements-dev.txt requirements-keys.txt requirements-sources.txt .venv/service
	deploy/bootstrap requirements-dev.txt
	@touch $@
