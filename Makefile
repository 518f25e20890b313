# `make` lists the targets. All but `docs` run what tools/setup put into .venv.
.DEFAULT_GOAL := help
.PHONY: help setup sandbox test lint check bench bench-quick bench-growth bench-lookup bench-console bench-live bench-http bench-delivery bench-flame bench-hostile chaos fuzz soak upgrade-test docs lock deb clean
BIN := .venv/bin
# Compiled once, not by each of the many processes that a test starts.
unexport PYTHONDONTWRITEBYTECODE
ARGS ?=

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

setup: ## Install what is missing: Debian packages (as root) and .venv
	@tools/setup

sandbox: setup ## Start the whole product privately and send a first message (root)
	@$(BIN)/opensend-milter sandbox demo

test: ## Run all tests; pass pytest's arguments as ARGS="..."
	@tools/setup tests
	@$(BIN)/pytest -n 5 --dist worksteal $(ARGS)

fuzz: setup ## Give each reader what strangers might send, a minute each; ARGS="--minutes 10 --target mime" (root)
	@$(BIN)/python -m tests.fuzz $(ARGS)

chaos: setup ## Do harm while mail flows, and count what became of it, 90 minutes (root); ARGS="--list" names the faults
	@$(BIN)/python -m tests.chaos $(ARGS)

upgrade-test: setup ## Upgrade a used installation of an earlier commit under load, and count; ARGS="--from COMMIT" (root)
	@$(BIN)/python -m tests.upgrade $(ARGS)

soak: setup ## Send for an hour at 60 % of what the machine takes, and look for growth; ARGS="--minutes 10" (root)
	@$(BIN)/python -m bench.soak $(ARGS)

lint: setup ## Check format, lint, types and layers
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

check: lint ## The quick round: lint, then the unit tests
	@$(BIN)/pytest -n 2 tests/unit $(ARGS)

bench: setup ## Measure: ours beside an empty milter, a quarter of an hour (root); see docs/performance.md
	@$(BIN)/python -m bench.compare $(ARGS)

bench-quick: setup ## The same in two minutes: what matters most; ARGS="--against COMMIT" compares with a commit
	@$(BIN)/python -m bench.compare --quick $(ARGS)

bench-growth: setup ## What a message costs beside a million rows; ARGS="--rows 10000000" for ten
	@$(BIN)/python -m bench.growth $(ARGS)

bench-lookup: setup ## How long it takes to find a message among a million; ARGS="--rows 10000000" for ten
	@$(BIN)/python -m bench.lookup $(ARGS)

bench-console: setup ## How large the console's pages are, and how long they take, among a million messages; ARGS="--rows 10000000" for ten
	@$(BIN)/python -m bench.console $(ARGS)

bench-live: setup ## How many messages a second are taken while 200 live pages of the console are open
	@$(BIN)/python -m bench.live $(ARGS)

bench-http: setup ## POST /v1/send beside SMTP, with rate limits and without
	@$(BIN)/python -m bench.front_doors $(ARGS)

bench-delivery: setup ## What announcing and delivering cost the worker
	@$(BIN)/python -m bench.delivery $(ARGS)

bench-hostile: setup ## How long a client waits while others send hostile shapes; ARGS="--only NAME" for some of them
	@$(BIN)/python -m bench.hostile $(ARGS)

bench-flame: setup ## Draw where serve's time goes under load; needs py-spy
	@$(BIN)/python -m bench.flame $(ARGS)

# In an environment of its own: nobody but a reader of the site needs it.
docs: ## Build the documentation as a site, in build/site/; a dead link is an error
	@test -x build/docs/bin/mkdocs || python3 -m venv build/docs
	@build/docs/bin/pip install --quiet --disable-pip-version-check --require-hashes -r docs/requirements.txt
	@NO_MKDOCS_2_WARNING=1 build/docs/bin/mkdocs build --strict --quiet
	@echo build/site/index.html

lock: ## Write requirements.lock anew from pyproject.toml; ARGS="--upgrade" for newer versions
	@tools/lock $(ARGS)

deb: setup ## Build dist/opensend-milter_VERSION_ARCH.deb, for this Debian release; ARGS="--version 1.2.3"
	@$(BIN)/python packaging/build.py $(ARGS)

clean: ## Remove .venv and what the tools cached
	rm -rf .venv tests/node/node_modules .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
