# `make` lists the targets. All of them run what tools/setup put into .venv.
.DEFAULT_GOAL := help
.PHONY: help setup sandbox test lint check bench lock clean
BIN := .venv/bin
# Compiled once, not by each of the many processes that a test starts.
unexport PYTHONDONTWRITEBYTECODE
ARGS ?=

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

setup: ## Install what is missing: Debian packages (as root) and .venv
	@tools/setup

sandbox: setup ## Start the whole product privately and send a first message (root)
	@$(BIN)/opensend-milter sandbox demo

test: ## Run all tests; pass pytest's arguments as ARGS="..."
	@tools/setup tests
	@$(BIN)/pytest -n 4 --dist loadgroup $(ARGS)

lint: setup ## Check format, lint, types and layers
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

check: lint ## The quick round: lint, then the unit tests
	@$(BIN)/pytest -n 2 tests/unit $(ARGS)

bench: setup ## Measure: memory with large messages, announcing and delivering (root)
	@$(BIN)/python bench/memory.py
	@$(BIN)/python -m bench.delivery

lock: ## Write requirements.lock anew from pyproject.toml; ARGS="--upgrade" for newer versions
	@tools/lock $(ARGS)

clean: ## Remove .venv and what the tools cached
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
