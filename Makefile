# callrec. `make` alone lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
# Container images like to set it. With it each start of callrec compiles every module anew: a quarter of its time.
unexport PYTHONDONTWRITEBYTECODE

# The first Python that is 3.11 or newer; `make PYTHON=...` names another.
PYTHON ?= $(firstword $(foreach name,python3.11 python3,$(shell $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && echo $(name))))
IMAGE ?= callrec
CACHE := .cache
BIN := .venv/bin
# What a service given by the environment spares (callrec/demo/stack.py says how to give one).
POSTGRES := $(if $(CALLREC_DEMO_POSTGRES_URL),,initdb:postgresql)
REDIS := $(if $(CALLREC_DEMO_REDIS_URL),,redis-server:redis-server)
CEPH := $(if $(CALLREC_DEMO_S3_ENDPOINT),,ceph-mon:ceph-mon ceph-osd:ceph-osd radosgw:radosgw ceph:ceph-common)
PROGRAMS := $(POSTGRES) $(REDIS) $(CEPH) espeak-ng:espeak-ng promtool:prometheus
SOURCES := callrec tests
PYTEST := $(BIN)/python -m pytest

.PHONY: help setup packages demo test test-freeswitch check bench bench-sweep bench-verify bench-ledger bench-audit endurance dashboard-picture chaos image lock clean

help: ## list what there is
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 26

setup: packages .venv/installed ## install what is missing: Debian packages (as root) and .venv

demo: setup ## boot a private stack, place one call per scenario, read back what the law demanded
	@$(BIN)/callrec demo

# Four at once, about as long as each other: most of the time they wait. What is new under tests/service falls into the
# fourth, what is new elsewhere into the first.
SECOND := $(wildcard tests/service/test_calls.py tests/service/test_garbage.py tests/service/test_kill.py \
	tests/service/test_privacy.py tests/contract/test_examination.py tests/contract/test_rights.py) tests/acceptance
THIRD := $(wildcard tests/service/test_chaos.py tests/service/test_expiry.py tests/service/test_monitoring.py \
	tests/service/test_node_lost.py tests/service/test_stores_down.py tests/contract/test_audit.py)
FOURTH := $(filter-out $(SECOND) $(THIRD),$(wildcard tests/service/test_*.py)) \
	$(wildcard tests/contract/test_anchors.py tests/contract/test_stream.py) \
	$(if $(CALLREC_TEST_FREESWITCH),tests/freeswitch)
FIRST := tests/core $(filter-out $(SECOND) $(THIRD) $(FOURTH),$(wildcard tests/contract/test_*.py))

test: setup ## run the tests (with a real FreeSWITCH too if CALLREC_TEST_FREESWITCH names its directory)
	@echo "Four runs at once, shown in turn as they end; some minutes"
	@trap 'kill $$(jobs -p) 2>/dev/null || true' EXIT; status=0; \
	$(PYTEST) $(FIRST) >$(CACHE)/test-1.log 2>&1 & first=$$!; \
	$(PYTEST) $(SECOND) >$(CACHE)/test-2.log 2>&1 & second=$$!; \
	$(PYTEST) $(THIRD) >$(CACHE)/test-3.log 2>&1 & third=$$!; \
	$(PYTEST) $(FOURTH) >$(CACHE)/test-4.log 2>&1 & fourth=$$!; \
	wait $$first || status=$$?; cat $(CACHE)/test-1.log; \
	wait $$second || status=$$?; cat $(CACHE)/test-2.log; \
	wait $$third || status=$$?; cat $(CACHE)/test-3.log; \
	wait $$fourth || status=$$?; cat $(CACHE)/test-4.log; exit $$status

test-freeswitch: setup ## run the tests against a real FreeSWITCH, in the directory CALLREC_TEST_FREESWITCH
	@$(PYTEST) tests/freeswitch

check: setup ## ruff, its format, mypy --strict, and the floors of the house
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy callrec
	@$(PYTEST) tests/core/test_floors.py

bench: setup ## calls per second, latency, CPU and memory beside stock greenswitch
	@$(BIN)/python tests/bench/run.py

bench-sweep: setup ## time and memory of erasing 10,000 expired recordings, and what calls notice of it
	@$(BIN)/python tests/bench/sweep.py

bench-verify: setup ## time and memory of verifying a ledger of a million entries
	@$(BIN)/python tests/bench/verifying.py

bench-ledger: setup ## two hundred appenders beside a plain table, the checkpoint's lag, a proof among a million
	@$(BIN)/python tests/bench/ledger.py

bench-audit: setup ## time and memory of the audit of 100,000 recordings
	@$(BIN)/python tests/bench/audit.py

