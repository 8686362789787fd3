# Installation, runs and checks of SimCast-HPC. `make help` lists the targets.
#
# Everything is installed into .venv; stamp files in it record what is installed. torch is installed first, because its
# build (CUDA if nvidia-smi answers, else CPU) determines the other packages. On a cluster whose login node has no GPU,
# select the build at the first call: make install DEVICE=cuda.

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
SECONDS ?= 60
READER ?=
ifndef DEVICE
DEVICE := $(shell cat $(VENV)/.device 2>/dev/null || { nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu; })
endif
ifeq ($(filter cpu cuda,$(DEVICE)),)
$(error DEVICE='$(DEVICE)' is invalid; choose cpu or cuda, the build of torch)
endif
CONSTRAINTS := $(if $(filter cuda,$(DEVICE)),constraints-cuda.txt,constraints.txt)

# Caches of compiled operators and kernels are in .venv: the default folders are shared by all environments of a user.
# DS_BUILD_OPS makes DeepSpeed compile operators at installation; none is needed.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VENV)/torch_extensions
export TRITON_CACHE_DIR := $(CURDIR)/$(VENV)/triton_cache
unexport DS_BUILD_OPS
# Isolated builds of source distributions use the pinned setuptools, Cython and NumPy too. pip 25.3 renamed the variable.
export PIP_CONSTRAINT := $(CURDIR)/$(CONSTRAINTS)
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT)

LOG := $(VENV)/install.log
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install $(if $(PIP_INDEX),--index-url $(PIP_INDEX)) -c $(CONSTRAINTS)
TO_LOG = >>$(LOG) 2>&1 || { tail -n 25 $(LOG); echo "The installation failed; see $(LOG)."; exit 1; }

##@ Run
BACKBONE := $(filter-out -simvp,-$(MODEL))
.PHONY: run run-full radar
run: $(VENV)/.runtime ## Train teacher, student and direct model on synthetic data, verify them and write the report
	@echo "Training and verification on synthetic data (pipeline/quickstart$(BACKBONE)): up to 15 minutes on 2 cores."
	@$(BIN)/simcast pipeline pipeline/quickstart$(BACKBONE)

run-full: $(VENV)/.runtime ## The same with all stages: also a direct model with an unweighted loss, autoencoder and diffusion
	@echo "Training and verification on synthetic data (pipeline/quickstart-full): all stages, 12 minutes of training."
	@$(BIN)/simcast pipeline pipeline/quickstart-full

.PHONY: archive-of-radar
archive-of-radar:
	@[ -f "$(DATA)/CATALOG.csv" ] || { echo "make radar requires DATA=FOLDER with CATALOG.csv; DATA is '$(DATA)'." >&2; exit 2; }

# Only baselines of pysteps require the extra [verify].
PYSTEPS := pysteps-lk|darts|s-prog|steps|linda|anvil
RADAR_STAMP := $(if $(shell grep -Es 'baselines:.*[ [,]($(PYSTEPS))[],]' configs/pipeline/radar$(BACKBONE).yaml),.verify,.runtime)
radar: archive-of-radar $(VENV)/$(RADAR_STAMP) ## The same on real radar, DATA=FOLDER with CATALOG.csv, with extrapolation as a baseline
	@echo "Training and verification on the radar archive in $(DATA) (pipeline/radar$(BACKBONE)): up to 20 minutes on 2 cores."
	@$(BIN)/simcast pipeline pipeline/radar$(BACKBONE) --set "data.root=$(DATA)"

##@ Check
# Three processes, because TRITON_INTERPRET is read when a kernel is imported: kernels in the interpreter, kernels
# compiled ahead of time, and the rest. A failure of one does not skip the others.
PYTEST := $(BIN)/python -m pytest $(PYTEST_ARGS)
PLAIN := env -u TRITON_INTERPRET -u SIMCAST_KERNELS
INTERPRETED := env -u SIMCAST_KERNELS TRITON_INTERPRET=1
TEST_LOGS := $(VENV)/tests
TO_TEST_LOG = 2>&1 | tee $(TEST_LOGS)

