# How SimCast-HPC is installed, started and checked. `make help` lists what it does.
#
# Everything is installed into .venv, once: stamp files in there tell make what stands already. torch comes first and
# alone, because it decides which build everything else meets: the CUDA build where nvidia-smi answers, the CPU build
# elsewhere. On a cluster whose login node has no GPU, say so at the first call: make install DEVICE=cuda.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
PIP_INDEX ?=
TORCH_INDEX ?=
PYTEST_ARGS ?=
DATA ?=
MODEL ?= simvp
ifndef DEVICE
DEVICE := $(shell cat $(VENV)/.device 2>/dev/null || { nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu; })
endif
ifeq ($(filter cpu cuda,$(DEVICE)),)
$(error DEVICE is cpu or cuda, the build of torch to install; it is '$(DEVICE)')
endif
CONSTRAINTS := $(if $(filter cuda,$(DEVICE)),constraints-cuda.txt,constraints.txt)

# Compiled operators and kernels stay in .venv: shared by all environments of a user, they would be built over one
# another. DS_BUILD_OPS asks DeepSpeed to compile operators at installation; none is needed.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VENV)/torch_extensions
export TRITON_CACHE_DIR := $(CURDIR)/$(VENV)/triton_cache
unexport DS_BUILD_OPS

LOG := $(VENV)/install.log
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install $(if $(PIP_INDEX),--index-url $(PIP_INDEX)) -c $(CONSTRAINTS)
TO_LOG = >>$(LOG) 2>&1 || { tail -n 25 $(LOG); echo "The installation failed; all of it is in $(LOG)."; exit 1; }

##@ Run
BACKBONE := $(filter-out -simvp,-$(MODEL))
.PHONY: run run-full radar
run: $(VENV)/.runtime ## Train teacher, student and direct model on a synthetic archive, verify them, make a page
	@echo "Training and verifying on a synthetic archive (configs/pipeline/quickstart$(BACKBONE).yaml): up to 15 minutes on 2 cores."
	@$(BIN)/simcast pipeline configs/pipeline/quickstart$(BACKBONE).yaml

run-full: $(VENV)/.runtime ## The same with all stages: a direct model without the weighted loss besides, autoencoder and diffusion
	@echo "Training and verifying on a synthetic archive (configs/pipeline/quickstart-full.yaml): all stages, 12 minutes of training and what else there is to do."
	@$(BIN)/simcast pipeline configs/pipeline/quickstart-full.yaml

.PHONY: archive-of-radar
archive-of-radar:
	@[ -f "$(DATA)/CATALOG.csv" ] || { echo "make radar needs DATA=FOLDER, a folder with CATALOG.csv; DATA is '$(DATA)'." >&2; exit 2; }

radar: archive-of-radar $(VENV)/.verify ## The same on real radar, DATA=FOLDER (that holds CATALOG.csv), with extrapolation as a baseline
	@echo "Training and verifying on the radar archive in $(DATA) (configs/pipeline/radar$(BACKBONE).yaml): up to 20 minutes on 2 cores."
	@$(BIN)/simcast pipeline configs/pipeline/radar$(BACKBONE).yaml --set "data.root=$(DATA)"

##@ Check
# Three processes, because a kernel's module looks at TRITON_INTERPRET when it is imported: kernels in the interpreter,
# kernels compiled ahead of time, and the rest. Each has its turn whatever the others say.
PYTEST := $(BIN)/python -m pytest $(PYTEST_ARGS)
PLAIN := env -u TRITON_INTERPRET -u SIMCAST_KERNELS
INTERPRETED := env -u SIMCAST_KERNELS TRITON_INTERPRET=1
RESULTS_OF_TESTS := $(VENV)/tests
AND_NOTE = 2>&1 | tee $(RESULTS_OF_TESTS)

