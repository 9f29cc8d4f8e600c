# Two commands do all the set-up on a bare machine: `make demo` and `make test`.
# A name on the PATH can be a version manager's shim for a Python that isn't installed: only one that runs counts.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$python; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
# Engines with an environment of their own, in the user's cache: the suite adds the small ones, `make engines` all.
SMALL_ENGINES := $(filter llamacpp,$(basename $(notdir $(wildcard envs/*.lock))))
LARGE_ENGINES := $(filter vllm llmcompressor,$(basename $(notdir $(wildcard envs/*.lock))))
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps

.PHONY: demo test lint suite engines bench clients agreement search peers native planner presets exports clean

demo: $(VENV)/.default  ## measure SmolLM2-135M as it comes and every recipe worth trying; about 10 minutes
	$(BIN)/quicksilver optimize smollm2-135m-instruct --workload hotpotqa --goal cost

test: $(VENV)/.dev lint suite  ## the whole suite

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

suite: $(VENV)/.dev
	@for name in $(SMALL_ENGINES); do $(BIN)/quicksilver engine add $$name || exit 1; done
	QUICKSILVER_TEST_ENGINES="$(SMALL_ENGINES)" $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 30 --durations-min 5

engines: $(VENV)/.dev  ## every engine's environment (about 5 GB), and the tests that need the large ones; about 15 minutes
	@for name in $(SMALL_ENGINES) $(LARGE_ENGINES); do $(BIN)/quicksilver engine add $$name || exit 1; done
	QUICKSILVER_TEST_ENGINES="$(SMALL_ENGINES) $(LARGE_ENGINES)" $(BIN)/pytest -m slow

bench: $(VENV)/.default  ## re-make every figure of the README
	$(BIN)/python benchmarks/run.py

clients: $(VENV)/.default $(VENV)-clients/.made $(VENV)-aiperf/.made  ## clients of others against a served model
	$(BIN)/python benchmarks/clients.py --clients $(VENV)-clients --aiperf $(VENV)-aiperf
	$(BIN)/python benchmarks/clients.py --clients $(VENV)-clients --aiperf $(VENV)-aiperf --real

agreement: $(VENV)/.default $(VENV)-clients/.made $(VENV)-aiperf/.made  ## our figures against GuideLLM's and AIPerf's
	$(BIN)/python benchmarks/agreement.py --clients $(VENV)-clients --aiperf $(VENV)-aiperf
	$(BIN)/python benchmarks/agreement.py --clients $(VENV)-clients --aiperf $(VENV)-aiperf --real --server-cores 1

search: $(VENV)/.default  ## the search against a sweep of the same space, on the real model; about two and a half hours
	$(BIN)/python benchmarks/run.py search_quality

peers: $(VENV)/.default $(VENV)-transformers/.made  ## our choice against other servers; 5 GB of environments, about 40 minutes on two cores
	$(BIN)/quicksilver engine add llamacpp
	$(BIN)/quicksilver engine add vllm
	$(BIN)/python benchmarks/run.py peers through

native: $(VENV)/.default  ## llama.cpp built for this CPU against the prebuilt one; about half an hour on two cores
	$(BIN)/quicksilver engine add llamacpp --native
	$(BIN)/python benchmarks/run.py native

planner: $(VENV)/.default  ## predictions against what is published and what this machine does; 0.6 GB of operator tables, about 40 minutes
	$(BIN)/quicksilver engine add planner
	$(BIN)/quicksilver engine add llamacpp
	$(BIN)/python benchmarks/run.py headline plan_time simulate roofline fit predicted

presets: $(VENV)/.default  ## predict the deployments of the catalogue's models again; this machine has to be calibrated
	$(BIN)/quicksilver engine add planner
	$(BIN)/python -m quicksilver.planner.deployments

exports: $(VENV)/.dev $(VENV)-exports/.made  ## what is exported, against the schemas of the systems that read it
	$(BIN)/pytest tests/deploy

$(VENV)/bin/python:
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Quicksilver needs Python 3.11 or later; say which with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.default: envs/default.lock pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV): OpenVINO, NNCF, PyTorch and what they need; about 1.8 GB on disk with a CPU build of PyTorch." >&2
	@echo "(A torch for GPUs takes several GB more. For the CPU build, point PIP_EXTRA_INDEX_URL at PyTorch's index of CPU wheels.)" >&2
	@$(PIP) -r envs/default.lock
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: envs/dev.lock pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV) what the tests need; about 1.9 GB on disk with a CPU build of PyTorch." >&2
	@$(PIP) -r envs/dev.lock
	@$(PIP) --editable .
	@touch $@

$(VENV)-%/.made: envs/%.lock | $(VENV)/bin/python
	@echo "Installing into $(VENV)-$* what envs/$*.lock names: 1.9 GB on disk for clients, 1.2 for aiperf and for transformers, 0.5 for exports." >&2
	@$(VENV)/bin/python -m venv $(VENV)-$*
	@$(VENV)-$*/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r envs/$*.lock
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-clients $(VENV)-aiperf $(VENV)-transformers $(VENV)-exports
