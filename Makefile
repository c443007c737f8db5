# `make serve` and `make test` need Python 3.11 or newer, a C compiler and make; nothing else is typed or installed by hand.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SOURCES := $(wildcard ext/*) setup.py pyproject.toml

.PHONY: serve test lint types build sanitize bench clean

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Shield needs Python 3.11 or newer (make PYTHON=python3.12)")'
	$(PYTHON) -m venv $(VENV)

# Two stamps: what serving needs, and what the tests need on top.
$(VENV)/.serve: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable ".[yaml,jwt,graphql]"
	touch $@

$(VENV)/.dev: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable ".[dev,bench]"
	touch $@ $(VENV)/.serve

serve: $(VENV)/.serve
	$(BIN)/shield serve $(ARGS)

build: $(VENV)/.dev

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest shield.core --allowlist tests/stubtest-allowlist.txt

bench: $(VENV)/.dev
	$(BIN)/python -m bench $(ARGS)

clean:
	rm -rf build $(VENV) shield/core/*.so *.egg-info
