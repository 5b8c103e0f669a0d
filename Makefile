# make boot and make test do everything on a fresh machine; make help lists the rest.
.DELETE_ON_ERROR:
.PHONY: boot test test-interpreted test-compiled test-quick test-pythons form tools lint speed interpreted fuzz soak guest guest-sources wheel clean help

VENV   := .venv
PYTHON := $(VENV)/bin/python
READY  := $(VENV)/.ready
FUZZER := $(VENV)/.fuzzer
ARGS   ?=
# Arguments for pytest, such as: make test TESTS='tests/unit -k ring'
TESTS  ?=
# Tests that run at a time: by the number of CPUs, and in one process with JOBS=0.
JOBS   ?= auto
PYTEST := $(PYTHON) -m pytest -n $(JOBS) --maxprocesses 8 --dist loadfile
# Seconds of make fuzz
FUZZ_SECONDS ?= 3600
# Seconds of make soak
SECONDS ?= 600
# Only root can install what is missing; others are told the command to run.
INSTALL_DEPS := $(shell [ "$$(id -u)" = 0 ] && echo --install-deps)

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

boot: guest  ## Set up, build the guest if needed, and boot it to a shell (ARGS= adds options)
	@$(PYTHON) speed/build.py --if-compiled
	@$(PYTHON) -m pykvm boot guest $(ARGS)

ifeq ($(strip $(TESTS)),)
test: lint test-interpreted test-compiled  ## Set up, then run linters and every test; with TESTS=, just those tests
else
test: form
	$(PYTHON) -m pytest $(TESTS)
endif

test-interpreted: tools interpreted  ## The tests that the form of the hot path can affect, interpreted
	PYKVM_FORM=interpreted $(PYTEST) --affected

test-compiled: tools speed  ## Every test, with the hot path compiled
	PYKVM_FORM=compiled $(PYTEST)

test-quick: lint form  ## Linters, and the unit tests in one form: fewer examples, and no slow tests
	$(PYTEST) -q tests/unit --hypothesis-profile quick -m 'not slow'

test-pythons: $(READY)  ## The unit tests on every other Python from 3.11 on that is here, interpreted
	$(PYTHON) tests/helpers/pythons.py -n $(JOBS) --maxprocesses 8 --dist loadfile tests/unit

# What is tested is what is in the checkout, in whatever form it is.
form: $(READY)
	@$(PYTHON) speed/build.py --if-compiled

# The tests' own guest is compiled, and one test traces system calls.
TEST_PACKAGES := gcc libc6-dev binutils make strace

tools: guest
	@for tool in gcc ld make strace; do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	[ -z "$$missing" ] || \
	    { [ -n "$(INSTALL_DEPS)" ] && apt-get update -q && apt-get install -qy $(TEST_PACKAGES); } || \
	    echo "some tests need$$missing: apt-get install $(TEST_PACKAGES)" >&2

speed: $(READY)  ## Compile the hot path (quick when nothing changed)
	@$(PYTHON) speed/build.py $(INSTALL_DEPS)

interpreted: $(READY)  ## Undo that
	@$(PYTHON) speed/build.py --clean

fuzz: $(FUZZER)  ## Fuzz rings, requests, PCI and parsers for FUZZ_SECONDS (an hour), interpreted
	$(PYTHON) speed/build.py --interpreted $(PYTHON) -m fuzz --seconds $(FUZZ_SECONDS)

soak: $(READY)  ## Random drivers against the disk for SECONDS (ten minutes)
	$(PYTHON) -m soak --seconds $(SECONDS)

$(FUZZER): $(READY)
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --only-binary atheris --editable '.[fuzz]' || \
	    { echo "fuzzing needs atheris, which has wheels for Python 3.11 to 3.14 on x86-64 only" >&2; exit 1; }
	@touch $@

lint: $(READY)  ## Style, types and the import contracts
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	cd guest && $(abspath $(PYTHON)) -m mypy --config-file ../pyproject.toml build.py recipe
	cd speed && $(abspath $(PYTHON)) -m mypy --config-file ../pyproject.toml build.py declarations.py hook.py
	$(VENV)/bin/lint-imports

guest: $(READY)  ## Build the bundled guest for this host (quick when nothing changed)
	@$(PYTHON) guest/build.py $(INSTALL_DEPS)

guest-sources: $(READY)  ## Collect the exact sources of the bundled guest in dist/guest-sources
	$(PYTHON) guest/build.py $(INSTALL_DEPS) --flavour all --sources dist/guest-sources

wheel: $(READY)  ## Build the wheel, with both flavours of the guest, in dist/
	$(PYTHON) guest/build.py $(INSTALL_DEPS) --flavour all
	$(PYTHON) -m build --wheel --outdir dist

$(READY): pyproject.toml
	@command -v python3 >/dev/null || { echo "python3 is missing: apt-get install python3 python3-venv" >&2; exit 1; }
	@python3 -c 'import ensurepip, venv' 2>/dev/null || \
	    { [ -n "$(INSTALL_DEPS)" ] && apt-get update -q && apt-get install -qy python3-venv; } || \
	    { echo "python3 has no venv module: apt-get install python3-venv" >&2; exit 1; }
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:  ## Remove everything that make made here (the guest cache stays)
	rm -rf $(VENV) build dist pykvm/bundles .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find pykvm devices -name "*.so" -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
