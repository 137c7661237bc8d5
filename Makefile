# What a developer, a newcomer and CI call.  `make` alone lists it.

PYTHON ?= python3
VENV   ?= .venv
PY      = $(VENV)/bin/python
SETUP   = PYTHON=$(PYTHON) PYKTLS_VENV=$(VENV) tests/setup.sh
# make demo KERNEL="6.12 7.3", make test KERNEL=path/to/bzImage
KERNEL ?=
KERNELS = $(foreach k,$(KERNEL),--kernel $(k))
# What compiles here: `make cross` compiles the other system's file.
C_FILES = $(filter-out csrc/kernel_freebsd.c,$(wildcard csrc/*.c))

.PHONY: help demo test test-freebsd abi cross test-all wheel lint format clean

help:
	@echo 'make demo      a real file over kernel TLS, checked at the far end'
	@echo 'make test      the whole test suite, on this kernel or in the lab'
	@echo 'make test-freebsd  what concerns FreeBSD: on FreeBSD its kernel, elsewhere a fake of it'
	@echo 'make cross     compiles and links for FreeBSD, with every number held to its headers'
	@echo 'make abi       holds the numbers of Linux to the header of Linux 7.3'
	@echo 'make test-all  the same with every Python and every variant there is'
	@echo 'make wheel     sdist and wheel in dist/, installed and tried in a clean environment'
	@echo 'make lint      ruff, mypy --strict, the C compiler with -Werror'
	@echo 'make clean     remove what was built'
	@echo
	@echo 'The lab boots real kernels in QEMU where this one has no TLS; KERNEL="6.1 7.3" chooses.'

demo:
	$(SETUP) lab
	$(PY) -m tests.demo $(KERNELS) $(ARGS)

test:
	$(SETUP) lab,test
	$(PY) -m tests.run $(KERNELS) $(ARGS)

# Two processes: tests/freebsd brings its own build of the package where this is not FreeBSD.
test-freebsd:
	[ -x $(PY) ] || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check -e '.[test]'
	$(PY) -m pytest tests/unit $(ARGS)
	$(PY) -m pytest tests/freebsd $(ARGS)

cross:
	$(SETUP) test,cross
	PYKTLS_STRICT=1 $(PY) -m pytest tests/freebsd/test_cross_compile.py $(ARGS)

# Our numbers and layouts against the header of the newest kernel, whatever this machine has.
abi:
	$(SETUP) lab
	set -e; include=$$($(PY) -m tests.lab headers 7.3); \
	for file in abi_linux_check.c abi_linux.c; do \
		gcc -std=c11 -D_GNU_SOURCE -DPYKTLS_NEWEST_ABI -Wall -Wextra -Werror -fsyntax-only \
			-isystem $$include -isystem $$include/x86_64-linux-gnu csrc/$$file; \
	done

test-all: lint abi test cross demo wheel

wheel:
	PYTHON=$(PYTHON) wheels/build.sh dist

lint:
	$(SETUP) lint,lab,test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	MYPYPATH=src $(VENV)/bin/mypy --explicit-package-bases tests/lab tests/run.py tests/demo.py
	set -e; for cc in gcc clang; do command -v $$cc >/dev/null || continue; \
	for file in $(C_FILES); do \
		echo $$cc $$file; \
		$$cc -std=c11 -D_GNU_SOURCE -Wall -Wextra -Wconversion -Werror -O2 -fsyntax-only $$file; \
	done; done

format:
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf build dist test-results src/*.egg-info src/pyktls/*.so src/pyktls/_kernel.c
