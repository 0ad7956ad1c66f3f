# Every target sets up what it needs, says what it does, and does nothing twice. `make help` lists them.
#
#   PYTHON=python3.13    use that Python, with a virtual environment of its own (.venv-3.13)
#   PYTEST_ARGS=…        handed to pytest, as in: make test PYTEST_ARGS="tests/mesh -x"
#   DEMO_ARGS=--keep     handed to `raven-vpn demo`
#   BENCH_ARGS=--quick   handed to bench

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
# Where administrators' programs live; root by way of a plain `su` lacks it.
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
demo: venv packages need-root ## join regions in network namespaces and show what flows between them (root)
	@$(BIN)/raven-vpn demo $(DEMO_ARGS)

.PHONY: test
test: lint packages tools cluster ## lint, then every test; without root the ones that need it are skipped
	@echo "==> pytest"
	@$(BIN)/python -m pytest $(PYTEST_ARGS); status=$$?; [ $$status -eq 1 ] || exit $$status; \
	echo "==> what failed, once more and by itself: scenes take times, and a machine at work can deceive them once"; \
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
install: ## ravenvpn and its systemd service on this host, in /opt/ravenvpn (root)
	@PYTHON='$(PYTHON)' tools/install.sh install

.PHONY: uninstall
uninstall: ## remove what `make install` put there, and everything the agent put on the host (root)
	@tools/install.sh uninstall

.PHONY: soak
soak: venv packages tools cluster ## the long runs that `make test` leaves out
	@$(BIN)/python -m pytest -m soak $(PYTEST_ARGS)

.PHONY: clean
clean: ## remove what the other targets made in this folder
	rm -rf .venv .venv-* .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	rm -rf build dist *.egg-info bench/results rust/target ravenvpn/dataplane/_native*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Tools built by make stay in $${XDG_CACHE_HOME:-$$HOME/.cache}/ravenvpn; remove that folder to build them anew."

.PHONY: venv
venv: ## the virtual environment alone
	@tools/venv.sh $(VENV)

.PHONY: packages
packages:
	@tools/packages.sh

# Programs that tests compare us with, built once into a cache outside the clone.
.PHONY: tools
tools: ## what the tests compare ravenvpn with: wireguard-go
	@tests/tools/build-wireguard-go.sh >/dev/null || { [ "$${CI:-}" != true ] || exit 1; \
		echo "    Going on without wireguard-go; tests that need it are skipped." >&2; }

# Real control planes for tests/cluster, into the same cache. Built from their Go modules: minutes, once.
.PHONY: kube
kube: ## Kubernetes for the tests: etcd, a control plane, flanneld (6 minutes, once)
	@tests/cluster/build.sh default

.PHONY: kube-all
kube-all: ## the same, and the oldest and newest version that are tested (15 minutes, once)
	@tests/cluster/build.sh all

# Whoever tests on their own machine gets along with one version, or none; CI with nothing but all.
.PHONY: cluster
cluster:
	@if [ "$${CI:-}" = true ]; then tests/cluster/build.sh all; else tests/cluster/build.sh default || \
		echo "    Going on without Kubernetes; tests that need it are skipped." >&2; fi

.PHONY: need-root
need-root:
ifeq ($(IS_ROOT),)
	@echo "This builds network namespaces and needs root: sudo make $(MAKECMDGOALS)" >&2; exit 1
endif
