# make demo   install into .venv, then turn a photo and a toy scene into videos in demo-out/
# make test   the same environment, then linters, the type checker and the test suite
# make test-versions  the test suite with Python 3.11 to 3.14 and the newest packages, and with the oldest that pyproject.toml allows
# make test-faults  what `make test` samples of docs/reliability.md, in full: an hour of kills, signals, full disks
# make docs   write the pages that are made of help texts and of the weights' cards
# make gallery  make the pictures of README and docs anew, after a change of the embedded weights
# make site   the pages of docs/ as a site, in out/site/
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: help demo test suite test-versions test-oldest test-faults lint install format docs gallery site

VENV := .venv
RUN := $(VENV)/bin/python -m

# The first Python on the path that is new enough; `make PYTHON=/path/to/python3` overrides it.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && break; done)

# Idle OpenMP threads sleep instead of spinning: several times faster where cores are shared.
export OMP_WAIT_POLICY ?= PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(VENV)/.demo-installed
	$(VENV)/bin/vq3d demo --out demo-out

test: lint suite

suite: $(VENV)/.test-installed
	@echo "== tests"
	@OMP_NUM_THREADS=1 $(RUN) pytest -q -n auto --dist loadfile --durations=10

# Each needs its Python on the path (python3.13), and makes an environment in out/: 6 GB where PyTorch comes with CUDA.
test-versions: test-oldest test-3.11 test-3.12 test-3.13 test-3.14

test-3.%:
	@$(MAKE) suite PYTHON=python3.$* VENV=out/python3.$*

test-oldest:
	@mkdir -p out
	@sed -nE 's/^ .*"([a-z_-]+)>=([0-9.]+).*/\1==\2/p' pyproject.toml | sort -u > out/oldest.txt
	@PIP_CONSTRAINT=$(CURDIR)/out/oldest.txt $(MAKE) suite PYTHON=python3.11 VENV=out/oldest

test-faults: $(VENV)/.test-installed
	@$(RUN) pytest -q -m faults -rP
	@HYPOTHESIS_PROFILE=explore $(RUN) pytest -q tests/test_cli.py tests/test_config.py -k 'any_ or anything'
	@$(VENV)/bin/python tests/tools/damage.py

lint: $(VENV)/.test-installed
	@echo "== ruff"
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@echo "== mypy"
	@$(RUN) mypy

format: $(VENV)/.test-installed
	$(RUN) ruff check --fix-only .
	$(RUN) ruff format .

docs: $(VENV)/.test-installed
	$(VENV)/bin/python docs/generate_commands.py
	$(VENV)/bin/python docs/generate_model_card.py

gallery: $(VENV)/.test-installed
	$(VENV)/bin/python docs/make_photo.py
	$(VENV)/bin/python docs/make_gallery.py

site: $(VENV)/.test-installed
	$(RUN) mkdocs build --strict

install: $(VENV)/.demo-installed

$(VENV)/.created:
	@if [ -z "$(PYTHON)" ]; then echo "error: no Python 3.11 or newer found; try: make PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo "error: $(PYTHON) is older than 3.11; try: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: $(PYTHON) has no venv module; try: apt install python3-venv, or another Python by PYTHON=" >&2; exit 1; }
	@[ -x $(VENV)/bin/python ] || { echo "Creating $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@touch $@

# pip is silent for minutes or prints two hundred lines: show the large downloads only. Errors go to stderr as they are.
define install
	@echo "Installing vq3d and PyTorch into $(VENV): 2 to 5 minutes, 6 GB where PyTorch comes with CUDA ..."
	@$(RUN) pip install --progress-bar off -e '.[$(1)]' | sed -E -n -u \
		-e '/(Downloading|Using cached).*([0-9]{2}\.[0-9] MB|GB)/ { s/^ */  /; p; }' \
		-e 's/^Installing collected packages.*/  Unpacking .../p'
	@touch $@
	@echo "Installed: $$($(RUN) vq3dcli --version)"
endef

$(VENV)/.demo-installed: pyproject.toml $(VENV)/.created
	$(call install,demo)

$(VENV)/.test-installed: pyproject.toml $(VENV)/.created
	$(call install,test)
