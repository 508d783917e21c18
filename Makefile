# Needs make, git and Python >= 3.11 with venv; everything else is installed into .venv. The tests of the Prometheus rules
# need Prometheus.

PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	$(p) -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
BIN := .venv/bin
INSTALLED := .venv/.installed
export UV_PYTHON_DOWNLOADS := never
export NO_COLOR ?= $(if $(CI),1,)
.DEFAULT_GOAL := help
.PHONY: help install demo services test simulate planted-bugs what-if-check mutmut fuzz chaos chaos-quick chaos-mutation bench bench-quick profile rules dashboard lint ci lock schemas docs kubernetes-rules kubernetes-check upgrade-check image image-check deploy-check sbom audit clean
SCHEDULES ?= 10000
RECORDS ?= 1000000
EVENTS ?= 1000000
IMAGE ?= conversation-consumer
BASE ?= python:3.13-slim
SEED ?= 0

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## install what the other targets need into .venv

$(INSTALLED): requirements-uv.lock requirements-dev.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python >= 3.11 with venv is needed: install python3 and python3-venv, or run make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements-uv.lock requirements-dev.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: install ## real Kafka, PostgreSQL and racing writers (DEMO=options)
	$(BIN)/python -m tests.demo $(DEMO)

services: install ## Kafka and PostgreSQL to play with, until Ctrl-C
	@$(BIN)/python -m tests.stack

test: install ## run all tests on real services
	$(BIN)/pytest

simulate: install ## seeded schedules, virtual time (SCHEDULES=10000 SEED=0)
	$(BIN)/python -m tests.simulation --schedules $(SCHEDULES) --seed $(SEED)

planted-bugs: install ## plant one bug at a time: the checker must find each
	$(BIN)/python -m tests.simulation --planted
	@set -e; for bug in version:versions dedup:effect guard:backwards redecide:folds; do \
		log=$$(mktemp); code=0; printf '%s: ' $${bug%:*}; \
		$(BIN)/python -m tests.demo --break $${bug%:*} --events 9000 --seconds 8 > $$log 2>&1 || code=$$?; \
		if [ $$code -ne 1 ] || ! grep "$${bug#*:}.*BROKEN" $$log; then cat $$log; echo "not found, exit code $$code"; exit 1; fi; \
		rm $$log; \
	done

what-if-check: install ## replay stored events: none may differ (EVENTS=1000000 SEED=0)
	$(BIN)/python -m tests.replay --events $(EVENTS) --seed $(SEED)

mutmut: install ## mutation tests (ONLY=kafka/partition MINUTES=limit)
	$(BIN)/python -m tests.mutants $(if $(ONLY),--only $(ONLY)) $(if $(MINUTES),--minutes $(or $(MINUTES),5))

fuzz: install ## odd and hostile records (RECORDS=1000000 SEED=0)
	$(BIN)/python -m tests.fuzz --records $(RECORDS) --seed $(SEED)

chaos: install ## faults on real parts (MINUTES=5 SEED=0 SCENARIO= LEDGER=)
	$(BIN)/python -m tests.chaos --seed $(SEED) --minutes $(or $(MINUTES),5) $(if $(SCENARIO),--scenario $(SCENARIO)) $(if $(LEDGER),--ledger $(LEDGER)) $(CHAOS)

chaos-quick: install ## a few of the same, each alone
	$(BIN)/python -m tests.chaos --quick

chaos-mutation: install ## plant bugs into the replicas of the rig: each must be found
	$(BIN)/python -m tests.chaos --mutation

bench: install ## all benchmarks, 25 min (PARTS="latency outbox": these alone)
	$(BIN)/python -m tests.benchmarks $(if $(PARTS),--only $(PARTS))

bench-quick: install ## the same, smaller and once, in under 3 minutes: roughly right
	$(BIN)/python -m tests.benchmarks --quick

profile: install ## where the time goes: of a lone event, and of a backlog
	$(BIN)/python -m tests.benchmarks.profile

rules: ## check and test the Prometheus rules (needs promtool)
	promtool check config deploy/prometheus/prometheus.yml
	promtool test rules deploy/prometheus/rules_test.yaml

dashboard: install ## draw the dashboard under traffic (docs/dashboard.png)
	$(BIN)/python -m tests.observability

lint: install ## style, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ci: export REQUIRE_KAFKA := 1
ci: lint ## what a push must pass; anything but real Apache Kafka fails
	$(MAKE) demo
	$(MAKE) simulate
	$(MAKE) planted-bugs
	$(MAKE) chaos-quick
	$(MAKE) fuzz RECORDS=50000
	$(MAKE) bench-quick
	$(MAKE) test

lock: install ## resolve the locked requirements anew
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --extra otel pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --extra otel --group dev -c requirements.lock pyproject.toml -o requirements-dev.lock
	echo hatchling | $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header - -c requirements-dev.lock -o requirements-build.lock

schemas: install ## generate schemas/json and schemas/asyncapi.yaml
	$(BIN)/python -m schemas

docs: install ## write the parts of docs/ that follow from the code
	$(BIN)/python -m tests.model.documents

kubernetes-rules: install ## write the PrometheusRule from deploy/prometheus
	$(BIN)/python -m tests.kubernetes.prometheus_rule

kubernetes-check: install ## render deploy/k8s, validate it, check what it promises
	$(BIN)/pytest tests/kubernetes

upgrade-check: install ## an old build beside this one, under load (OLD=commit)
	$(BIN)/python -m tests.upgrade $(if $(OLD),--old $(OLD)) $(UPGRADE)

image: ## build the container image (IMAGE=name BASE=image SOURCE=url)
	docker build --tag $(IMAGE) --build-arg BASE=$(BASE) --build-arg SOURCE=$(SOURCE) \
		--build-arg VERSION=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' consumer/__init__.py) \
		--build-arg REVISION=$$(git describe --always --dirty --abbrev=40) \
		--build-arg CREATED=$$(date -u +%Y-%m-%dT%H:%M:%SZ) .

image-check: install ## build the image and run it (needs a Docker engine)
	$(BIN)/pytest -m deploy tests/deploy/test_image.py

deploy-check: install ## the same, and deploy/compose.yaml (COMPOSE=command)
	$(BIN)/pytest -m deploy tests/deploy

sbom: install ## what the image installs, as CycloneDX: build/sbom.json
	@mkdir -p build
	$(BIN)/python -W ignore -m cyclonedx_py requirements --pyproject pyproject.toml --output-reproducible -o build/sbom.json requirements.lock

audit: install ## look the lock up in the advisory database
	@$(BIN)/python -m tests.deploy.audit requirements.lock

clean: ## remove what the other targets made
	rm -rf .venv mutants .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
