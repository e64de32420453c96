# Everything that is done with this repository, by name. `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# rustup's cargo goes before one that the system may have.
export PATH := $(HOME)/.cargo/bin:$(PATH)

PYTHON := .venv/bin/python
MODULE := target/release/liboxigears.so
DEMO_DIR := .demo
# Written by deploy/setup.sh where libclang is not the system's.
ENV := if [ -e .venv/build.env ]; then . ./.venv/build.env; fi;

.PHONY: help build demo demo-stop test test-matrix bench verify fix

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Install what is missing and build the release module, target/release/liboxigears.so
	@deploy/setup.sh build
	@$(ENV) cargo build --release --locked
	@test -e $(MODULE)

demo: ## Word count over the King James Bible on a 3-shard cluster; FILE=text.txt takes another text
	@deploy/setup.sh demo
	@$(ENV) cargo build --release --locked
	@$(PYTHON) deploy/demo.py --dir $(DEMO_DIR) $(if $(FILE),--file '$(FILE)')

demo-stop: ## Stop the cluster that the demo left running
	@$(PYTHON) deploy/cluster.py down --dir $(DEMO_DIR)

test: ## Install what is missing, build, run every test; PARTS="cargo servers" runs some of them
	@deploy/setup.sh test
	@$(ENV) cargo build --release --locked
	@$(ENV) $(PYTHON) deploy/run_tests.py $(PARTS)

test-matrix: ## The tests marked `matrix`, on Redis 8.2 and Valkey 9.1
	@deploy/setup.sh test
	@$(ENV) cargo build --release --locked
	@$(PYTHON) deploy/run_tests.py matrix

bench: ## Compare with a client-side script and with Lua; ARGS="..." goes to the benchmark
	@deploy/setup.sh test
	@$(ENV) cargo build --release --locked
	@$(PYTHON) tests/bench/bench.py $(ARGS)

verify: ## Formatting, lints and the tidy checks; changes nothing
	@deploy/setup.sh test
	cargo fmt --all --check
	@$(ENV) set -x; cargo clippy --release --workspace --all-targets --locked -- -D warnings
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m ruff check
	$(PYTHON) -m pytest -q -p no:cacheprovider tests/tidy
	@if command -v cargo-deny >/dev/null; then set -x; cargo deny check; \
	else echo "cargo deny is not installed: licences and advisories are not checked (cargo install cargo-deny)"; fi

fix: ## The writing twin of verify: formats, and repairs what the lints can repair
	@deploy/setup.sh test
	cargo fmt --all
	@$(ENV) set -x; cargo clippy --fix --allow-dirty --allow-staged --release --workspace --all-targets --locked
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format
