# Two commands matter: `make demo` and `make test`. Each sets up all it needs from Python and pip.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: help demo test lint format install parity paper paper-rerun clean

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

# torch first and by its exact pin: any other request may fetch gigabytes of CUDA libraries.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-input $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-input -c constraints.txt -e '.[test,lint]'
	@touch $@

install: $(VENV)/.installed  ## create .venv and install bitsweep in it

demo: install  ## sweep 24 points of the embedded model, then table, front and page (about 2 minutes)
	rm -rf .demo
	$(BIN)/bitsweep sweep demo probes=quick results_dir=.demo

# a file stays with one worker: its model is loaded once; more than four would want much memory
test: install  ## all tests, a few files at once
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

lint: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## let ruff write
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

paper: install  ## every committed table and figure from the Records, under a minute; its PDF where there is a LaTeX
	$(BIN)/bitsweep paper

paper-rerun: install  ## measure what is missing first (hours), then paper
	$(BIN)/bitsweep paper --rerun

parity: install  ## GPTQ and RTN beside llm-compressor, GPTQModel, torchao (own environments, about 20 minutes)
	$(BIN)/python benchmarks/parity/run.py

clean:  ## remove what make made
	rm -rf $(VENV) .demo .bitsweep dist build
