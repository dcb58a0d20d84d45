# Two commands matter to a newcomer: make demo, make test. `make` lists the others.
PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
UV := uv==0.13.9

# Annoy compiles for the very processor it is built on, and then its index files differ from
# machine to machine. TensorFlow needs AVX anyway, so that is what everyone gets on x86-64.
ifeq ($(shell uname -m),x86_64)
ANNOY_FLAGS := -O3,-mavx,-std=c++14,-DANNOYLIB_MULTITHREADED_BUILD
else
ANNOY_FLAGS := -O3,-std=c++14,-DANNOYLIB_MULTITHREADED_BUILD
endif

.PHONY: help install demo test test-slow faults check lint bench bench-full bench-quality \
	bench-gate bench-rivals bench-acting bench-nights browser lock clean
help:  ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: .venv/installed  ## make .venv with the dedup command in it

# The lock names every package, so pip has nothing to resolve (--no-deps). Annoy is built here and
# never taken from pip's cache, where a build with other flags may lie.
.venv/installed: requirements/lock.txt requirements/annoy.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install -q --no-deps --require-hashes -r requirements/lock.txt
	ANNOY_COMPILER_ARGS=$(ANNOY_FLAGS) $(PIP) install -q --no-deps --require-hashes \
		--no-build-isolation --no-cache-dir --force-reinstall -r requirements/annoy.txt
	$(PIP) install -q --no-deps --no-build-isolation -e .
	$(PIP) check
	touch $@

demo: install  ## run the nightly job on a small night of real photographs
	$(BIN)/python -m benchmarks.demo

test: install browser  ## run the tests (under ten minutes)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not faults"

browser:  ## install Debian's Chromium for the tests of the report, where there is none
	command -v chromium >/dev/null || (apt-get -q update && apt-get -q -y install chromium)

test-slow: install  ## run the tests that take longer
	$(BIN)/python -m pytest -m slow

faults: install  ## kill, unplug and fill up: the tests that break things
	$(BIN)/python -m pytest -m faults

lint: install  ## check style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test  ## lint, type-check and test

bench: install  ## measure speed against what others would run (minutes; tables in docs/)
	$(BIN)/python -m benchmarks

bench-full: install  ## the same with a million features and 100,000 images (hours)
	$(BIN)/python -m benchmarks --full

bench-quality: install  ## measure retrieval quality (DATA=folder with groups.csv)
	$(BIN)/python -m benchmarks.quality $(DATA)

bench-gate: install  ## measure the change gate (DATA=folder of a camera's frames)
	$(BIN)/python -m benchmarks.gate $(DATA)

bench-rivals: install  ## measure fastdup and imagededup beside it (DATA=folders with groups.csv)
	$(BIN)/python -m benchmarks.rivals $(DATA)

bench-acting: install  ## measure quarantine and undo (PLACE=empty folder or S3 URL)
	$(BIN)/python -m benchmarks.acting $(PLACE)

bench-nights: install  ## run thirty nights, cut them otherwise, measure them (DATA=cameras' folders)
	$(BIN)/python -m benchmarks.thirty_nights $(DATA)
	$(BIN)/python -m benchmarks.night_by_night $(DATA)
	$(BIN)/python -m benchmarks.night_cost $(DATA)

lock:  ## choose the newest versions that work together and lock them
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install -q $(UV)
	$(BIN)/uv pip compile -q -U --universal --python-version 3.11 --generate-hashes --no-annotate \
		--no-header --no-emit-package annoy --extra weights --extra heif --extra openvino \
		--extra dask --extra ray --group demo --group bench --group dev pyproject.toml -o requirements/lock.txt
	echo 'annoy==1.17.3' | $(BIN)/uv pip compile -q --universal --generate-hashes --no-annotate \
		--no-header - -o requirements/annoy.txt
	$(PIP) uninstall -q -y uv

clean:  ## remove what these commands have made
	rm -rf .venv build demo-night .pytest_cache .mypy_cache .ruff_cache .hypothesis
