# `make` alone says what there is.
.DEFAULT_GOAL := help
.PHONY: help setup newer-kernel demo test test-deep test-soak durations check bench bench-quick wheel test-wheel docs emulated-host fuzz format lock clean

BIN := .venv/bin
SOURCES := src tests tools benchmarks docs examples

define LINT
$(BIN)/ruff check $(SOURCES)
$(BIN)/ruff format --check $(SOURCES)
$(BIN)/mypy
$(BIN)/lint-imports
$(BIN)/codespell
endef

# Thousands of starts of Python, and the rewriting of all tests, take twice as long without what is compiled once.
unexport PYTHONDONTWRITEBYTECODE

# A group of tests at a time for each CPU (`make test WORKERS=0`: one test after another), the longest first:
# tests/README.md. Most of a VM test is waiting, but an emulated guest that computes has a CPU to itself.
WORKERS := auto
SIDE_BY_SIDE = -n $(WORKERS) --maxprocesses 8

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing, make .venv, build the guest's agent, get a kernel for guests
	@tools/setup.sh

newer-kernel: ## add the kernel of this Debian's backports for guests, where the present one lacks something
	@tools/setup.sh newer-kernel

demo: setup ## boot a VM and fork it into 8, in a temporary home
	$(BIN)/ramet demo --forks 8

check: | .venv ## lint, types, import rules, and the quick tests that need no VM (a minute on two cores)
	$(LINT)
	$(BIN)/pytest $(SIDE_BY_SIDE) -m "not vm and not slow and not deep and not soak"

test: setup ## lint, types, import rules, and the tests that a merge needs (10 minutes on two cores)
	$(LINT)
	$(BIN)/pytest $(SIDE_BY_SIDE) -m "not deep and not soak"

test-deep: setup ## the long tests: crashes, emulated host, hunts, fuzz, releases, wheel
	$(BIN)/python -m tools.deep

test-soak: setup ## what takes longer still, by hand: every point of a crash, long hunts, long fuzzing (hours)
	$(BIN)/pytest $(SIDE_BY_SIDE) -m soak

durations: setup ## write tests/durations.json anew, from a run of what `make test` runs
	$(BIN)/pytest $(SIDE_BY_SIDE) -m "not deep and not soak" --record-durations

bench: setup .venv/.done-bench ## measure everything anew (10 minutes): docs/internals/benchmarks.md, its data and plots
	$(BIN)/python -m benchmarks

bench-quick: setup .venv/.done-bench ## a few values of everything (1 minute): build/benchmarks.md
	$(BIN)/python -m benchmarks --quick

# Plots want a library of 50 MB, and nothing else does.
.venv/.done-bench: requirements-bench.lock | .venv
	$(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check --require-hashes -r $<
	touch $@

docs: .venv/.done-docs ## build the site into build/docs, warnings are errors; run the doctests of docstrings
	$(BIN)/sphinx-build -b html -W --keep-going -q -E -a -d build/doctrees docs build/docs
	$(BIN)/sphinx-build -b doctest -W --keep-going -q -d build/doctrees docs build/doctest
	$(BIN)/python tools/check_site.py build/docs

# The site wants libraries of 60 MB, and nothing else does.
.venv/.done-docs: requirements-docs.lock | .venv
	$(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check --require-hashes -r $<
	touch $@

wheel: | .venv ## build dist/ramet-*.whl with the agents for x86-64 and aarch64; downloads a cross-compiler once
	$(BIN)/python tools/build_wheel.py

test-wheel: setup wheel ## the tests of the wheel: what is in it, the same bytes twice, the demo from an empty venv
	$(BIN)/pytest tests/platform/test_wheel.py

emulated-host: setup ## a shell on an emulated machine with a KVM that runs Linux, this tree of ramet in it
	$(BIN)/python -m tests.endurance.emulated_host

FUZZ_SECONDS = 60
FUZZ_FRAMES = 1000000
fuzz: | .venv ## feed both ends of the guest's protocol with lies, for FUZZ_SECONDS and FUZZ_FRAMES
	$(BIN)/python -m tests.adversarial.fuzz.agent_run --seconds $(FUZZ_SECONDS)
	$(BIN)/python -m tests.adversarial.fuzz.host_run --frames $(FUZZ_FRAMES)

format: | .venv ## put the sources into the project's format
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

lock: | .venv ## write all lock files anew, with the newest versions that pyproject.toml allows
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	echo 'setuptools>=70.1' | $(BIN)/uv pip compile --quiet --universal --generate-hashes --upgrade \
	    --python-version 3.11 --extra dev --no-emit-index-url --no-annotate \
	    --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml -
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --upgrade \
	    --python-version 3.11 --group wheel --no-emit-index-url --no-annotate \
	    --custom-compile-command "make lock" --output-file requirements-wheel.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --upgrade \
	    --python-version 3.11 --group bench --constraints requirements.lock --no-emit-index-url --no-annotate \
	    --custom-compile-command "make lock" --output-file requirements-bench.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --upgrade \
	    --python-version 3.11 --group docs --constraints requirements.lock --no-emit-index-url --no-annotate \
	    --custom-compile-command "make lock" --output-file requirements-docs.lock

clean: ## remove what was made in this directory; kernels and images in the cache stay
	rm -rf .venv .venv-wheel build dist src/*.egg-info src/ramet/guest/bin
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

.venv:
	@tools/setup.sh
