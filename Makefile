# make demo, make test: see `make help`. Everything is installed into .venv, nothing outside it.
PYTHON ?= python3

VENV := .venv
PY   := $(VENV)/bin/python
PIP   = $(PY) -m pip install --disable-pip-version-check --no-input $(QUIET)
QUIET = $(shell test -t 2 || echo --quiet)

# Nothing of the caller's Python set-up reaches the recipes.
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP

# ---- the demo: three commands, edited here -------------------------------------------------------
override DEMO := experiments/demo
FAMILIES = --degradation MotionBlur --degradation MissingPatches --degradation MatrixDegradation --degradation Box
TRAINED  = --baselines pinv,fill --sampler dpm --sampler mmse
ZERO_SHOT = --sampler ddrm --sampler ddnm --sampler pigdm --sampler dps
STEPS = --sampler-opt dpm.num_steps=12 --sampler-opt dpm.eta=1
ZERO_SHOT_STEPS = $(foreach s,ddrm=20 ddnm=20 pigdm=10 dps=10,--sampler-opt $(subst =,.num_steps=,$(s)))
# Networks of one backbone: not the larger one of emoji.
NETS = $(foreach net,$(filter-out %-larger-eps.safetensors,$(wildcard checkpoints/$(1)-*.safetensors)),--net $(net))
DEMO_EMOJI = $(PY) calculate_metrics.py gen $(call NETS,emoji32) --data Emoji --images 32 \
	$(TRAINED) $(STEPS) $(ZERO_SHOT) $(ZERO_SHOT_STEPS) $(FAMILIES) --outdir $(DEMO)/emoji
DEMO_PHOTOS = $(PY) calculate_metrics.py gen $(call NETS,photos64) \
	--data Photos --data-opt resolution=64 --images 16 $(TRAINED) $(STEPS) $(FAMILIES) --outdir $(DEMO)/photos
DEMO_TRAIN = $(PY) train.py --config configs/demo.yaml --outdir $(DEMO)/training

# ---- tests: workers run one torch thread each (tests/conftest.py), so one worker a core ----------
WORKERS     ?= auto
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo train-demo test lint format env dev clean

help:
	@echo "make demo     restore emoji and photos with the weights that ship, train for a minute"
	@echo "make train-demo   train InvFusion of photos anew: hours to a day on two cores; started again, it goes on"
	@echo "make test     run the tests            (PYTEST_ARGS='-k mask', WORKERS=0 for one process)"
	@echo "make lint     ruff, its formatter and mypy, changing nothing"
	@echo "make format   let ruff mend and format the code"
	@echo "make env      only make $(VENV) with what the project needs (make dev: and the tools for its tests)"
	@echo "make clean    remove $(VENV), caches and $(DEMO); other experiments stay"
	@echo "PYTHON=...    the Python that $(VENV) is made from (3.11 or newer; now: $(PYTHON))"

demo: env
	@rm -rf -- $(DEMO)
	@echo "== demo 1/3: 32 held-out emoji, under 4 degradations, each by 12 methods, weights of checkpoints/"
	$(DEMO_EMOJI)
	@echo "== demo 2/3: 16 crops of held-out photos, under 4 degradations, each by 6 methods"
	$(DEMO_PHOTOS)
	@echo "== demo 3/3: training a small network from nothing, for one minute"
	$(DEMO_TRAIN)
	@echo "== open $(DEMO)/emoji/grid.png and $(DEMO)/photos/grid.png: the restorations; report.html"
	@echo "        beside them: tables with intervals, image by image;"
	@echo "        $(DEMO)/training/curves.png: the loss of the training"
	@echo "   Compare samples with samples, estimates (MMSE) with estimates. Zero-shot samplers (DDRM to DPS)"
	@echo "   have few steps here. docs/weights.md compares the networks on more images"

train-demo: env
	$(PY) train.py --config configs/photos64-invfusion.yaml --name photos64-invfusion --keep-going

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
