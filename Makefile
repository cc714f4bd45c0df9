# `make demo` and `make test` do all that a fresh machine needs, and little on the next run.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types protos clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/python demo/run.py

test: $(VENV)/installed lint types
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

# The compiled form of pdserve/formats/protos/*.proto; run it after a change to one of them.
protos: $(VENV)/installed
	$(BIN)/python -m grpc_tools.protoc -I pdserve/formats/protos --descriptor_set_out=pdserve/formats/protos/descriptors.binpb pdserve/formats/protos/*.proto

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
