# Everything runs from a clean checkout with Python 3.10+, make and g++; a Go
# toolchain comes from PyPI where the machine has none. The first target that
# needs it makes the virtual environment, with torch in it, once.

#
#   FUZZTIME  time per fuzz target of `make fuzz`
#   PYTEST    more arguments for pytest, e.g. PYTEST="-k fork -x"
#   GPU_PYTHON, GPU_WHEELS, GPU_CUBINS, NVCOMP, OFFLOAD_WHEELS   see "GPU machines" below

VENV     ?= .venv
PYTHON   ?= python3
FUZZTIME ?= 10m
PYTEST   ?=

PY    := $(VENV)/bin/python
BUILD := python/_build_backend/tpde_build.py
# Evaluated where it is used: the toolchain may be installed by then only.
GO     = $(shell $(PY) $(BUILD) go)
GOFMT  = $(shell $$($(PY) $(BUILD) go) env GOROOT)/bin/gofmt
# Where Go tests find NVRTC, which comes with torch and needs no GPU.
SITE_PACKAGES = $(shell $(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

export GOTOOLCHAIN := local
export CGO_ENABLED := 1
# NVML's header deprecates functions that go-nvml wraps.
export CGO_CFLAGS := -O2 -g -Wno-deprecated-declarations
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help venv build demo test test-go test-fuzz test-python lint bench fuzz wheel gpu-bundle gpu-bundle-offload bench-gpu bench-offload clean

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---- environment and build ------------------------------------------------

# What the package needs, and the package itself as an editable install.
$(VENV)/.installed: pyproject.toml setup.py $(BUILD)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"{sys.executable} is Python {sys.version.split()[0]}, expected 3.10 or newer: make PYTHON=...")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet 'setuptools>=77' 'pybind11>=2.13' $$($(PY) $(BUILD) requirement)
	$(PY) -m pip install --quiet --no-build-isolation --editable '.[test]'
	@touch $@

venv: $(VENV)/.installed ## Make .venv with torch and everything that tests need

build: $(VENV)/.installed ## Build the Go core and the binding in place (quick when little changed)
	@$(PY) setup.py --quiet build_ext --inplace

# ---- use --------------------------------------------------------------------

demo: build ## Pack, rebuild and verify the test data; show sizes and times beside XOR + zstd
	@$(PY) tests/demo/demo.py

bench: build $(VENV)/.bench ## Measure ratio and speed beside the peers
	@$(PY) tests/bench/bench.py

$(VENV)/.bench: $(VENV)/.installed
	$(PY) -m pip install --quiet --no-build-isolation --editable '.[bench]' || \
	  echo "the peers cannot all be installed: the bench does without those that are missing"
	@touch $@

# ---- tests ------------------------------------------------------------------

test: build test-go test-fuzz test-python ## Run everything that CI runs

check_gofmt = unformatted=$$($(GOFMT) -l core capi kernels) && \
	test -z "$$unformatted" || { echo "not formatted by gofmt: $$unformatted"; exit 1; }

test-go:
	@echo "== gofmt, go vet, go test -race"
	@$(check_gofmt)
	@$(GO) vet ./...
	@TPDE_SITE_PACKAGES=$(SITE_PACKAGES) $(GO) test -race -timeout 40m ./...

test-fuzz:
	@echo "== a short run of every fuzz target"
	@.ci/fuzz $(GO) 2s

fuzz: $(VENV)/.installed ## Run every fuzz target for FUZZTIME (10m)
	@.ci/fuzz $(GO) $(FUZZTIME)

test-python: build
	@echo "== pytest"
	@$(PY) -m pytest $(PYTEST)

# ---- checks and releases ----------------------------------------------------

lint: build $(VENV)/.lint ## gofmt, go vet, staticcheck, ruff, mypy
	@$(check_gofmt)
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/.lint: $(VENV)/.installed
	$(PY) -m pip install --quiet --no-build-isolation --editable '.[lint]'
	@touch $@

wheel: $(VENV)/.installed ## Build the sdist, and the wheel from it, into dist/
	$(PY) -m build --outdir dist .

# ---- GPU machines -----------------------------------------------------------

# The bundle is for a machine with this Python, torch and a driver; see
# tests/gpu_bundle. NVCOMP= leaves nvCOMP out, which is most of the bundle.
GPU_PYTHON ?= python3.12
NVCOMP     ?= nvidia-libnvcomp-cu13==6.0.0.12
GPU_WHEELS ?= $(NVCOMP) safetensors tqdm hypothesis sortedcontainers pytest pluggy iniconfig packaging pygments
# Kernels are compiled where they run, once, which takes some minutes in all; or here,
# for one GPU and the NVRTC of its torch: GPU_CUBINS="sm_90 13.0.88".
GPU_CUBINS ?=
# The peers of bench-offload that GPU machines lack; they have CuPy, accelerate and transformers.
OFFLOAD_WHEELS ?= dfloat11 dahuffman==0.4.2 diffusers bitsandbytes

gpu-bundle: $(VENV)/.installed ## Gather in ./gpu-bundle what a GPU machine without Go and internet needs
	@GPU_PYTHON='$(GPU_PYTHON)' GPU_WHEELS='$(GPU_WHEELS)' GPU_CUBINS='$(GPU_CUBINS)' GO='$(GO)' tests/gpu_bundle/build.sh gpu-bundle

gpu-bundle-offload: ## The same with the peers of bench-offload instead of nvCOMP
	@$(MAKE) --no-print-directory gpu-bundle NVCOMP= GPU_WHEELS='$(filter-out $(NVCOMP),$(GPU_WHEELS)) $(OFFLOAD_WHEELS)'

bench-gpu: build ## Measure on the GPU of this machine
	@$(PY) tests/bench/bench_gpu.py

bench-offload: build ## Run a 16 GB model in less VRAM on the GPU of this machine, beside the peers that are installed
	@$(PY) tests/bench/bench_offload.py

clean: ## Remove what was built; .venv stays (remove it by hand)
	rm -rf build dist gpu-bundle python/*.egg-info python/tpde/lib python/tpde/include python/tpde/_binding*.so
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find python tests -name __pycache__ -type d -prune -exec rm -rf {} +
