# `make` alone lists the commands.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STATE_DIR ?= $(CURDIR)/.state
export STATE_DIR

.DEFAULT_GOAL := help
.PHONY: help run check test lint unit image image-test bench lock proto clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/run.stamp proto  ## serve on http://127.0.0.1:14000 (the demo engine, or NOVITA_API_KEY's models)
	@$(BIN)/python -m appliance serve

check: $(VENV)/run.stamp proto  ## read the environment and name every problem
	@$(BIN)/python -m appliance check

test: lint unit  ## lint, types, import contracts and all tests but the container's

lint: $(VENV)/dev.stamp proto
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/shellcheck -x entrypoint.sh .ci/run tests/tools/container-engine tests/tools/setup-machine tests/tools/record_nvidia_smi.sh \
	    tests/image/run shims/nvidia-smi
	$(BIN)/hadolint --ignore DL3008 --ignore DL3013 --ignore DL3042 Dockerfile

unit: $(VENV)/dev.stamp proto
	@tests/tools/setup-machine test
	$(BIN)/python -m pytest -n 2 -q

image: proto  ## build the container image `appliance`
	@tests/tools/container-engine up && tests/tools/container-engine base && \
	eval "$$(tests/tools/container-engine env)" && docker build -t appliance .

image-test:  ## build the image, run it hardened, and test it for real
	@tests/image/run

bench: $(VENV)/dev.stamp proto  ## measure beside nginx (needs root to install it)
	@tests/tools/setup-machine bench
	$(BIN)/python -m bench

lock: $(VENV)/dev.stamp  ## make both lock files anew
	$(BIN)/pip install -q uv
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
	    pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --extra dev \
	    pyproject.toml -o requirements-dev.lock

proto: $(VENV)/dev.stamp  ## generate the gRPC code where it is missing or old
	@$(BIN)/python protos/generate.py

$(VENV)/bin/python:
	@tests/tools/setup-machine venv
	@$(PYTHON) -m venv $(VENV)

# The generator of the gRPC code is in the development lock alone, so `run` needs that one too.
$(VENV)/run.stamp: $(VENV)/dev.stamp
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock | $(VENV)/bin/python
	@echo "installing the locked packages into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

clean:  ## remove what was made here
	rm -rf $(VENV) .state .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build bench/results
	find appliance/control/v1 -name '*_pb2*.py' -delete
