# SPDX-License-Identifier: MIT
#
# The tests, and the variants of the program that they use: part of the Makefile, which includes it.
##
## The parts of make check: check-lint, check-unit, check-system, check-alone, check-asan, check-tsan,
## check-short, check-vendor, check-fuzz, check-binary, check-readme, check-demo.
## make check-long: check-analyzer, check-tsan-rest, check-faults (kill -9, broken disks and networks, a
## soak), a minute for each fuzzer, check-peers (receivers, proxies and readers that Debian and npm have),
## check-windows (in wine), check-arm64 (in an emulator), check-dist (the archives, and that another folder
## and another user make the same bytes).
## make update: looks for newer libraries and root certificates, shows what changed, rewrites vendor/lock.
## make coverage: which lines and branches the tests run. make mutants: which small changes of the program no
## test notices (SEED=1 COUNT=100 MUTANTS='--only unit' or --help).
## make bench: see test/bench/README.md (BENCH='-n 1 -o latency,10k' or --help); make bench-quick: one run of
## the main ones; make bench-readme: what the last one measured goes into README.md and its figure.
## make asan, tsan, test, fuzz: the variants that the tests use, with sanitizers, short limits, fuzzers.

CLANG ?= clang
FUZZ_SECONDS ?= 6
FUZZ = $(patsubst test/fuzz_%.c,build/fuzz/%,$(wildcard test/fuzz_*.c))

# `make` only shows a warning; here it is an error.
STRICT = $(OWN_FLAGS) -Werror
ASAN = $(CLANG) -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
TSAN = $(CLANG) -g -O1 -fsanitize=thread
SHORT = -DTIMEOUT_UNIT_MS=200 -DAGE_UNIT_MS=84 -DSTATE_UNIT=65536 -DIDLE_MS=1000 \
	-DCALLS_MINUTE_MS=1500 -DREWRITE_MIN=16384 -DHEAL_MS=300
WRAPPED = open open64 read pread pread64 write fdatasync fsync ftruncate ftruncate64 rename close \
	clock_gettime socket send getaddrinfo
SHIM = $(WRAPPED:%=-Wl,--wrap=%)
TESTED = $(OURS) $(GEN) test/test.mk

asan: build/asan/butler_webhook
tsan: build/tsan/butler_webhook build/test-tsan/butler_webhook
test: build/test/butler_webhook
fuzz: $(FUZZ)

# The libraries with sanitizers, on the machine's own C library.
build/asan/%.o: $(THEIRS) | install-test
	$(RUN) $(ASAN) $(LIB_FLAGS) -c build/src/$*.c -o $@
build/tsan/%.o: $(THEIRS) | install-test
	$(RUN) $(TSAN) $(LIB_FLAGS) -c build/src/$*.c -o $@
build/coverage/%.o: $(THEIRS) | install-test
	$(RUN) $(CLANG) -g -O1 $(LIB_FLAGS) -c build/src/$*.c -o $@
build/asan/libs.a: $(LIBS:%=build/asan/%)
	$(RUN) rm -f $@ && $(AR) rcs $@ $^
build/tsan/libs.a: $(LIBS:%=build/tsan/%)
	$(RUN) rm -f $@ && $(AR) rcs $@ $^
build/coverage/libs.a: $(LIBS:%=build/coverage/%)
	$(RUN) rm -f $@ && $(AR) rcs $@ $^

# The variants.
build/asan/butler_webhook: $(TESTED) build/asan/libs.a
	$(RUN) $(ASAN) $(STRICT) $< build/asan/libs.a -o $@ -lpthread -lm
build/tsan/butler_webhook: $(TESTED) build/tsan/libs.a
	$(RUN) $(TSAN) $(STRICT) $< build/tsan/libs.a -o $@ -lpthread -lm
build/test/butler_webhook: $(TESTED) test/shim.c build/asan/libs.a
	$(RUN) $(ASAN) $(STRICT) $(SHORT) $(SHIM) $< test/shim.c build/asan/libs.a -o $@ -lpthread -lm
build/test-tsan/butler_webhook: $(TESTED) test/shim.c build/tsan/libs.a
	$(RUN) $(TSAN) $(STRICT) $(SHORT) $(SHIM) $< test/shim.c build/tsan/libs.a -o $@ -lpthread -lm
build/unit: test/unit.c test/done.h $(TESTED) build/asan/libs.a
	$(RUN) $(ASAN) $(STRICT) $< build/asan/libs.a -o $@ -lpthread -lm
build/fuzz/%: test/fuzz_%.c test/fuzz.h test/done.h $(TESTED) build/asan/libs.a
	$(RUN) $(ASAN) -fsanitize=fuzzer $(STRICT) $< build/asan/libs.a -o $@ -lpthread -lm
