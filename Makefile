# What a developer, a newcomer and CI call.  `make` alone lists it.

PYTHON ?= python3
VENV   ?= .venv
PY      = $(VENV)/bin/python
SETUP   = PYTHON=$(PYTHON) PYKTLS_VENV=$(VENV) tests/setup.sh
# make demo KERNEL="6.12 7.3", make test KERNEL=path/to/bzImage
KERNEL ?=
KERNELS = $(foreach k,$(KERNEL),--kernel $(k))
C_FILES = $(wildcard csrc/*.c) benchmarks/limit.c
C_FLAGS = -std=c11 -D_GNU_SOURCE -Icsrc
# The other system's file, on the fake of its calls; `make cross` has the real headers.
FREEBSD = -Itests/freebsd/fake/include -include tests/freebsd/fake/calls.h

.PHONY: help demo test bench peers pythons test-c test-freebsd abi cross test-all wheel wheels \
	test-wheel types release-check man lint docs format clean

help:
	@echo 'make demo      a real file over kernel TLS, checked at the far end'
	@echo 'make test      the tests, a representative part, on this kernel or in the lab'
	@echo 'make bench     what pyktls costs, beside others, counted in instructions: docs/benchmarks.md'
	@echo 'make peers     pyktls with the TLS of others, every suite and feature: docs/peers.md'
	@echo 'make test-c    what is in C: two compilers, sanitizers, valgrind, and no key left in memory'
	@echo 'make test-freebsd  what concerns FreeBSD: on FreeBSD its kernel, elsewhere a fake of it'
	@echo 'make cross     compiles and links for FreeBSD, with every number held to its headers'
	@echo 'make abi       holds the numbers of Linux to the header of Linux 7.3'
	@echo 'make pythons   the unit tests on CPython 3.11 to 3.15, also those of other Debian releases'
	@echo 'make test-all  all of these checks and tests, with every Python and every variant'
	@echo 'make wheel     sdist and wheel in dist/, installed and tried in a clean environment'
	@echo 'make wheels    all that is published, built twice and tried everywhere: wheels/README.md'
	@echo 'make test-wheel  the kernel tests on the wheel in dist/ instead of the tree'
	@echo 'make types     a program with types, as mypy and pyright see it; make wheel has it too'
	@echo 'make release-check  the list that a release has to pass; ARGS=--quick leaves out what builds'
	@echo 'make man       the man page, build/pyktls.1, from the parsers of the command'
	@echo 'make lint      ruff, mypy, stubtest, gcc and clang with -Werror, clang-tidy, cppcheck, docs'
	@echo 'make docs      the documentation as HTML: build/docs/index.html'
	@echo 'make clean     remove what was built'
	@echo
	@echo 'The lab boots real kernels in QEMU where this one has no TLS; KERNEL="6.1 7.3" chooses.'

demo:
	$(SETUP) lab
	$(PY) -m tests.demo $(KERNELS) $(ARGS)

test:
	$(SETUP) lab,test
	$(PY) -m tests.run $(KERNELS) $(ARGS)

# On this machine itself, with its own clock: python -m benchmarks.
bench:
	$(SETUP) lab,bench
	$(PY) -m benchmarks --lab $(KERNELS) $(ARGS)

# The tests have a part of it; this is all, and takes long.  ARGS="--select nginx" chooses.
peers:
	$(SETUP) lab,test
	PYTHONPATH=tests $(PY) -m interop.table $(KERNELS) $(ARGS)

# Makes Debian releases in the cache with debootstrap, as root.  ARGS="--only forky-3.14" chooses,
# ARGS=--refresh throws the cache away first, ARGS="--python PATH" takes one more of this machine's.
pythons:
	$(SETUP) pythons
	$(PYTHON) -m tests.pythons $(ARGS)

# ARGS="gcc valgrind" chooses runs; ARGS=--allow-missing passes over what is not installed.
test-c:
	$(SETUP) c
	$(PYTHON) tests/c/run.py $(ARGS)

# Both parts run, whatever becomes of the first.  Elsewhere than on FreeBSD they have a fake of its
# kernel, the unit tests in a Python without what only Linux has.  For BSD's make as well.  On FreeBSD
# the environment sees the system's packages: PyPI has no compiled ones for it.
test-freebsd:
	[ -x $(PY) ] || if [ "$$(uname -s)" = FreeBSD ]; then \
		"$$(command -v $(PYTHON) || echo python3.11)" -m venv --system-site-packages $(VENV); \
	else $(PYTHON) -m venv $(VENV); fi
	$(PY) -m pip install -q --disable-pip-version-check -e '.[test]'
	like=--like-freebsd; [ "$$(uname -s)" != FreeBSD ] || like=; status=0; \
	$(PY) -m pytest tests/freebsd $(ARGS) || status=1; \
	$(PY) -m pytest $$like tests/unit $(ARGS) || status=1; \
	exit $$status

cross:
	$(SETUP) test,cross
	PYKTLS_STRICT=1 $(PY) -m pytest tests/freebsd/test_cross_compile.py $(ARGS)

# Our numbers and layouts against the header of the newest kernel, whatever this machine has, and
# whether that has more of them.
abi:
	$(SETUP) lab
	set -e; include=$$($(PY) -m tests.lab headers 7.3); \
	for file in abi_linux_check.c abi_linux.c; do \
		gcc -std=c11 -D_GNU_SOURCE -DPYKTLS_NEWEST_ABI -Wall -Wextra -Werror -fsyntax-only \
			-isystem $$include -isystem $$include/x86_64-linux-gnu csrc/$$file; \
	done; \
	$(PY) -m tests.abi $$include/linux/tls.h

test-all: lint test-c abi cross demo wheel wheels peers pythons
	$(MAKE) test ARGS=--everything

wheel:
	PYTHON=$(PYTHON) wheels/build.sh dist

# ARGS="--only abi3 --once" builds less, TRY="--only 3.12" tries less; wheels/README.md has the rest.
wheels:
	$(SETUP) wheels
	[ -x build/wheels/bin/python ] || $(PYTHON) -m venv build/wheels
	build/wheels/bin/python -m pip install -q --disable-pip-version-check -r wheels/requirements.txt
	build/wheels/bin/python -m wheels $(ARGS)
	$(SETUP) test,cross
	rm -rf build/sdist && mkdir build/sdist && tar -xf dist/pyktls-*.tar.gz -C build/sdist
	cd build/sdist/pyktls-* && PYKTLS_STRICT=1 $(abspath $(PY)) -m pytest -q \
		tests/freebsd/test_cross_compile.py
	build/wheels/bin/python -m wheels.trials $(TRY)

# As make test, which takes the same KERNEL and ARGS.
test-wheel:
	$(SETUP) lab
	$(PYTHON) -m venv --clear build/of-wheel
	build/of-wheel/bin/python -m pip install -q --disable-pip-version-check \
		"$$(ls $(CURDIR)/dist/pyktls-*-abi3-manylinux2014_$$(uname -m).whl)[lab,test]"
	cd / && $(CURDIR)/build/of-wheel/bin/python -c 'import pyktls, sys; \
		sys.exit(not pyktls.__file__.startswith(sys.prefix) and f"not the wheel: {pyktls.__file__}")'
	build/of-wheel/bin/python -m tests.run --no-host $(KERNELS) $(ARGS)

types:
	$(SETUP) types,test
	$(PY) -m pytest tests/typing $(ARGS)

release-check:
	$(SETUP) lab,release
	$(PY) -m tests.release $(ARGS)

# Not committed and in no wheel: it is made from the parsers in a second, and a copy would grow old.
man:
	$(SETUP) lab
	mkdir -p build
	$(PY) -m pyktls.commands.manual >build/pyktls.1

# cppcheck is not given the files that only compare headers: there is no code in them.
lint:
	$(SETUP) lint,lab,test,docs
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	MYPYPATH=src $(VENV)/bin/mypy --explicit-package-bases \
		tests/lab tests/c tests/abi.py tests/run.py tests/demo.py tests/pythons.py tests/release.py \
		examples wheels
	$(PY) -m mypy.stubtest pyktls --concise --allowlist tests/typing/stubtest.txt \
		--mypy-config-file pyproject.toml
	@set -e; for file in $(C_FILES); do \
		flags="$(C_FLAGS)"; \
		case $$file in *kernel_freebsd.c) flags="$$flags $(FREEBSD)";; esac; \
		echo gcc, clang and clang-tidy: $$file; \
		for cc in gcc clang; do \
			$$cc $$flags -Wall -Wextra -Wconversion -Werror -O2 -c -o /dev/null $$file; \
		done; \
		clang-tidy --quiet $$file -- $$flags; \
	done
	cppcheck --quiet --error-exitcode=1 --enable=warning,style,performance,portability \
		--inline-suppr --std=c11 -Icsrc $(filter-out %_check.c,$(C_FILES))
	$(MAKE) docs SETUP=:

# Every warning is an error.  Nothing is fetched but the packages.
docs:
	$(SETUP) docs
	$(PY) -m sphinx -E -W --keep-going -q -b html docs build/docs

format:
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf build dist test-results src/*.egg-info src/pyktls/*.so src/pyktls/_kernel.c