endurance: setup ## 300 calls of five minutes at once, streamed, with S3 cut off for two of them (a quarter of an hour)
	@$(BIN)/python tests/bench/endurance.py

dashboard-picture: setup ## draw monitoring/dashboard.svg anew, from a run in which callrec has every fault
	@CALLREC_DASHBOARD_PICTURE=monitoring/dashboard.svg $(PYTEST) tests/service/test_monitoring.py

# With a real FreeSWITCH the whole ends with the faults on that.
chaos: setup ## the failure matrix, executed (ONLY=ship:killed: a part of it; NODE_KILLS=50: kill the whole node instead)
	@$(BIN)/python tests/chaos/run.py $(ONLY:%=--only %) $(if $(NODE_KILLS),--node-kills $(NODE_KILLS))
	$(if $(CALLREC_TEST_FREESWITCH),$(if $(ONLY)$(NODE_KILLS),,@$(PYTEST) tests/freeswitch/test_faults.py))

image: ## build the container image
	docker build --tag $(IMAGE) .

# What builds is pinned too: hatchling and editables build callrec, setuptools greenswitch, which has no wheel.
# uv keeps pins that still fit; delete a package's lines from a lock to let it move.
LOCK := uv pip compile --quiet --python-version 3.11 --generate-hashes --no-header --no-emit-index-url
lock: ## write the three requirements*.lock anew (needs uv)
	@$(LOCK) pyproject.toml --extra dev --output-file requirements.lock
	@$(LOCK) pyproject.toml --constraint requirements.lock --output-file requirements.runtime.lock
	@printf 'hatchling>=1.27\neditables\nsetuptools>=77\n' | \
	  $(LOCK) - --constraint requirements.lock --output-file requirements.build.lock

clean: ## remove .venv, caches and what a demo left
	@rm -rf .venv .cache .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis dist *.egg-info
	@find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +

# One line a step on the terminal; all that the step says in .cache/setup.log, shown if it fails.
define quietly
quietly() { \
  echo "$$1"; shift; \
  "$$@" >$(CACHE)/setup.log 2>&1 || { status=$$?; tail -n 40 $(CACHE)/setup.log >&2; return $$status; }; \
}
endef

# Debian starts a daemon as soon as its package is installed unless policy-rc.d forbids it; ours need none of them.
# Package lists are fetched only when the install fails without: there are none yet, or they are old.
define install
apt_install() { \
  local policy=/usr/sbin/policy-rc.d; \
  if [ ! -e $$policy ]; then \
    trap "rm -f $$policy" EXIT; printf '#!/bin/sh\nexit 101\n' >$$policy; chmod 755 $$policy; \
  fi; \
  local apt="apt-get -qq -y -o DPkg::Lock::Timeout=120"; \
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
  $$apt install --no-install-recommends "$$@" || { $$apt update && $$apt install --no-install-recommends "$$@"; }; \
}
endef

packages:
	@mkdir -p $(CACHE)
	@test -n "$(PYTHON)" || { echo "callrec needs Python 3.11 or newer: apt-get install python3, or make PYTHON=..." >&2; exit 1; }
	@missing=(); \
	[ -x $(BIN)/pip ] || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv); \
	for pair in $(PROGRAMS); do \
	  PATH="$$PATH:/usr/sbin:$$(echo /usr/lib/postgresql/*/bin | tr ' ' ':')" command -v $${pair%%:*} >/dev/null \
	    || missing+=($${pair##*:}); \
	done; \
	if [ $${#missing[@]} -gt 0 ]; then \
	  command="apt-get install --no-install-recommends $${missing[*]}"; \
	  if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	    echo "Not installed yet, and only root can on a Debian: $$command" >&2; exit 1; \
	  fi; \
	  $(quietly); $(install); \
	  quietly "Installing Debian packages: $${missing[*]}" apt_install "$${missing[@]}"; \
	fi

$(BIN)/pip: | packages
	@$(quietly); quietly "Making .venv" $(PYTHON) -m venv .venv

PIP := $(BIN)/pip --disable-pip-version-check install
.venv/libraries: requirements.build.lock requirements.lock | $(BIN)/pip
	@$(quietly); \
	quietly "Installing the build tools of requirements.build.lock" $(PIP) --require-hashes -r requirements.build.lock; \
	quietly "Installing the Python libraries of requirements.lock" \
	  $(PIP) --require-hashes --no-build-isolation --use-pep517 -r requirements.lock
	@touch $@

.venv/installed: pyproject.toml .venv/libraries
	@$(quietly); quietly "Installing callrec" $(PIP) --no-deps --no-build-isolation --editable .
	@touch $@