# The unit tests for ARM, without sanitizers, and a command that runs the program in an emulator.
build/unit-arm64: test/unit.c test/done.h $(TESTED) build/arm64/libs.a
	$(RUN) $(ARM64_CC) $(STRICT) -O1 -isystem test/plain $< build/arm64/libs.a $(ARM64_LINK) -o $@
build/arm64/run: test/test.mk | install-emulator
	$(RUN) printf '#!/bin/sh\nexec qemu-aarch64-static "%s" "$$@"\n' '$(CURDIR)/build/butler_webhook-arm64' >$@
	@chmod 755 $@
build/butler_webhook-test.exe: $(OURS) $(WINDOWS_GEN) test/test.mk build/windows/libs.a
	$(RUN) $(WINDOWS_CC) $(STRICT) -Os $(SHORT) $< build/windows/libs.a $(WINDOWS_LINK) -lws2_32 -ladvapi32 -o $@
# The program as `make` compiles it, to see what GCC has to say of it.
build/linux/warnings.o: $(TESTED) | build/musl-linux/lib/libc.a
	$(RUN) $(LINUX_CC) $(STRICT) $(CPPFLAGS) $(CFLAGS) -c $< -o $@

# The tests in Python. Most of them wait most of the time, so twenty run side by side. Debian's pytest
# belongs to Debian's python3.
# A test that fails is run once more, as other work may share the machine, and the end of the run tells
# of it; but not if a sanitizer said why.
PYTEST = /usr/bin/python3 -m pytest --dist loadgroup --reruns 1
SYSTEM = $(addprefix test/test_,alerts.py answers.py cli.py config.py delivery.py entry.py tls.py)
FAULTS = $(addprefix test/test_,journal.py disk.py letters.py network.py load.py)

# Each check prints what fails and ends with `N passed, N failed`; test/run.sh adds up what several count.
PART = @test/part.sh $(@:check-%=%)
check-long: all install-test test fuzz
	+@FUZZ_SECONDS=60 test/run.sh analyzer tsan-rest faults fuzz peers windows arm64 dist
check-lint: install-test $(GEN) | build/musl-linux/lib/libc.a
	+$(PART) test/lint.sh $(OWN_FLAGS)
check-analyzer: install-test $(GEN)
	+$(PART) sh -c '$(MAKE) --no-print-directory -k -j2 analyzer-gcc analyzer-clang && echo "2 passed, 0 failed"'
analyzer-gcc:
	@$(CC) $(STRICT) -O1 -fanalyzer -c butler_webhook.c -o build/analyzer.o
analyzer-clang:
	@clang-tidy --quiet --warnings-as-errors='*' butler_webhook.c \
		--checks='-*,clang-analyzer-*,-*.DeprecatedOrUnsafeBufferHandling,-*.performance.Padding' -- $(STRICT)
check-unit: build/unit
	$(PART) build/unit
check-system: all test
	$(PART) $(PYTEST) -n 20 $(SYSTEM)
check-alone: all test
	$(PART) $(PYTEST) -m alone $(SYSTEM)
check-asan: asan test
	$(PART) $(PYTEST) -n 20 --binary=build/asan/butler_webhook --slow=2 $(SYSTEM)
# First the tests of what threads share; what one does alone (reading the configuration, datagrams, answers)
# in the long form.
ON_TSAN = -n 20 --slow=3 \
	--binary=build/tsan/butler_webhook --binary-test=build/test-tsan/butler_webhook
ALONE = test_config or test_cli or datagram_ or answers or hostile or trace or proxy or tls or trust
check-tsan: tsan test
	$(PART) $(PYTEST) $(ON_TSAN) -k 'not ($(ALONE))' $(SYSTEM)
check-tsan-rest: tsan test
	$(PART) $(PYTEST) $(ON_TSAN) -k '$(ALONE)' $(SYSTEM)
check-short: all test
	$(PART) $(PYTEST) -n 8 --slow=2 $(FAULTS)
check-faults: all test
	$(PART) $(PYTEST) -n 8 --long $(FAULTS)
check-peers: all test build/npm/.done | install-peers
	$(PART) $(PYTEST) -n 4 test/test_receivers.py test/test_peers.py
# What npm has of them. Its registry cannot be reached everywhere: then their tests are skipped. The lock file
# names no registry, and no script of theirs runs.
build/npm/.done: test/data/npm/package-lock.json test/data/npm/package.json | install-npm
	$(RUN) cp test/data/npm/package*.json build/npm/ && cd build/npm && rm -rf node_modules .done && \
		if timeout 300 npm ci --ignore-scripts --no-audit --no-fund --loglevel=error; then touch .done; fi
