# Every target sets up what it needs and does nothing twice. `make help` lists the targets.
#
#   PYTHON=python3.13    use that Python, in its own virtual environment (.venv-3.13)
#   PYTEST_ARGS=…        for pytest, as in: make test PYTEST_ARGS="tests/mesh -x"
#   DEMO_ARGS=--keep     for `raven-vpn demo`
#   BENCH_ARGS=--quick   for the benchmarks

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
# Folders of administrators' programs; the PATH of root after a plain `su` lacks them.
export PATH := $(PATH):/usr/sbin:/sbin

ifdef PYTHON
override PYTHON := $(shell PYTHON='$(PYTHON)' tools/python.sh)
$(if $(PYTHON),,$(error PYTHON is not usable))
export PYTHON
VENV ?= .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
else
VENV ?= .venv
endif
BIN := $(VENV)/bin
IS_ROOT := $(filter 0,$(shell id -u))

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | while IFS='|' read -r target text; do printf 'make %-9s %s\n' "$$target" "$$text"; done

.PHONY: demo
demo: venv packages need-root ## join regions in network namespaces and show their traffic (root)
	@$(BIN)/raven-vpn demo $(DEMO_ARGS)

.PHONY: test
test: lint packages tools cluster ## lint, then every test; without root the tests that need it are skipped
	@echo "==> pytest"
	@$(BIN)/python -m pytest $(PYTEST_ARGS); status=$$?; [ $$status -eq 1 ] || exit $$status; \
	echo "==> failed tests once more, alone: some measure time and can fail on a loaded machine"; \
	$(BIN)/python -m pytest -v --last-failed --last-failed-no-failures none $(PYTEST_ARGS)

.PHONY: lint
lint: venv ## style, types, direction of imports, and the checks in tools/lint
	@echo "==> ruff, mypy, import-linter, tools/lint"
	@status=0; \
	$(BIN)/ruff check --quiet ravenvpn tests bench tools || status=1; \
	$(BIN)/ruff format --quiet --diff ravenvpn tests bench tools || status=1; \
	$(BIN)/mypy --no-error-summary || status=1; \
	$(BIN)/lint-imports >$(VENV)/import-linter.log 2>&1 || { cat $(VENV)/import-linter.log; status=1; }; \
	for check in tools/lint/[a-z]*.py; do $(BIN)/python $$check || status=1; done; \
	exit $$status

.PHONY: bench
bench: venv packages need-root ## measure against wireguard-go; table here, JSON and HTML in bench/results/ (root)
	@wireguard_go=$$(tests/tools/build-wireguard-go.sh) || exit 1; \
	$(BIN)/python -m bench --wireguard-go "$$wireguard_go" $(BENCH_ARGS)

.PHONY: install
install: ## install ravenvpn and its systemd service on this host, in /opt/ravenvpn (root)
	@PYTHON='$(PYTHON)' tools/install.sh install

.PHONY: uninstall
uninstall: ## remove what `make install` installed and every entry of the agent on this host (root)
	@tools/install.sh uninstall

.PHONY: soak
soak: venv packages tools cluster ## the tests of several minutes that `make test` leaves out
	@$(BIN)/python -m pytest -m soak $(PYTEST_ARGS)

.PHONY: clean
clean: ## remove everything that the other targets made in this folder
	rm -rf .venv .venv-* .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	rm -rf build dist *.egg-info bench/results rust/target ravenvpn/dataplane/_native*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Tools built by make stay in $${XDG_CACHE_HOME:-$$HOME/.cache}/ravenvpn; remove that folder to build them again."

.PHONY: venv
venv: ## only the virtual environment
	@tools/venv.sh $(VENV)

.PHONY: packages
packages:
	@tools/packages.sh

# Programs for interoperability tests and benchmarks, built once into a cache outside of the clone.
.PHONY: tools
tools: ## wireguard-go, for interoperability tests
	@tests/tools/build-wireguard-go.sh >/dev/null || { [ "$${CI:-}" != true ] || exit 1; \
		echo "    Going on without wireguard-go; tests that need it are skipped." >&2; }

# Kubernetes control planes for tests/cluster, built once from their Go modules into the same cache.
.PHONY: kube
kube: ## Kubernetes for the tests: etcd, a control plane, flanneld (6 minutes, once)
	@tests/cluster/build.sh default

.PHONY: kube-all
kube-all: ## the same, with the oldest and newest version that are tested (15 minutes, once)
	@tests/cluster/build.sh all

# On a developer's machine one version or none is enough; CI tests all versions.
.PHONY: cluster
cluster:
	@if [ "$${CI:-}" = true ]; then tests/cluster/build.sh all; else tests/cluster/build.sh default || \
		echo "    Going on without Kubernetes; tests that need it are skipped." >&2; fi

.PHONY: need-root
need-root:
ifeq ($(IS_ROOT),)
	@echo "This target makes network namespaces and needs root: sudo make $(MAKECMDGOALS)" >&2; exit 1
endif
