# Every target finds or makes what it needs on this machine first; `make` alone lists them.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
PYTHON := .venv/bin/python
MACHINE := tests/machine

.PHONY: help demo demo-down engine image stack-images venv test test-fast test-faults test-ceph bench check lock up down

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | awk -F'\t' '{ printf "  make %-13s %s\n", $$1, $$2 }'

demo: ## back up a sample stack on a real engine, restore it with aws and tar, show that it is the same
	@tests/demo/run

demo-down: ## remove what `make demo` made, and nothing else
	@tests/demo/down

engine: ## find a Docker Engine with Compose, or install and start one (Debian, as root)
	@$(MACHINE)/engine-up

image: engine ## build the image volume-backup-sidecar
	@$(MACHINE)/product-image

stack-images: engine ## build the sample stack's images
	@$(MACHINE)/stack-images

up: image ## start the sidecar on this machine (settings: environment or .env)
	@$(MACHINE)/compose -p backup -f docker-compose.backup.yml up -d

down: ## stop the sidecar; its state and all sets stay
	@$(MACHINE)/compose -p backup -f docker-compose.backup.yml down

venv: # the test environment, as the lock says
	@$(MACHINE)/python-environment

test: ## all tests, on a real engine, real databases, a real S3 server
	@$(MACHINE)/run-tests -m "not ceph"

test-fast: venv ## unit and contract tests without an engine, a minute
	@$(MACHINE)/host-tools || [ $$? = 69 ]
	@$(PYTHON) -m pytest --numprocesses auto tests/unit tests/contract \
	  -m "not engine and not ceph and not slow"

test-faults: ## all that needs an engine, on both kinds: kill runs 200 times and restores 50 times at random moments (TEST_KILLS, TEST_RESTORE_KILLS, each also with _SEED), compare 200 archives on ext4, xfs and btrfs, compared and cloned, with an oracle (TEST_ORACLE_RUNS)
	@TEST_KILLS=$${TEST_KILLS:-200} TEST_RESTORE_KILLS=$${TEST_RESTORE_KILLS:-50} TEST_ORACLE_RUNS=$${TEST_ORACLE_RUNS:-200} \
	  TEST_ORACLE_FILE_SYSTEMS="xfs btrfs" TEST_ENGINES=both $(MACHINE)/run-tests tests/engine tests/contract/test_engine.py

test-ceph: venv ## the store's contract against Ceph's S3 gateway, which it installs (Debian, as root)
	@$(MACHINE)/ceph-packages
	@$(PYTHON) -m pytest tests/contract -m ceph

bench: image ## how long an application stands still, how fast backups and restores are beside others (docs/PERFORMANCE.md)
	@tests/bench/pause
	@BENCH_FILE_SYSTEM=xfs BENCH_FILES=0 tests/bench/pause
	@tests/bench/backup
	@tests/bench/restore
	@tests/bench/growth

check: venv ## lint, formatting, types, the architecture's arrows
	@$(PYTHON) -m ruff check --quiet
	@$(PYTHON) -m ruff format --check --quiet
	@$(PYTHON) -m mypy
	@$(PYTHON) -m pytest --quiet tests/unit/test_architecture.py

lock: # pin every package with its hashes, naming no index (needs uv)
	@uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command 'make lock' --output-file requirements.lock pyproject.toml
	@uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command 'make lock' --constraint requirements.lock --group dev --output-file requirements-dev.lock pyproject.toml