update: | install-vendor
	@vendor/update.sh
check-vendor: build/src/.done install-vendor
	$(PART) python3 test/vendor.py
# Not part of make check: which lines and branches the tests run; which small changes no test notices.
coverage: build/coverage/libs.a $(GEN)
	@test/coverage.py $(CLANG) $(OWN_FLAGS) -- $(SHORT) $(SHIM)
mutants: build/unit all test
	@test/mutants.py $(MUTANTS)
bench: all build/bench/slow-disk/butler_webhook | install-bench
	@test/bench/run.sh $(BENCH)
bench-quick: all | install-bench
	@test/bench/run.sh --quick $(BENCH)
bench-readme:
	@/usr/bin/python3 test/bench/report.py
# The program as users have it, on a disk that the benchmark can make slow.
build/bench/slow-disk/butler_webhook: build/linux/butler_webhook.o test/shim.c build/linux/libs.a
	$(RUN) $(LINUX_CC) $(CFLAGS) $(LINUX_LINK) $(SHIM) $^ -o $@
check-fuzz: fuzz
	$(PART) env FUZZ_SECONDS=$(FUZZ_SECONDS) test/fuzz.sh $(FUZZ)
check-binary: all install-test
	$(PART) test/binary.sh
check-readme: all test
	$(PART) $(PYTEST) test/test_readme.py
check-demo: all test
	$(PART) sh -c 'python3 test/demo.py && echo "1 passed, 0 failed"'
check-dist: dist
	$(PART) env SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) test/dist.sh linux-x64 linux-arm64 windows-x64

check-arm64: build/unit-arm64 build/arm64/run arm64 test
	+$(PART) test/run.sh arm64-unit arm64-system
check-arm64-unit: build/unit-arm64 | install-emulator
	$(PART) qemu-aarch64-static build/unit-arm64
# Without the tests that limit memory, descriptors or threads, of which the emulator needs more, or that time
# hundreds of calls.
HEAVY = config_hostile or answers_memory or hostile_memory or of_all_at_once or limits_threads
check-arm64-system: build/arm64/run arm64 test
	$(PART) $(PYTEST) -n 8 --binary=build/arm64/run --slow=4 -k 'not ($(HEAVY))' $(SYSTEM)

# The program for Windows, run by wine; of the faults those of the journal: what is killed, torn, damaged,
# dead, replayed.
ON_WINE = --binary=build/butler_webhook.exe --binary-test=build/butler_webhook-test.exe
JOURNAL = kill or damaged or letter or replay or webhook_changed or webhook_removed or full_state
WINDOWS_TESTS = check-windows-system check-windows-only check-windows-alone check-windows-faults \
	check-windows-readme check-windows-demo
check-windows: install-test windows build/butler_webhook-test.exe | install-wine
	+$(PART) test/run.sh $(WINDOWS_TESTS:check-%=%)
$(WINDOWS_TESTS): windows build/butler_webhook-test.exe | install-wine
check-windows-system:
	$(PART) $(PYTEST) -n 8 $(ON_WINE) $(SYSTEM)
check-windows-only:
	$(PART) $(PYTEST) -n 8 $(ON_WINE) test/test_windows.py
check-windows-alone:
	$(PART) $(PYTEST) -m alone $(ON_WINE) $(SYSTEM) test/test_windows.py
check-windows-faults:
	$(PART) $(PYTEST) -n 2 $(ON_WINE) -k '$(JOURNAL)' $(FAULTS)
check-windows-readme:
	$(PART) $(PYTEST) $(ON_WINE) test/test_readme.py
check-windows-demo:
	$(PART) sh -c 'BUTLER_BINARY=build/butler_webhook.exe python3 test/demo.py && echo "1 passed, 0 failed"'

# What test/install.sh installs, if it is missing.
INSTALL = install-build install-demo install-test install-peers install-npm install-bench install-arm64 \
	install-windows install-archives install-wine install-emulator install-vendor install-dist
$(INSTALL): install-%:
	@test/install.sh $*

.PHONY: asan tsan test fuzz update coverage mutants bench bench-quick bench-readme analyzer-gcc \
	analyzer-clang $(INSTALL) $(WINDOWS_TESTS) check-long check-lint check-analyzer check-unit check-system \
	check-alone check-asan check-tsan check-tsan-rest check-short check-faults check-vendor check-fuzz \
	check-binary check-readme check-demo check-dist check-arm64 check-arm64-unit check-arm64-system \
	check-windows
