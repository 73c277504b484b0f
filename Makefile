# userns-helpers: build, check, demonstrate, measure, install. The work is in packaging/ and tests/.

# Settings, for the command line: make install PREFIX=/usr DESTDIR=/tmp/stage
PREFIX  = /usr/local
SYSCONFDIR = /etc
DESTDIR =
CAPS    =
LINKAGE = auto
DIST    = target/dist
SECONDS = 60
TESTFLAGS =
export PREFIX SYSCONFDIR DESTDIR CAPS LINKAGE DIST

# The tests take the programs as they are shipped.
HELPERS_DIR = $(abspath $(DIST))

.PHONY: build help musl-std packages style test test-theirs test-packages test-readme deb rpm check bench demo fuzz sweep install uninstall check-kernels clean
.NOTPARALLEL:

build:
	@packaging/build

help:
	@echo 'make             build all programs into $(DIST); prints how they are linked'
	@echo '                 LINKAGE=auto|musl|glibc (auto: musl where a musl standard library is at hand)'
	@echo 'make musl-std    build a musl standard library from Debian packages, once (two minutes, no root)'
	@echo 'make check       install what is missing, build, and run every test (root for the kernel tests)'
	@echo 'make demo        an ordinary user starts a container of this host (root; changes nothing)'
	@echo 'make bench       tables: ours beside the originals (root)'
	@echo 'make check-kernels   cgroups and containers on kernels 5.10, 6.1 and 6.12 under qemu (more than an hour)'
	@echo '                 CENTOS7=DIR CENTOS6=DIR  boots these trees there as well, as containers of an ordinary user'
	@echo 'make fuzz        fuzz the parsers for SECONDS=60 each (nightly Rust)'
	@echo 'make sweep       kill and fail each privileged program at each of its system calls (root)'
	@echo 'make install     PREFIX=/usr/local DESTDIR= ; the privileged programs mode 4755 (CAPS=1: the map writers with capabilities)'
	@echo 'make uninstall   the same settings'
	@echo 'make deb, make rpm   packages in target/packages: userns-helpers, and userns-helpers-compat in the place of the originals'
	@echo 'make style, make test, make test-theirs, make test-packages, make test-readme    parts of the check'
	@echo 'make clean       remove target/, the musl standard library included'

musl-std:
	@packaging/musl-std target/musl-std

packages:
	@packaging/host-packages

style:
	cargo fmt --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	mandoc -Tlint -W warning man/*.[1-8]
	@if cargo deny --version >/dev/null 2>&1; then set -x; cargo deny --offline check bans licenses sources; fi

test: build
	HELPERS_DIR=$(HELPERS_DIR) cargo test --locked --workspace --no-fail-fast $(TESTFLAGS)

# The same suite against the originals: what it asks for is what they do. What they are not asked is reported as ignored.
test-theirs: build
	KERNEL_TESTS= UNDER_TEST=theirs HELPERS_DIR=$(HELPERS_DIR) cargo test --locked -p tests --test idmap --test usernet $(TESTFLAGS)

# The packages are installed, upgraded and removed in roots of their own, and other programs run with what they install.
test-packages: build
	@tests/packages/run

# What README tells to type, typed by an ordinary user. CENTOS6=TAR: with a CentOS 6 system.
test-readme: build
	@tests/readme

check:
	@packaging/check

bench: build
	@packaging/bench

demo:
	@tests/demo

# Not part of make check: emulated kernels take their time.
check-kernels: build
	@packaging/check-kernels

fuzz:
	@tests/fuzz/run $(SECONDS)

# Part of make check as well, here alone.
sweep: build
	@packaging/sweep

install:
	@packaging/install install

uninstall:
	@packaging/install uninstall

deb rpm: build
	@packaging/package $@

clean:
	cargo clean
	rm -rf target
