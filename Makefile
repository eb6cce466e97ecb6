# Longtail's commands; `make` alone lists them. Everything is installed into .venv of this checkout, nothing outside of it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.SUFFIXES:

# Paths below are relative, so that a checkout under a path with spaces works.
PYTHON ?= python3.11
VENV := .venv
PY := $(VENV)/bin/python
# Where the CPU build of torch lies if pip does not find it by itself: a simple index (URL) or a folder of wheels.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
CONFIG ?=
SET ?=
PYTEST_ARGS ?=

# The core is installed and `python -m` from the root finds the rest: no PYTHONPATH is needed here.
export TOKENIZERS_PARALLELISM ?= false
# Models and data are installed packages: nothing is looked up on a hub.
export HF_HUB_OFFLINE ?= 1
export VLLM_LOGGING_LEVEL ?= ERROR
export VLLM_NO_USAGE_STATS ?= 1
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO ?= 0
export RAY_USAGE_STATS_ENABLED ?= 0
export PYTHONUNBUFFERED ?= 1

config = --config "$(or $(CONFIG),$(1))" $(foreach pair,$(SET),--set "$(pair)")

.PHONY: help setup bench demo up sweep study test test-all test-browser check protos format lock lock-gpu lock-gpu-check clean

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24
	echo
	echo "  CONFIG=file.toml, SET=\"a.b=value …\" and PYTEST_ARGS=… are passed on; PYTHON and TORCH_INDEX choose what setup uses."

setup: $(VENV)/.installed ## .venv with the pinned CPU dependencies

# Redone when a lock or the project's metadata changes. The stamp is the last thing written, so an interrupted set-up is taken up again.
$(VENV)/.installed: requirements/dev.lock pyproject.toml scripts/setup.sh
	@PYTHON="$(PYTHON)" TORCH_INDEX="$(TORCH_INDEX)" scripts/setup.sh "$(VENV)" requirements/dev.lock

# The bench's lock is the development lock and the peers beside it.
$(VENV)/.peers: requirements/bench.lock $(VENV)/.installed
	@$(PY) -m pip --disable-pip-version-check install -qq --no-deps --requirement requirements/bench.lock
	touch $@

bench: $(VENV)/.peers ## every hot path beside its peers, one after the other (an hour or more): bench/results/<yyyymm>.md
	@$(PY) -m bench $(BENCH)

demo: setup ## every stage, three rankers, evaluation and serving on a sample of Complete Journey
	@$(PY) -m serve_apps.demo $(call config,pipelines/configs/demo.toml)

up: setup ## serve what the demo trained, with the Ray dashboard, until Ctrl-C
	@exec $(PY) -m serve_apps.up $(call config,pipelines/configs/demo.toml)

sweep: setup ## a small Ray Tune sweep over gates and codebooks
	@$(PY) -m tuning.sweep $(call config,pipelines/configs/demo.toml)

study: setup ## ChoirRec's study: arms, seeds and data sets compared in pairs (SET="study.form=short" for its short form)
	@$(PY) -m pipelines.study $(call config,pipelines/configs/choirrec_study.toml)

test: setup ## the tests
	@$(PY) -m pytest -q $(PYTEST_ARGS)

test-all: setup ## the tests, the slow ones too
	@$(PY) -m pytest -q -m "not gpu and not browser" $(PYTEST_ARGS)

test-browser: setup ## the console in Chromium (Debian's package chromium)
	@$(PY) -m pytest -q -m browser $(PYTEST_ARGS)

check: setup ## ruff, ruff format, mypy
	@$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

protos: setup ## the gRPC messages of serve_apps/open_inference.proto
	@scripts/protos.sh

format: setup ## let ruff format and fix what it can
	@$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

lock: setup ## work out all locks anew from pyproject.toml, keeping versions where they still fit
	@TORCH_INDEX="$(TORCH_INDEX)" $(PY) scripts/lock.py cpu dev gpu

lock-gpu: setup ## work out the GPU lock alone
	@$(PY) scripts/lock.py gpu

lock-gpu-check: setup ## the GPU set still resolves to its lock (metadata only, nothing is downloaded or installed)
	@$(PY) scripts/lock.py --check gpu

clean: ## remove .venv and every cache of this checkout; runs/ stays
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build platform/longtail.egg-info
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
