# Everything a contributor runs. The work is done by scripts/ and the tools themselves.

PYTHON3 ?= python3
VENV := .venv/bin
IMAGE ?= debian-13
JOBS ?= 2
PYTEST_ARGS ?=
PYTEST = $(VENV)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
TIMINGS = -p tests.timings --durations=10

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-quick test-all soak test-fresh test-oldest check lint format bench docs lock upgrade
.PHONY: image clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: image ## Set up, build the image and run a first test on a real guest
	$(VENV)/python -m pytest -v example_suites/quickstart $(PYTEST_ARGS)

test: image ## Set up and run the tests that every change has to pass, real guests included
	$(PYTEST) $(TIMINGS) $(PYTEST_ARGS)

test-quick: setup ## Set up and run the tests that need no guest
	$(PYTEST) tests/libvirt tests/unit $(PYTEST_ARGS)

test-all: image ## Set up and run all tests
	$(PYTEST) $(TIMINGS) --override-ini="testpaths=docs tests" $(PYTEST_ARGS)

check: ## Run what CI runs, in a fresh clone of HEAD with an empty cache
	@$(PYTHON3) -m scripts.check --clone

soak: image ## Run the tests of faults at length, and say what they have measured
	$(VENV)/python -m pytest -v --soak tests/faults $(PYTEST_ARGS)

test-fresh: setup ## Run the demo in minimal Debian roots that have only make, git and python3 (as root)
	$(VENV)/python -m scripts.fresh $(SUITES)

test-oldest: ## Run unit tests and libvirt's test driver on the oldest versions that pyproject.toml allows
	@$(PYTHON3) scripts/setup.py --dev
	$(VENV)/python scripts/oldest.py $(PYTEST_ARGS)

lint: ## Check style, types, layers and spelling
	@$(PYTHON3) scripts/setup.py --dev
	@$(VENV)/python scripts/lint.py

format: ## Rewrite the code as the formatter wants it
	@$(PYTHON3) scripts/setup.py --dev
	$(VENV)/ruff check --fix-only --quiet .
	$(VENV)/ruff format .

bench: image ## Measure; tables on the terminal, JSON in bench/results/
	@$(VENV)/python scripts/bench.py

docs: ## Build the documentation, warnings are errors
	@$(PYTHON3) scripts/setup.py --dev
	$(VENV)/sphinx-build -W -n --keep-going -q docs docs/_build
	@echo "docs/_build/index.html"

lock: ## Write requirements/ anew after a change of pyproject.toml; what is locked stays where it can
	@$(PYTHON3) scripts/setup.py --dev
	$(VENV)/python scripts/lock.py

upgrade: ## Write requirements/ anew with today's releases, and run what CI runs on them
	@$(PYTHON3) scripts/setup.py --dev
	$(VENV)/python scripts/lock.py --upgrade
	$(PYTHON3) -m scripts.check

setup: ## Install host packages where allowed, make .venv
	@$(PYTHON3) scripts/setup.py

image: setup
	@$(VENV)/pytest-kvm images build $(IMAGE)

clean: ## Remove what make has made in this checkout (never images in the cache)
	@$(PYTHON3) scripts/clean.py
