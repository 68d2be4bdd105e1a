# make demo, make test: see `make help`. Everything is installed into .venv, nothing outside it.
PYTHON ?= python3

VENV := .venv
PY   := $(VENV)/bin/python
PIP   = $(PY) -m pip install --disable-pip-version-check --no-input $(QUIET)
QUIET = $(shell test -t 2 || echo --quiet)

# Nothing of the caller's Python set-up reaches the recipes.
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP

# ---- the demo: two commands, edited here ---------------------------------------------------------
override DEMO := experiments/demo
DEMO_TRAIN = $(PY) train.py --config configs/demo.yaml --outdir $(DEMO)
DEMO_EVAL  = $(PY) calculate_metrics.py gen --net $(DEMO)/weights.safetensors --outdir $(DEMO) \
	--data datautils.photos.Photos --data-opt resolution=32 --images 64 --baselines pinv,fill,smooth,gaussian \
	--degradation degradation.MotionBlur --degradation degradation.MissingPatches \
	--degradation degradation.MatrixDegradation

# ---- tests: workers run one torch thread each (tests/conftest.py), so one worker a core ----------
WORKERS     ?= auto
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format env dev clean

help:
	@echo "make demo     train a small model on the built-in photos, restore a test set, show where the pictures are"
	@echo "make test     run the tests            (PYTEST_ARGS='-k mask', WORKERS=0 for one process)"
	@echo "make lint     ruff, its formatter and mypy, changing nothing"
	@echo "make format   let ruff mend and format the code"
	@echo "make env      only make $(VENV) with what the project needs (make dev: and the tools for its tests)"
	@echo "make clean    remove $(VENV), caches and $(DEMO); other experiments stay"
	@echo "PYTHON=...    the Python that $(VENV) is made from (3.11 or newer; now: $(PYTHON))"

demo: env
	@rm -rf -- $(DEMO)
	@mkdir -p $(DEMO)
	@echo "== demo 1/2: training"
	$(DEMO_TRAIN)
	@echo "== demo 2/2: restoring and measuring"
	$(DEMO_EVAL)

test: dev
	$(PY) -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal $(PYTEST_ARGS)

lint: dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

env: $(VENV)/.stamp-run
dev: $(VENV)/.stamp-dev

# ---- the environment -----------------------------------------------------------------------------
$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "This project needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo 'not there'):" \
	       "name another, as in: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "== making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed: on Debian and Ubuntu, install the package python3-venv first." >&2; exit 1; }
	@touch $@

# torch first and by itself: whatever needs it later is content with the build that is there.
$(VENV)/.stamp-run: requirements.txt requirements-nodeps.txt $(VENV)/.stamp-venv
	@echo "== installing $$(grep '^torch==' requirements.txt) (a large download: up to a few GB where it brings CUDA)"
	@$(PIP) --constraint requirements.txt "$$(grep '^torch==' requirements.txt)"
	@echo "== installing the other packages of requirements.txt"
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps -r requirements-nodeps.txt
	@touch $@

$(VENV)/.stamp-dev: requirements-dev.txt requirements-dev-nodeps.txt $(VENV)/.stamp-run
	@echo "== installing the test tools of requirements-dev.txt and requirements-dev-nodeps.txt"
	@$(PIP) -r requirements-dev.txt
	@$(PIP) --no-deps -r requirements-dev-nodeps.txt
	@touch $@

clean:
	rm -rf -- $(VENV) $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name .git -prune -o -type d -name __pycache__ -prune -exec rm -rf -- {} +