.PHONY: test test-slow test-slurm drill lint types docs
test: $(VENV)/.test ## Pass the tests: minutes, without GPU and without root
	@rm -rf $(RESULTS_OF_TESTS); mkdir -p $(RESULTS_OF_TESTS); failed=; \
	echo "Tests 1 of 3: kernels against their twins, in the interpreter"; \
	$(INTERPRETED) $(PYTEST) tests/kernels tests/models_on_kernels -m "not gpu and not slow" $(AND_NOTE)/1-kernels.log || failed="$$failed kernels"; \
	echo "Tests 2 of 3: kernels compiled ahead of time, and the benchmarks' own code"; \
	$(PLAIN) $(PYTEST) tests/benchmarks -m "not gpu and not slow" $(AND_NOTE)/2-compiled.log || failed="$$failed compiled"; \
	echo "Tests 3 of 3: everything else"; \
	$(PLAIN) $(PYTEST) tests --ignore=tests/kernels --ignore=tests/models_on_kernels --ignore=tests/benchmarks -m "not gpu and not slow and not slurm" \
	  $(AND_NOTE)/3-rest.log || failed="$$failed rest"; \
	[ -z "$$failed" ] || echo "Failed:$$failed. The logs stand in $(RESULTS_OF_TESTS)."; \
	tail -qn 1 $(RESULTS_OF_TESTS)/*.log; \
	[ -z "$$failed" ]

# pytest's status 5 says that no test has the mark, which is no failure here.
test-slow: $(VENV)/.test ## Pass the tests that take long: launchers times ZeRO stages, convergence
	@failed=; \
	$(INTERPRETED) $(PYTEST) tests/kernels tests/models_on_kernels -m "slow and not gpu" || [ $$? -eq 5 ] || failed=1; \
	$(PLAIN) $(PYTEST) tests --ignore=tests/kernels --ignore=tests/models_on_kernels -m "slow and not gpu and not slurm" || failed=1; \
	[ -z "$$failed" ]

test-slurm: $(VENV)/.test ## Pass the tests on a real two-node Slurm of their own (as root)
	@$(PLAIN) $(PYTEST) tests -m slurm || [ $$? -eq 5 ]

drill: $(VENV)/.test ## Kill ranks at 20 random moments, twice: checkpoints whole, no more lost than promised, the same weights
	@$(PLAIN) $(PYTEST) -s tests/multi_rank/test_drill.py

lint: $(VENV)/.dev ## Check format, style, spelling and shell scripts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/codespell
	@$(BIN)/shellcheck --external-sources .ci/run slurm/*.sh
	@echo "lint: nothing to say"

types: $(VENV)/.dev $(VENV)/.test ## Check types, those of optional packages too
	@$(BIN)/pyright

docs: $(VENV)/.docs ## Build the documentation as a site, build/docs; a broken link fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --clean --config-file .mkdocs.yml
	@echo "docs: build/docs/index.html"

##@ Kernels and speed
.PHONY: kernels gpu bench bench-check performance
kernels: $(VENV)/.runtime ## Compile every kernel for every GPU that we name, without one; hold registers, spills and the rest against the committed table
	@$(PLAIN) $(BIN)/python -m benchmarks.compile_kernels

# A machine that is lent for minutes has torch already; installing anything there would eat its time.
BARE := import torch, triton, pytest; raise SystemExit(not torch.cuda.is_available())
gpu: ## On a CUDA machine: test every kernel, then time it; needs only a Python with torch, triton and pytest
	@if $(PYTHON) -c "$(BARE)" 2>/dev/null; then \
	  echo "Using $$(command -v $(PYTHON)), whose torch sees a GPU."; PYTHONPATH=kernels $(PYTHON) -m benchmarks.run_gpu; \
	elif [ "$(DEVICE)" = cuda ]; then \
	  $(MAKE) $(VENV)/.test && PYTHONPATH=kernels $(BIN)/python -m benchmarks.run_gpu; \
	else echo "No GPU here: nvidia-smi does not answer, and the torch of $(PYTHON), if any, sees no device." >&2; exit 2; fi

bench: $(VENV)/.runtime ## Time reading windows and the weighted loss on this machine's CPU
	@$(PLAIN) $(BIN)/python -m benchmarks.data_workers
	@$(PLAIN) $(BIN)/python -m benchmarks.weighted_mse --device cpu

bench-check: $(VENV)/.runtime ## Hold this run's ratios of ours to what does the same plainly against the committed ones: a minute
	@$(PLAIN) $(BIN)/python -W ignore -m benchmarks.bench_check

performance: $(VENV)/.runtime ## Refill the tables of docs/performance.md from the committed CSV files
	@$(PLAIN) $(BIN)/python -m benchmarks.tabulate

##@ Install
.PHONY: install install-dev system-packages clean help
install: $(VENV)/.runtime ## Install into .venv what a run needs, and nothing else

install-dev: $(VENV)/.dev $(VENV)/.test ## Install besides what tests and checks need

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) -m venv failed; Debian and Ubuntu want the package python3-venv." >&2; exit 1; }
	@touch $@

# A wheel that requires nvidia-* packages is a CUDA build. It is looked at before the gigabytes come.
CUDA_BUILD := import json, sys; \
  needs = json.load(sys.stdin)["install"][0]["metadata"].get("requires_dist", []); \
  sys.exit(not any(name.startswith(("nvidia-", "cuda-")) for name in needs))
$(VENV)/.torch: | $(VENV)/.python
	@echo "Installing the $(DEVICE) build of torch (log: $(LOG))"
ifeq ($(TORCH_INDEX),)
	@report=$(VENV)/torch.json; \
	$(PIP) install $(if $(PIP_INDEX),--index-url $(PIP_INDEX)) --dry-run --ignore-installed --no-deps --quiet --report $$report \
	  -c $(CONSTRAINTS) torch $(TO_LOG); \
	if $(BIN)/python -c '$(CUDA_BUILD)' <$$report; then found=cuda; else found=cpu; fi; \
	case $(DEVICE)-$$found in \
	  cpu-cuda) echo "pip takes a CUDA build of torch (gigabytes) though no GPU answers; the CPU build: TORCH_INDEX=https://download.pytorch.org/whl/cpu";; \
	  cuda-cpu) echo "pip takes a CPU build of torch though a GPU answers; name an index of CUDA builds by TORCH_INDEX=..." ;; \
	esac
	@$(INSTALL) torch $(TO_LOG)
else
	@$(PIP) install --index-url $(TORCH_INDEX) --no-deps -c $(CONSTRAINTS) torch $(TO_LOG)
endif
	@echo $(DEVICE) >$(VENV)/.device
	@touch $@

PINS := setup.py pyproject.toml constraints.txt constraints-cuda.txt
$(VENV)/.runtime: $(PINS) | $(VENV)/.torch
	@echo "Installing SimCast-HPC and what it runs on"
	@$(INSTALL) -e . $(TO_LOG)
	@touch $@

# The extrapolation baseline is an oracle of the tests as well.
$(VENV)/.verify: $(VENV)/.runtime
	@echo "Installing pysteps and OpenCV for the extrapolation baseline (compiles for a minute)"
	@$(INSTALL) -e '.[verify]' $(TO_LOG)
	@touch $@

$(VENV)/.test: $(VENV)/.verify
	@echo "Installing what the tests need"
	@$(INSTALL) -e '.[io,test]' $(TO_LOG)
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "Installing what the checks need"
	@$(INSTALL) -e '.[dev]' $(TO_LOG)
	@touch $@

$(VENV)/.docs: $(VENV)/.runtime
	@echo "Installing what the documentation is built with"
	@$(INSTALL) -e '.[docs]' $(TO_LOG)
	@touch $@

# g++ compiles pysteps at its installation; shellcheck reads the batch scripts in tests; git names the commit of a run;
# `make test-slurm` starts a cluster of its own from the packages of Slurm, and two nodes by those of iproute2.
# Debian's own Python comes without venv and headers. A browser opens the page of a run in a test; Ubuntu has Chromium as
# a snap alone, so there it is whatever Chrome and chromedriver stand on the machine.
PACKAGES := $(if $(shell grep -x ID=debian /etc/os-release 2>/dev/null),chromium chromium-driver) g++ git iproute2 make munge shellcheck slurm-client slurm-wlm $(if $(filter /usr/bin/%,$(shell command -v $(PYTHON))),python3-dev python3-venv)
system-packages: ## Install the Debian packages that installation and tests want (as root or by sudo)
	@command -v apt-get >/dev/null || \
	  { echo "There is no apt-get here. By this system's own means, please install: $(PACKAGES)" >&2; exit 1; }
	@missing=; for package in $(PACKAGES); do \
	  dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null | grep -qx installed || missing="$$missing $$package"; \
	done; \
	if [ -z "$$missing" ]; then echo "All Debian packages are here: $(PACKAGES)"; exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then as_root=; elif command -v sudo >/dev/null; then as_root=sudo; \
	else echo "Installing$$missing needs root, and there is no sudo." >&2; exit 1; fi; \
	echo "Installing Debian packages:$$missing"; \
	$$as_root apt-get update -qq && $$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing

clean: ## Remove .venv, caches and build products; runs/ and data stay
	rm -rf $(VENV) build dist ./*.egg-info .pytest_cache .ruff_cache .hypothesis
	find benchmarks kernels simcast_hpc tests -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## List what make can do
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@printf '%s\n' "" "Variables: PYTHON (python3), DEVICE (cpu or cuda; by nvidia-smi), TORCH_INDEX and PIP_INDEX (where pip" \
	  "looks for torch and for the rest), MODEL (simvp or earthformer, of run and radar), PYTEST_ARGS."
