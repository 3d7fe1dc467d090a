# xtee: every target installs what it lacks (Debian, as root) and then does its work.
# `make` alone lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
# The steps share target/, namespaces and CPUs: `make -j` must not mix them.
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo test test-unit test-e2e bench lint build clean tools-build tools-lint tools-run cargo

# Where rustup puts cargo: a shell that was opened before its installation does not know it yet.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin

# The lab's scripts leave nothing in the work tree.
export PYTHONDONTWRITEBYTECODE := 1

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
XTEE := $(abspath $(TARGET_DIR))/release/xtee
# The lock file decides versions; it is not to be changed by a build.
LOCKED := $(if $(wildcard Cargo.lock),--locked)
STEP := tests/step.sh

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: tools-run build ## client, instance and collector in namespaces; a mirror, a sensor that alerts, the balance
	@tests/lab/probe.py
	@XTEE=$(XTEE) tests/lab/demo.py

test: test-unit test-e2e ## every test; the end-to-end ones need root
	@$(STEP) --total

test-unit: tools-build cargo
	@$(STEP) "unit and property tests" cargo test $(LOCKED) --lib --bins
	@$(STEP) "documentation tests" cargo test $(LOCKED) --doc

# Serially: they own CPUs, interfaces and bandwidth while they run. As root nothing may be skipped.
test-e2e: tools-build tools-run cargo
	@if [ "$$(id -u)" -eq 0 ]; then \
		tests/lab/probe.py; \
		export XTEE_FORBID_SKIP=1; \
	else \
		echo 'make test: not root, so the end-to-end tests skip themselves; run it as root for all of them'; \
	fi; \
	$(STEP) "the lab's own tests" python3 -m unittest discover -s tests/lab -p 'test_*.py'; \
	$(STEP) "end-to-end tests" cargo test $(LOCKED) --test '*' -- --test-threads=1

bench: tools-run build ## performance, compared with tc mirred and others
	@tests/lab/probe.py
	@XTEE=$(XTEE) perf/run.sh

lint: tools-build tools-lint cargo ## clippy, formats, documentation, shell scripts, licences of the dependencies
	@$(STEP) "cargo fmt" cargo fmt --check
	@$(STEP) "clang-format" clang-format --dry-run -Werror $(wildcard bpf/*.c bpf/*.h)
	@$(STEP) "shellcheck" shellcheck $(wildcard .ci/run tests/*.sh tests/lab/*.sh perf/*.sh)
	@$(STEP) "python" tests/syntax.py $(wildcard tests/*.py tests/lab/*.py perf/*.py)
	@$(STEP) "licences" tests/licences.py
	@$(STEP) "clippy" cargo clippy $(LOCKED) --all-targets -- -D warnings
	@RUSTDOCFLAGS="-D warnings" $(STEP) "rustdoc" cargo doc $(LOCKED) --no-deps

build: tools-build cargo ## the release binary, target/release/xtee
	@$(STEP) "release build" cargo build $(LOCKED) --release

clean: ## remove everything that was built
	rm -rf -- $(TARGET_DIR)

tools-build:
	@tests/install.sh build

tools-lint:
	@tests/install.sh lint

tools-run:
	@tests/install.sh run

# Recipes of the targets above run cargo; this says in words what is wrong with it.
cargo:
	@tests/toolchain.sh
