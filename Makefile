# Everything runs in .venv (bench also in .venv-ray and .venv-peers, tests on Ray in .venv-rayengine), on a wheel built from this tree. The
# first run of a target sets up all it needs; stamp files let later runs skip what is up to date.
#
#   make demo         build with full optimisation and run the demonstration
#   make test         build quickly, run all tests, then lint; this is what CI runs
#   make ray-tests    the API on a real Ray cluster (.venv-rayengine); make test runs a short version
#   make unit         tests/unit only            make functional   tests/functional only
#   make chaos        random faults, 60 s        make asan         tests/unit under AddressSanitizer
#   make torture      exactly-once actors and their callers killed 1,000 times over a million calls, on S3, and drivers
#   make bench-checkpoint   durable calls beside casty, DBOS and Ray, and what saving and recovering takes
#   make bench        ftray beside Ray           make scale        a million queued tasks, an object of 8 GiB
#   make ray-bench    calls through ftray on Ray, plain and with checkpoints, beside Ray's own
#   make lint         ruff and mypy              make clean        remove all that make made
#
# DEMO_ARGS, PYTEST_ARGS, CHAOS_ARGS, TORTURE_ARGS, BENCH_ARGS, SCALE_ARGS, OBJECT_ARGS and RAY_ARGS are passed on; PYTHON names another interpreter.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
.SUFFIXES:

# `python3` can be a slow shim, so ask it once for the interpreter behind it.
FIND_PYTHON := for name in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$name -c 'import sys; sys.version_info >= (3, 10) and print(sys.executable)' 2>/dev/null | grep . && break; done
ifndef PYTHON
PYTHON := $(shell $(FIND_PYTHON))
endif
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
RAYPY := .venv-rayengine/bin/python

DEMO_ARGS ?=
PYTEST_ARGS ?=
CHAOS_ARGS ?= --seconds 60
TORTURE_ARGS ?=
BENCH_ARGS ?=
SCALE_ARGS ?=
OBJECT_ARGS ?=
RAY_ARGS ?=

IN_PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder

# Further engines, only when the benchmark is to show them.
PEERS := $(if $(filter --peers,$(BENCH_ARGS)),.venv-peers/.has-peers)

# Tests that failed are run once more, by themselves, and must pass then. That they failed beside others stays
# on the screen: a bound that was too tight for a busy machine, or a race. Either is worth a look.
AGAIN = { [ $$? -eq 1 ] && echo "make: the tests that failed are run once more, by themselves" >&2 && \
	$(1) --last-failed --last-failed-no-failures none; }

export FTRAY_BUILD_CACHE := $(CURDIR)/build/cache
# Hundreds of processes import the same modules of tests/.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-environments short-ray-tests ray-tests ray-bench unit functional chaos torture bench bench-checkpoint scale asan lint clean FORCE

demo: .venv/.installed-release .venv/.has-demo
	$(PY) examples/immortal_training.py --out build/immortal_training.png $(DEMO_ARGS)

# The packaging tests reuse this wheel, and build theirs the same way so that the cache serves them. Tests wait for
# processes a part of their time: three workers keep two cores busy. Whole files go to the workers, in order: tests of
# one file share a runtime, and unit tests run where none does.
test: test-environments
	export FTRAY_TEST_WHEELS=$(CURDIR)/build/wheels-fast; \
	$(PY) -m pytest $(IN_PARALLEL) $(PYTEST_ARGS) || $(call AGAIN,$(PY) -m pytest $(PYTEST_ARGS))
	$(MAKE) --no-print-directory -j2 --output-sync=target PYTHON=$(PYTHON) short-ray-tests lint

# The compiler keeps all cores busy when it runs, which is not always: what the tests need is fetched meanwhile.
test-environments:
	$(MAKE) --no-print-directory -j3 PYTHON=$(PYTHON) build/wheels-fast/.built .venv/.has-test .venv-rayengine/.has-test
	$(MAKE) --no-print-directory -j2 PYTHON=$(PYTHON) .venv/.installed-fast .venv-rayengine/.installed-fast

# Ray stays on loopback, and is ended with the tests.
ray-tests: .venv-rayengine/.installed-fast .venv-rayengine/.has-client
	$(RAYPY) -m pytest tests/ray $(RAY_ARGS)
	FTRAY_TEST_DEADLINE_S=60 $(RAYPY) -m pytest --engine=ray tests/functional $(RAY_ARGS)

short-ray-tests: .venv-rayengine/.installed-fast
	$(RAYPY) -m pytest tests/ray -m short || $(call AGAIN,$(RAYPY) -m pytest tests/ray -m short)

ray-bench: .venv-rayengine/.installed-release
	$(RAYPY) -m benchmarks.ray_calls
	$(RAYPY) -m benchmarks.ray_checkpoints

unit functional: .venv/.installed-fast .venv/.has-test
	$(PY) -m pytest tests/$@ $(PYTEST_ARGS)

chaos: .venv/.installed-fast .venv/.has-test
	$(PY) -m tests.chaos.run $(CHAOS_ARGS)

torture: .venv/.installed-release .venv/.has-test
	$(PY) -m tests.chaos.torture $(TORTURE_ARGS)

bench: .venv/.installed-release .venv/.has-bench .venv-ray/.has-ray $(PEERS)
	$(PY) -m benchmarks.run $(BENCH_ARGS)

bench-checkpoint: .venv/.installed-release .venv/.has-bench .venv/.has-test .venv-ray/.has-ray .venv-dbos/.has-dbos \
		.venv-casty/.has-casty
	$(PY) -m benchmarks.checkpoint --ray-python .venv-ray/bin/python --dbos-python .venv-dbos/bin/python \
		$$([ -x .venv-casty/bin/python ] && echo --casty-python .venv-casty/bin/python) \
		--json build/checkpoint-figures.json $(BENCH_ARGS)