.PHONY: test test-ci test-slow test-slurm test-container fuzz drill lint types audit docs figures reference notebooks
test: $(VENV)/.test ## Run the tests; needs neither GPU nor root
	@rm -rf $(TEST_LOGS); mkdir -p $(TEST_LOGS); failed=; \
	echo "Tests 1 of 3: kernels against their reference implementations, in the interpreter"; \
	$(INTERPRETED) $(PYTEST) tests/kernels tests/models_on_kernels -m "not gpu and not slow" $(TO_TEST_LOG)/1-kernels.log || failed="$$failed kernels"; \
	echo "Tests 2 of 3: kernels compiled ahead of time, and benchmarks"; \
	$(PLAIN) $(PYTEST) tests/benchmarks -m "not gpu and not slow" $(TO_TEST_LOG)/2-compiled.log || failed="$$failed compiled"; \
	echo "Tests 3 of 3: everything else"; \
	$(PLAIN) $(PYTEST) tests --ignore=tests/kernels --ignore=tests/models_on_kernels --ignore=tests/benchmarks -m "not gpu and not slow and not slurm and not ci and not container" \
	  $(TO_TEST_LOG)/3-rest.log || failed="$$failed rest"; \
	[ -z "$$failed" ] || echo "Failed:$$failed. Logs: $(TEST_LOGS)."; \
	tail -qn 1 $(TEST_LOGS)/*.log; \
	[ -z "$$failed" ]

test-ci: $(VENV)/.test $(VENV)/.docs $(VENV)/.fuzz ## Test installed distributions, notebooks, short fuzzing, commands of the quickstart, the documentation site, and runs on an emulated GPU
	@$(PLAIN) $(PYTEST) tests -m ci

# pytest's status 5 means that no test has the mark, which is not a failure here.
test-slow: $(VENV)/.test ## Run the slow tests: all launchers and ZeRO stages, convergence
	@failed=; \
	$(INTERPRETED) $(PYTEST) tests/kernels tests/models_on_kernels -m "slow and not gpu" || [ $$? -eq 5 ] || failed=1; \
	$(PLAIN) $(PYTEST) tests --ignore=tests/kernels --ignore=tests/models_on_kernels -m "slow and not gpu and not slurm and not ci and not container" || failed=1; \
	[ -z "$$failed" ]

test-slurm: $(VENV)/.test ## Run the tests on a local Slurm cluster of two nodes (as root)
	@$(PLAIN) $(PYTEST) tests -m slurm || [ $$? -eq 5 ]

test-container: $(VENV)/.test ## Run the steps of the container recipes in a new Debian root (as root; needs a network)
	@$(PLAIN) $(PYTEST) -s tests/containers -m container

fuzz: $(VENV)/.fuzz ## Fuzz the readers of radar files, SECONDS=60 each; READER=odim selects one
	@$(PLAIN) $(BIN)/python -m tests.fuzz.run_fuzz --seconds $(SECONDS) $(if $(READER),--reader $(READER))

drill: $(VENV)/.test ## Kill ranks at 20 random times, twice: complete checkpoints, bounded loss, equal weights
	@$(PLAIN) $(PYTEST) -s tests/multi_rank/test_drill.py

lint: $(VENV)/.dev ## Check format, style, spelling, vocabulary and shell scripts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/codespell
	@$(BIN)/python -m tests.vocabulary.check_vocabulary
	@$(BIN)/shellcheck --external-sources .ci/run slurm/*.sh
	@echo "lint: no findings"

types: $(VENV)/.dev $(VENV)/.test ## Check types
	@$(BIN)/pyright

audit: $(VENV)/.dev ## Check the pinned versions against published vulnerabilities; needs a network
	@$(BIN)/python .ci/audit_pins.py constraints.txt

docs: $(VENV)/.docs ## Build the documentation in build/docs; a broken link is an error
	@$(BIN)/python -m docs.generate.plain_pages build/pages
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --clean --config-file .mkdocs.yml
	@echo "docs: build/docs/index.html"

figures: ## Draw docs/figures/*.svg from docs/figures/draw_figures.py
	@$(PYTHON) docs/figures/draw_figures.py

reference: $(VENV)/.runtime ## Regenerate the pages on configuration, command line and protocols in docs/reference
	@for page in configuration cli protocols; do PYTHONPATH=.:kernels $(BIN)/python -m docs.generate.$${page}_page; done

notebooks: $(VENV)/.test ## Execute the notebooks of the documentation and store their outputs
	@$(PLAIN) $(BIN)/python -m tests.notebooks.notebook_outputs

##@ Kernels and speed
.PHONY: kernels gpu bench bench-check performance
kernels: $(VENV)/.runtime ## Compile every kernel for the supported GPUs, without a GPU, and compare with the committed table
	@$(PLAIN) $(BIN)/python -m benchmarks.compile_kernels

# A GPU machine with torch is used as it is: installing anything would cost GPU time.
BARE := import torch, triton, pytest; raise SystemExit(not torch.cuda.is_available())
gpu: ## Test and benchmark every kernel on a GPU; needs only a Python with torch, triton and pytest
	@if $(PYTHON) -c "$(BARE)" 2>/dev/null; then \
	  echo "Using $$(command -v $(PYTHON)), whose torch sees a GPU."; PYTHONPATH=kernels $(PYTHON) -m benchmarks.run_gpu; \
	elif [ "$(DEVICE)" = cuda ]; then \
	  $(MAKE) $(VENV)/.test && PYTHONPATH=kernels $(BIN)/python -m benchmarks.run_gpu; \
	else echo "No GPU: nvidia-smi does not answer, and the torch of $(PYTHON), if any, sees no device." >&2; exit 2; fi

bench: $(VENV)/.runtime ## Benchmark data loading and the weighted loss on the CPU
	@$(PLAIN) $(BIN)/python -m benchmarks.data_workers
	@$(PLAIN) $(BIN)/python -m benchmarks.weighted_mse --device cpu

bench-check: $(VENV)/.runtime ## Compare the speed-ups over reference implementations with the committed ones: a minute
	@$(PLAIN) $(BIN)/python -W ignore -m benchmarks.bench_check

performance: $(VENV)/.runtime ## Refill the tables and the figure of the performance pages from the committed CSV files
	@$(PLAIN) $(BIN)/python -m benchmarks.tabulate
	@$(PLAIN) $(BIN)/python -m benchmarks.performance_figure

##@ Install
.PHONY: install install-extras install-dev system-packages clean help
install: $(VENV)/.runtime ## Install the requirements of a run into .venv

install-extras: $(VENV)/.io ## Also install radar formats and the baselines of pysteps (extras io and verify)

install-dev: $(VENV)/.dev $(VENV)/.test ## Also install the requirements of tests and checks

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is required, $(PYTHON) is $$($(PYTHON) -V 2>&1); choose another: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) -m venv failed; Debian and Ubuntu need the package python3-venv." >&2; exit 1; }
	@touch $@

# A wheel that requires nvidia-* packages is a CUDA build; this is checked before the download of gigabytes.
CUDA_BUILD := import json, sys; \
  needs = json.load(sys.stdin)["install"][0]["metadata"].get("requires_dist", []); \
  sys.exit(not any(name.startswith(("nvidia-", "cuda-")) for name in needs))
$(VENV)/.torch: | $(VENV)/.python
	@echo "Installing the $(DEVICE) build of torch (log: $(LOG))"
ifeq ($(TORCH_INDEX),)
	@report=$(VENV)/torch.json; \
	$(PIP) install $(if $(PIP_INDEX),--index-url $(PIP_INDEX)) --dry-run --ignore-installed --no-deps --quiet --report $$report \
	  -c $(CONSTRAINTS) torch $(TO_LOG); \
	if $(BIN)/python -c '$(CUDA_BUILD)' <$$report; then build=cuda; else build=cpu; fi; \
	case $(DEVICE)-$$build in \
	  cpu-cuda) echo "pip selects a CUDA build of torch (gigabytes) although there is no GPU; for the CPU build: TORCH_INDEX=https://download.pytorch.org/whl/cpu";; \
	  cuda-cpu) echo "pip selects a CPU build of torch although there is a GPU; give an index of CUDA builds: TORCH_INDEX=..." ;; \
	esac
	@$(INSTALL) torch $(TO_LOG)
else
	@$(PIP) install --index-url $(TORCH_INDEX) --no-deps -c $(CONSTRAINTS) torch $(TO_LOG)
endif
	@echo $(DEVICE) >$(VENV)/.device
	@touch $@

PINS := setup.py pyproject.toml constraints.txt constraints-cuda.txt
$(VENV)/.runtime: $(PINS) | $(VENV)/.torch
	@echo "Installing SimCast-HPC and its requirements"
	@$(INSTALL) -e . $(TO_LOG)
	@touch $@

# The baselines of pysteps are also a reference of the tests.
$(VENV)/.verify: $(VENV)/.runtime
	@echo "Installing pysteps and OpenCV for its baselines (compiles for about a minute)"
	@$(INSTALL) -e '.[verify]' $(TO_LOG)
	@touch $@

$(VENV)/.io: $(VENV)/.verify
	@echo "Installing the requirements of radar formats"
	@$(INSTALL) -e '.[io]' $(TO_LOG)
	@touch $@

$(VENV)/.test: $(VENV)/.io
	@echo "Installing the requirements of the tests"
	@$(INSTALL) -e '.[test,notebooks]' $(TO_LOG)
	@touch $@

$(VENV)/.fuzz: $(VENV)/.test
	@echo "Installing atheris for make fuzz"
	@$(INSTALL) -e '.[fuzz]' $(TO_LOG)
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "Installing the requirements of the checks"
	@$(INSTALL) -e '.[dev]' $(TO_LOG)
	@touch $@

$(VENV)/.docs: $(VENV)/.runtime
	@echo "Installing the requirements of the documentation"
	@$(INSTALL) -e '.[docs]' $(TO_LOG)
	@touch $@

# g++ compiles pysteps and the emulated device of the tests; shellcheck checks the batch scripts in tests; git gives the
# commit of a run; `make test-slurm` starts a cluster from the packages of Slurm, iproute2 emulates two nodes, and
# `make test-container` makes a root with debootstrap. Debian's Python has neither venv nor
# headers. A test opens the report in Chromium; Ubuntu has it only as a snap, so an installed Chrome is used there.
PACKAGES := $(if $(shell grep -x ID=debian /etc/os-release 2>/dev/null),chromium chromium-driver) debootstrap g++ git iproute2 make munge shellcheck slurm-client slurm-wlm $(if $(filter /usr/bin/%,$(shell command -v $(PYTHON))),python3-dev python3-venv)
system-packages: ## Install the Debian packages for installation and tests (as root or with sudo)
	@command -v apt-get >/dev/null || \
	  { echo "apt-get is missing; install with the package manager of this system: $(PACKAGES)" >&2; exit 1; }
	@missing=; for package in $(PACKAGES); do \
	  dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null | grep -qx installed || missing="$$missing $$package"; \
	done; \
	if [ -z "$$missing" ]; then echo "All Debian packages are here: $(PACKAGES)"; exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then as_root=; elif command -v sudo >/dev/null; then as_root=sudo; \
	else echo "Installing$$missing requires root, and sudo is missing." >&2; exit 1; fi; \
	echo "Installing Debian packages:$$missing"; \
	$$as_root apt-get update -qq && $$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing

clean: ## Remove .venv, caches and build products; keep runs/ and data
	rm -rf $(VENV) build dist ./*.egg-info .pytest_cache .ruff_cache .hypothesis
	find benchmarks kernels simcast_hpc tests -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@printf '%s\n' "" "Variables: PYTHON (python3), DEVICE (cpu or cuda; default by nvidia-smi), TORCH_INDEX and PIP_INDEX (package" \
	  "indexes of torch and of the rest), MODEL (simvp or earthformer, for run and radar), PYTEST_ARGS, SECONDS and READER (for fuzz)."
