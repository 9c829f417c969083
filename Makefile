# Remora. `make help` lists what can be made.
SHELL := /bin/bash
.DEFAULT_GOAL := help
# The first that runs and is new enough: a version manager's shim may be on the PATH and lead nowhere.
PYTHON ?= $(or $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done),python3)
VENV := .venv
BIN := $(VENV)/bin
PROTOS := $(wildcard proto/*/v1/*.proto)
STAMP := $(VENV)/.installed
HOT := $(shell sed -n 's/^ *"\(sidecar.*\.py\)",$$/\1/p' setup.py)
COMPILED := build/compiled/.stamp


.PHONY: help install crds compile tools proto demo demo-picture test test-pure test-slow test-transactions lint bench bench-control bench-transactions clean lock

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) $(COMPILED) ## set up .venv with everything that demo and tests need

$(STAMP): requirements.lock pyproject.toml $(PROTOS)
	@test -x $(BIN)/python || { echo "setting up $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=python3.11 install" >&2; rm -rf $(VENV); exit 2; }
	@echo "installing locked dependencies (about a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(MAKE) --no-print-directory proto
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

proto: ## generate Python from proto/ (messages, services, types)
	@mkdir -p $(VENV)/data/validate && cp $(VENV)/data/validate.proto $(VENV)/data/validate/
	@PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m grpc_tools.protoc -I. \
	  -I$$($(BIN)/python -c 'import grpc_tools, pathlib; print(pathlib.Path(grpc_tools.__file__).parent / "_proto")') \
	  -I$(VENV)/data \
	  --python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. $(PROTOS)

CRDS := deploy/helm/remora/crds
crds: $(STAMP) ## write the chart's CustomResourceDefinitions anew from proto/
	@mkdir -p build && PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m grpc_tools.protoc -I. \
	  -I$$($(BIN)/python -c 'import grpc_tools, pathlib; print(pathlib.Path(grpc_tools.__file__).parent / "_proto")') \
	  -I$(VENV)/data --include_imports --include_source_info --descriptor_set_out=build/mesh.binpb proto/mesh/v1/*.proto
	@$(BIN)/python -m control_plane.kubernetes.crds build/mesh.binpb $(CRDS)

compile: $(COMPILED) ## compile the sidecar's hot modules (`make install` does it)

$(COMPILED): $(STAMP) setup.py $(HOT)
	@rm -rf build/compiled && mkdir -p build/compiled
	@if command -v $${CC:-cc} >/dev/null 2>&1; then \
	  echo "compiling the sidecar's hot modules (about half a minute)"; \
	  CFLAGS=-w $(BIN)/python setup.py -q build_ext --build-lib build/compiled --build-temp build/temp >build/compile.log 2>&1 \
	    || { rm -rf build/compiled/*; echo "they could not be compiled, see build/compile.log: the sidecar runs as plain Python"; }; \
	else echo "no C compiler: the sidecar runs as plain Python, which costs about half as much again"; fi
	@touch $@

demo: install ## run the bookstore in a live mesh, with the tour (needs nothing else)
	@$(BIN)/remora demo

demo-picture: install ## renew docs/demo.svg from a real run
	@$(BIN)/remora demo --for 1s --picture docs/demo.svg

tools: ## install the real programs that tests run against (etcd, Prometheus, grpcurl, …) where that is possible
	@.ci/tools

test: install tools ## all tests but the slow ones (under 10 minutes on 2 cores)
	@$(BIN)/python -m pytest -m "not slow" -n 4 --dist loadfile

test-pure: install ## the sidecar's tests on plain Python instead of the compiled modules
	@REMORA_PURE=1 $(BIN)/python -m pytest -m "not slow" tests/sidecar

test-slow: install tools ## the slow tests: load, soak
	@$(BIN)/python -m pytest -m slow

test-transactions: install ## kill every process of a transaction at every step, and break the library on purpose (half an hour)
	@$(BIN)/python -m pytest tests/apps tests/remora/test_demo_transactions.py tests/remora/test_coordinator.py

lint: install ## ruff, mypy --strict, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy control_plane sidecar apps remora tests benchmarks
	@$(BIN)/lint-imports

bench: install tools ## CPU per RPC against Envoy, HAProxy and nginx, interleaved in one run
	@$(BIN)/python -m benchmarks

bench-control: install ## change to last ACK of the control plane against go-control-plane, interleaved in one run
	@$(BIN)/python -m benchmarks.control

bench-transactions: install .tools/bin/dtm ## transactions a second, CPU and durable writes against DTM, and the bookstore's five ways
	@$(BIN)/python -m benchmarks.transactions

.tools/bin/dtm: benchmarks/transactions/dtm/go.mod
	@if command -v go >/dev/null 2>&1; then echo "building DTM (some minutes: it brings a driver for everything)"; \
	  GOFLAGS=-mod=mod go build -C benchmarks/transactions/dtm -o $(CURDIR)/$@ github.com/dtm-labs/dtm || echo "DTM could not be built: it is left out"; \
	else echo "no Go: DTM is left out"; fi

lock: ## renew requirements.lock (needs uv)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --no-header -o requirements.lock

clean: ## remove the environment and generated code
	rm -rf $(VENV) build *.egg-info .demo
	find proto control_plane -name '*_pb2*.py*' -delete