scale: .venv/.installed-release .venv/.has-bench
	$(PY) -m benchmarks.scale $(SCALE_ARGS)
	$(PY) -m benchmarks.large_object $(OBJECT_ARGS)

# libstdc++ is loaded along with the sanitizer, which must find __cxa_throw when it starts. Its report goes
# to descriptor 2 just before the process ends, so pytest must not capture that.
asan: build/asan/.installed .venv/.has-test
	PYTHONPATH=$(CURDIR)/build/asan PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	$(PY) -m pytest --capture=sys tests/unit $(PYTEST_ARGS)

# mypy is given a path, not -p ftray, which may find the installed package and pass without reading a source.
lint: .venv/.has-test
	$(PY) -m ruff check .
	$(PY) setup.py --quiet stage
	cd build/stage && $(CURDIR)/$(PY) -m mypy --config-file $(CURDIR)/pyproject.toml \
		--cache-dir $(CURDIR)/.mypy_cache --explicit-package-bases ftray

clean:
	rm -rf build dist *.egg-info .venv .venv-ray .venv-rayengine .venv-peers .venv-dbos .venv-casty .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f _core/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- what they stand on ---------------------------------------------------------------------------

# Says all that is missing at once; installing it is up to whoever owns the machine.
define CHECK_MACHINE
missing=; \
[ -n "$(PYTHON)" ] || missing+=" python3 python3-venv python3-dev"; \
if [ -n "$(PYTHON)" ]; then \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing+=" python3-venv"; \
	[ -e "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] \
		|| missing+=" python3-dev"; \
fi; \
command -v "$${CXX:-g++}" >/dev/null || missing+=" g++"; \
if [ -n "$$missing" ]; then \
	echo "ftray needs Python 3.10 or newer with venv and headers, and a C++17 compiler." >&2; \
	echo "On Debian or Ubuntu: apt-get install$$missing" >&2; \
	exit 1; \
fi
endef

.venv/bin/python:
	@$(CHECK_MACHINE)
	$(PYTHON) -m venv .venv

.venv-ray/.has-ray:
	@$(CHECK_MACHINE)
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip --disable-pip-version-check --quiet install 'ray==2.60.*' numpy
	touch $@

.venv-dbos/.has-dbos:
	@$(CHECK_MACHINE)
	$(PYTHON) -m venv .venv-dbos
	.venv-dbos/bin/python -m pip --disable-pip-version-check --quiet install 'dbos==3.4.*'
	touch $@

# casty needs Python 3.12. On a machine without one the figures go without casty, and say so.
.venv-casty/.has-casty:
	mkdir -p .venv-casty
	for name in python3.14 python3.13 python3.12; do \
		if $$name -c 'import venv, ensurepip' 2>/dev/null; then \
			$$name -m venv .venv-casty; \
			.venv-casty/bin/python -m pip --disable-pip-version-check --quiet install 'casty==0.30.*'; \
			break; \
		fi; \
	done
	touch $@

.venv-rayengine/.has-test: pyproject.toml
	@$(CHECK_MACHINE)
	$(PYTHON) -m venv .venv-rayengine
	$(RAYPY) -m pip --disable-pip-version-check --quiet install 'ray==2.60.*' 'cloudpickle>=3.0' 'pytest>=9' hypothesis numpy psutil fsspec rich
	touch $@

.venv-rayengine/.has-client: .venv-rayengine/.has-test
	$(RAYPY) -m pip --disable-pip-version-check --quiet install 'ray[client]==2.60.*'
	touch $@

.venv-rayengine/.installed-%: build/wheels-%/.built .venv-rayengine/.has-test
	rm -f .venv-rayengine/.installed-*
	$(RAYPY) -m pip --disable-pip-version-check --quiet install --force-reinstall --no-deps --no-index --find-links build/wheels-$* ftray
	touch $@

.venv-peers/.has-peers:
	@$(CHECK_MACHINE)
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip --disable-pip-version-check --quiet install distributed xoscar numpy
	touch $@

.venv/.has-build: pyproject.toml .ci/requirements.py .venv/bin/python
	$(PY) .ci/requirements.py | $(PIP) install -r /dev/stdin
	touch $@

.venv/.has-%: .venv/.has-build
	$(PY) .ci/requirements.py $* | $(PIP) install -r /dev/stdin
	touch $@

MODES := fast release asan
SOURCES := $(shell find _core ftray checkpoint -type f \
	! -name '*.py[co]' ! -name '*.so' ! -name '*.cpp' ! -name '.*' 2>/dev/null)

# Changes when a source is added or deleted, which no timestamp tells.
build/sources: FORCE
	@mkdir -p build
	@printf '%s\n' $(SOURCES) | sort > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# Without --no-deps: the wheels of what ftray needs come along, so that tests can install it offline.
$(MODES:%=build/wheels-%/.built): build/wheels-%/.built: $(SOURCES) build/sources setup.py pyproject.toml README.md LICENSE .venv/.has-build
	rm -rf build/wheels-$*
	FTRAY_BUILD=$* $(PIP) wheel --no-build-isolation --wheel-dir build/wheels-$* .
	touch $@

# One build is installed at a time: the stamp of the other goes.
.venv/.installed-%: build/wheels-%/.built
	rm -f .venv/.installed-*
	$(PIP) install --force-reinstall --no-index --find-links build/wheels-$* ftray
	touch $@

build/asan/.installed: build/wheels-asan/.built
	rm -rf build/asan
	$(PIP) install --no-deps --target build/asan build/wheels-asan/ftray-*.whl
	touch $@
