# `make` alone lists the targets. All of them need only make and a shell: `setup` brings the rest.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-boot lint bench bench-harm packages repo release clean
# Debian keeps ip, nft and ethtool in sbin, which is not on a plain user's path.
export PATH := $(PATH):/usr/sbin:/sbin

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv with the guestagent command and all that tests need; at once when nothing changed
	@packaging/dev-setup.sh

demo: setup ## real traffic between two hosts made on this machine, tapped, collected, counted
	@.venv/bin/guestagent demo $(ARGS)

test: setup ## unit, repo, lab and interop tests; ARGS='-k ring' picks some
	.venv/bin/pytest -n auto --dist loadgroup $(ARGS)

test-boot: setup ## a VM that boots, installs the package by cloud-init and is tapped; takes about seven minutes
	@packaging/dev-setup.sh boot
	.venv/bin/pytest tests/boot -o faulthandler_timeout=1200 $(ARGS)

lint: setup ## ruff, its format, mypy
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

bench: setup ## the numbers of the README, measured here
	.venv/bin/python -m tests.bench $(ARGS)

bench-harm: setup ## what taps take from the application: throughput kept, latency, CPU
	.venv/bin/python -m tests.bench.harm $(ARGS)

packages: setup ## deb and rpm of guestagent and guestagent-cloud, in dist/packages; ARGS='--release 2' for another try
	.venv/bin/python packaging/packages.py $(ARGS)

repo: setup ## signed apt and rpm repository of dist/packages, in dist/repo; KEY=... URL=https://...
	.venv/bin/python packaging/repo.py --key '$(KEY)' --url '$(URL)'

release: setup ## wheel, sdist, packages, repository, checksums, bills of materials; KEY=... URL=https://...
	.venv/bin/python packaging/release.py --key '$(KEY)' --url '$(URL)'

clean: ## remove what setup, tests and builds made; captures stay
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find guestagent tests -name __pycache__ -type d -prune -exec rm -rf {} +
