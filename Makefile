# `make demo` and `make test` work from a fresh clone with nothing but Python: they install into .venv first, once.
# `make demo LOCKED=1` installs what the demo takes and nothing else, every file by its hash.
# On Linux without an NVIDIA GPU, PIP_EXTRA_INDEX_URL set to PyTorch's index of CPU builds saves gigabytes.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PYTEST := OMP_NUM_THREADS=1 RWKV_EXPORT_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile
LOCK := $(BIN)/python -m pip install --require-hashes -r requirements/demo.lock && \
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
PACKAGES := exporter runtimes validation rwkv_export

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## export, validate and measure the bundled model; writes out/demo/report.html
	$(BIN)/rwkv-export demo

test: $(INSTALLED)  ## style, types and all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST)

test-fast: $(INSTALLED)  ## style and the tests that take no toolchain, in a minute or so
	$(BIN)/ruff check .
	$(PYTEST) -m "not slow"

coverage: $(INSTALLED)  ## all tests, and which lines and branches they ran; a quarter slower
	$(PYTEST) $(PACKAGES:%=--cov=%) --cov-branch --cov-report=term-missing:skip-covered

install: $(INSTALLED)  ## install into .venv

sbom:  ## write rwkv-export.cdx.json, a CycloneDX bill of what a locked install takes
	$(PYTHON) -m venv .sbom && .sbom/bin/python -m pip install -q cyclonedx-bom==7.5.0
	PYTHONWARNINGS=ignore .sbom/bin/cyclonedx-py requirements requirements/demo.lock --pyproject pyproject.toml --of JSON \
		--output-reproducible -o rwkv-export.cdx.json

clean:  ## remove .venv and everything generated
	rm -rf .venv .sbom out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage

# Installs again when either file changes. The last line runs only if everything before it succeeded.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Python 3.11 or newer is needed; \`$(PYTHON)\` is $$($(PYTHON) --version 2>&1)" >&2; \
		echo "" >&2; \
		echo "hint: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	$(PYTHON) -m venv .venv
	$(if $(LOCKED),$(LOCK),$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]")
	@touch $@

.PHONY: help demo test test-fast coverage install sbom clean
