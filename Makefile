# SPDX-License-Identifier: MIT
# CC, CFLAGS, CPPFLAGS, LDFLAGS, PREFIX and DESTDIR are the user's. `make V=1` shows the commands. What `make help` prints:
## make              build/butler_webhook, the static binary for Linux x86-64
## make windows      build/butler_webhook.exe, for Windows x86-64
## make arm64        build/butler_webhook-arm64, for Linux on 64-bit ARM
## make dist         build/dist: the archives of all three, their parts list (SBOM) and checksums, each unpacked and tried
## make demo         shows the main job: datagrams in, webhook calls out
## make check        all the tests; ends with `N passed, N failed`
## make check-lint, check-unit, check-system, check-asan, check-tsan, check-short, check-fuzz, check-binary, check-readme
## make check-windows  the system tests on the exe, in wine, and what only Windows has
## make check-arm64  the unit and system tests on the binary for ARM, in an emulator
## make check-long   the long forms: check-analyzer, check-tsan-rest, check-faults (kill -9, broken disks and networks, a soak), a
##                   minute for each fuzzer, check-windows, check-arm64, check-dist (the archives, and that another folder and
##                   user make the same bytes)
## make asan, tsan, test, fuzz   the variants that the tests use: sanitizers, short limits, fuzzers
## make bench        latency, throughput, memory, start
## make install, uninstall, clean, distclean   PREFIX (/usr/local) and DESTDIR say where; distclean: the downloads, too
## Missing packages are installed with apt-get, as root or with sudo. VENDOR_DIR=folder: archives for use without network.

ifeq ($(origin CC),default)
CC = gcc
endif
CLANG ?= clang
ARM64CC ?= aarch64-linux-gnu-gcc
WINCC ?= x86_64-w64-mingw32-gcc
CFLAGS ?= -O2
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 6
Q = $(if $(V),,@)
COMMA = ,
INSTALL = $(patsubst %,install-%,arm64 archives bench build demo dist emulator test windows wine)

# The parts of Mbed TLS that vendor/mbedtls_config.h needs.
MBEDTLS = aes aesce aesni asn1parse asn1write base64 bignum bignum_core bignum_mod bignum_mod_raw block_cipher chacha20 \
	chachapoly cipher cipher_wrap constant_time ecdh ecdsa ecp ecp_curves gcm hkdf md oid pem pk pk_ecc pk_wrap pkparse \
	platform platform_util poly1305 psa_crypto psa_crypto_aead psa_crypto_cipher psa_crypto_client \
	psa_crypto_driver_wrappers_no_static psa_crypto_ecp psa_crypto_hash psa_crypto_mac psa_crypto_rsa \
	psa_crypto_slot_management psa_util rsa rsa_alt_helpers sha1 sha256 sha512 ssl_ciphersuites ssl_client ssl_msg \
	ssl_tls ssl_tls12_client ssl_tls13_client ssl_tls13_generic ssl_tls13_keys x509 x509_crt
LIBYAML = api loader parser reader scanner
YAML_VERSION = MAJOR=0 MINOR=2 PATCH=5
LIBS = $(MBEDTLS:%=mbedtls/library/%.o) $(LIBYAML:%=libyaml/src/%.o) cjson/cJSON.o
GEN = build/gen/roots.h build/gen/notices.h
VERSION := $(shell sed -n 's/^.define VERSION "\(.*\)".*/\1/p' butler_webhook.c)
FUZZ = $(patsubst test/fuzz_%.c,build/fuzz/%,$(wildcard test/fuzz_*.c))

# cJSON's functions would else be exported from the exe.
HEADERS = -DMBEDTLS_CONFIG_FILE='"vendor/mbedtls_config.h"' -DYAML_DECLARE_STATIC -DCJSON_HIDE_SYMBOLS -iquote . \
	-isystem build/gen -isystem build/src/mbedtls/include -isystem build/src/libyaml/include -isystem build/src/cjson
# cJSON recurses; what we read has two levels.
LIB_FLAGS = -std=gnu11 -w $(HEADERS) -DCJSON_NESTING_LIMIT=8 -DYAML_VERSION_STRING='"0.2.5"' \
	$(YAML_VERSION:%=-DYAML_VERSION_%)
OWN_FLAGS = -std=c11 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Wundef -Wvla \
	-Wformat=2 -Werror $(HEADERS)
HARDEN = -fstack-protector-strong -ffunction-sections -fdata-sections -ffile-prefix-map=$(CURDIR)=.
HARDEN_ELF = $(HARDEN) -fPIE -fstack-clash-protection -fno-unwind-tables -fno-asynchronous-unwind-tables
LINK_ELF = -static-pie -s -Wl,--gc-sections,--build-id=none,-z,relro,-z,now,-z,noexecstack

# What is released, for each platform: the archive's name, the file, its compiler and flags, the headers made for it, what must
# be there first, and how to find what the file wants of the machine that it runs on.
PLATFORMS = linux arm64 windows
linux_NAME = linux-x64
linux_FILE = build/butler_webhook
linux_CC = $(CC)
linux_FLAGS = -specs=build/musl-linux/lib/musl-gcc.specs $(HARDEN_ELF)
linux_LINK = $(LINK_ELF),-z,separate-code
linux_GEN = $(GEN)
linux_FIRST = build/musl-linux/lib/libc.a
linux_WANTS = readelf -ldW $@ | grep -E 'INTERP|NEEDED'
arm64_NAME = linux-arm64
arm64_FILE = build/butler_webhook-arm64
arm64_CC = $(ARM64CC)
arm64_FLAGS = -specs=build/musl-arm64/lib/musl-gcc.specs $(HARDEN_ELF)
# Servers with pages of 64 KB can only load a file that is laid out for them, and a page border between code and constants would
# then cost 130 KB of zeros.
arm64_LINK = $(LINK_ELF),-z,max-page-size=65536,-z,noseparate-code
arm64_GEN = $(GEN)
arm64_FIRST = build/musl-arm64/lib/libc.a
arm64_MUSL = --target=aarch64 CROSS_COMPILE='$(ARM64CC:%gcc=%)'
arm64_WANTS = $(linux_WANTS)
windows_NAME = windows-x64
windows_FILE = build/butler_webhook.exe
windows_CC = $(WINCC)
windows_TOOL = $(firstword $(subst -gcc, ,$(WINCC)))
# Without the tables for unwinding, which only exceptions need, and small: it must stay under 730 KB.
windows_FLAGS = $(HARDEN) -fno-unwind-tables -fno-asynchronous-unwind-tables -D_WIN32_WINNT=0x0603 -D_FILE_OFFSET_BITS=64 -isystem build/gen/windows
windows_SIZE = -Os
windows_LINK = -static -s -Wl,--gc-sections,--no-insert-timestamp,--dynamicbase,--high-entropy-va,--nxcompat
windows_LIBS = -lws2_32 -ladvapi32
windows_GEN = build/gen/roots.h build/gen/windows/notices.h
windows_FIRST = install-windows
windows_MORE = build/windows/resource.o
windows_DLLS = KERNEL32|ADVAPI32|WS2_32|msvcrt
windows_WANTS = $(windows_TOOL)-objdump -p $@ | grep 'DLL Name:' | grep -viE ' ($(windows_DLLS))\.dll$$'

ASAN = -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
TSAN = -g -O1 -fsanitize=thread
ANALYZER = -*,clang-analyzer-*,-*.DeprecatedOrUnsafeBufferHandling,-*.performance.Padding
SHORT = -DTIMEOUT_UNIT_MS=200 -DAGE_UNIT_MS=84 -DSTATE_UNIT=65536 -DIDLE_MS=1000 -DREWRITE_MIN=16384 -DHEAL_MS=300

SHIM = $(foreach f,open open64 read pread pread64 write fdatasync fsync ftruncate ftruncate64 rename close clock_gettime socket send \
	getaddrinfo,-Wl,--wrap=$f)

# The variants for the tests: each is made from the first prerequisite and the objects among the others.
VARIANTS = $(patsubst %,build/%/butler_webhook,asan tsan test test-tsan) build/unit
define CLANG_LINK
	@mkdir -p $(@D) && echo "$@"
	$(Q)$(CLANG) $(OWN_FLAGS) $(VARIANT) $< $(filter %shim.c %.o,$^) -o $@ -lpthread -lm
endef

all: build/butler_webhook
arm64: build/butler_webhook-arm64
windows: build/butler_webhook.exe
asan: build/asan/butler_webhook
tsan: build/tsan/butler_webhook build/test-tsan/butler_webhook
test: build/test/butler_webhook
fuzz: $(FUZZ)

# The libraries: fetched, verified, unpacked; generated headers; musl.
build/src/.done: vendor/lock vendor/fetch.sh | install-build
	$(Q)vendor/fetch.sh build/src
	@mkdir -p build/gen && touch $@
build/gen/roots.h: vendor/roots.awk build/src/.done
	$(Q)awk -v date=$$(awk '$$1 == "ca-certificates" { print $$2 }' vendor/lock) -f vendor/roots.awk \
		build/src/ca-certificates/mozilla/certdata.txt >$@
build/gen/notices.h build/gen/windows/notices.h: vendor/notices.sh vendor/mingw-w64.txt LICENSE build/src/.done
	$(Q)mkdir -p $(@D) && vendor/notices.sh build/src $(if $(findstring windows,$@),windows,linux) >$@
# Without musl's assembler memcpy for x86: `rep movs` takes a quarter of the program's time where it is slow, as on virtual machines.
build/musl-%/lib/libc.a: build/src/.done
	@rm -f build/src/musl/src/string/x86_64/memcpy.s build/src/musl/src/string/x86_64/memmove.s
	@echo "building musl for $* (build/musl-$*.log)"
	@rm -rf build/musl-$* && mkdir -p build/musl-$*/obj && cd build/musl-$*/obj && { ../../src/musl/configure CC='$($*_CC)' \
		CFLAGS='-fPIE -fstack-protector-strong -ffile-prefix-map=$(CURDIR)=.' $($*_MUSL) --prefix='$(CURDIR)/build/musl-$*' \
		--disable-shared --enable-wrapper=gcc && $(MAKE) -j$$(nproc) && $(MAKE) install; } >../../musl-$*.log 2>&1 || \
		{ tail -n 20 ../../musl-$*.log; exit 1; }
build/musl-arm64/lib/libc.a: | install-arm64

# Windows: the version resource and the manifest.
build/gen/windows/version.h: butler_webhook.c
	$(Q)mkdir -p $(@D) && printf '#define VERSION "%s"\n#define VERSION_NUMBERS %s\n' $(VERSION) $(subst .,$(COMMA),$(VERSION)),0 >$@
build/windows/resource.o: vendor/windows.rc vendor/windows.manifest build/gen/windows/version.h | install-windows
	@mkdir -p $(@D) && echo "$@"
	$(Q)$(windows_TOOL)-windres -I build/gen/windows $< $@

# The binaries, and a check that each needs nothing but its system.
define PLATFORM
build/$1/%.o: build/src/.done vendor/mbedtls_config.h Makefile | $($1_FIRST)
	@mkdir -p $$(@D) && echo "$$@"
	$$(Q)$$($1_CC) -Os $$($1_FLAGS) $$(LIB_FLAGS) -c build/src/$$*.c -o $$@
build/$1/butler_webhook.o: butler_webhook.c $($1_GEN) vendor/mbedtls_config.h Makefile | $($1_FIRST)
	@mkdir -p $$(@D) && echo "$$@"
	$$(Q)$$($1_CC) $$($1_FLAGS) $$(OWN_FLAGS) $$(CPPFLAGS) $$(CFLAGS) $$($1_SIZE) -c $$< -o $$@
$($1_FILE): build/$1/butler_webhook.o $(LIBS:%=build/$1/%) $($1_MORE)
	@echo "$$@"
	$$(Q)$$($1_CC) $$($1_FLAGS) $$(CFLAGS) $$($1_LINK),-Map=build/$1/map $$(LDFLAGS) $$^ $$($1_LIBS) -o $$@
	@! $$($1_WANTS) || { echo "$$@ needs more than its system"; exit 1; }
endef
$(foreach p,linux arm64 windows,$(eval $(call PLATFORM,$p)))

# To test the one for ARM: the unit tests without sanitizers, and a command that runs the binary in an emulator.
build/unit-arm64: test/unit.c test/done.h butler_webhook.c $(GEN) Makefile $(LIBS:%=build/arm64/%)
	@echo "$@"
	$(Q)$(ARM64CC) $(arm64_FLAGS) $(OWN_FLAGS) -O1 -isystem test/plain $< $(filter %.o,$^) $(arm64_LINK) -o $@
# And the one for Windows with the tests' short limits.
build/butler_webhook-test.exe: butler_webhook.c $(windows_GEN) Makefile $(LIBS:%=build/windows/%)
	@echo "$@"
	$(Q)$(WINCC) $(windows_FLAGS) $(OWN_FLAGS) -Os $(SHORT) $< $(filter %.o,$^) $(windows_LINK) $(windows_LIBS) -o $@
build/arm64/run: Makefile | install-emulator
	@mkdir -p $(@D) && printf '#!/bin/sh\nexec qemu-aarch64-static %s "$$@"\n' '$(CURDIR)/build/butler_webhook-arm64' >$@ && chmod 755 $@

# The same for the tests, on the machine's own C library.
build/asan/%.o: build/src/.done vendor/mbedtls_config.h | install-test
	@mkdir -p $(@D) && echo "$@"
	$(Q)$(CLANG) $(LIB_FLAGS) $(ASAN) -c build/src/$*.c -o $@
build/tsan/%.o: build/src/.done vendor/mbedtls_config.h | install-test
	@mkdir -p $(@D) && echo "$@"
	$(Q)$(CLANG) $(LIB_FLAGS) $(TSAN) -c build/src/$*.c -o $@
build/asan/butler_webhook: butler_webhook.c $(LIBS:%=build/asan/%)
build/tsan/butler_webhook: butler_webhook.c $(LIBS:%=build/tsan/%)
build/test/butler_webhook: butler_webhook.c test/shim.c $(LIBS:%=build/asan/%)
build/test-tsan/butler_webhook: butler_webhook.c test/shim.c $(LIBS:%=build/tsan/%)
build/unit: test/unit.c test/done.h butler_webhook.c $(LIBS:%=build/asan/%)
build/fuzz/%: test/fuzz_%.c test/fuzz.h test/done.h butler_webhook.c $(LIBS:%=build/asan/%)
	$(CLANG_LINK)
build/unit build/asan/butler_webhook: VARIANT = $(ASAN)
build/tsan/butler_webhook: VARIANT = $(TSAN)
build/test/butler_webhook: VARIANT = $(ASAN) $(SHORT) $(SHIM)
build/test-tsan/butler_webhook: VARIANT = $(TSAN) $(SHORT) $(SHIM)
$(FUZZ): VARIANT = $(ASAN) -fsanitize=fuzzer
$(FUZZ) $(VARIANTS): $(GEN) Makefile
$(VARIANTS):
	$(CLANG_LINK)

# Each check prints what fails and ends with a line `N passed, N failed`; check adds them up.
check: install-test
	-$(MAKE) -k -j$$(nproc) all asan tsan test fuzz build/unit
	+@test/run.sh lint unit system asan tsan short fuzz binary readme demo
check-long: all install-test test fuzz
	+@FUZZ_SECONDS=60 test/run.sh analyzer tsan-rest faults fuzz windows arm64 dist
check-analyzer: install-test $(GEN)
	@$(MAKE) --no-print-directory -k -j2 analyzer-gcc analyzer-clang && echo "2 passed, 0 failed"
analyzer-gcc:
	@$(CC) $(OWN_FLAGS) -O1 -fanalyzer -c butler_webhook.c -o build/analyzer.o
analyzer-clang:
	@clang-tidy --quiet --warnings-as-errors='*' --checks='$(ANALYZER)' butler_webhook.c -- $(OWN_FLAGS)
check-lint: install-test $(GEN)
	@test/lint.sh $(OWN_FLAGS)
check-unit: build/unit
	@build/unit
check-system: all test
	@python3 test/system.py
check-asan: asan test
	@BUTLER_SLOW=2 BUTLER_BINARY=build/asan/butler_webhook python3 test/system.py
check-tsan check-tsan-rest: check-%: tsan test
	@BUTLER_SLOW=3 BUTLER_BINARY=build/tsan/butler_webhook BUTLER_BINARY_TEST=build/test-tsan/butler_webhook python3 test/system.py \
		--only '$($*_ONLY)'
# First the tests of what threads share; what one does alone (reading the configuration, datagrams, answers) in the long form.
tsan_ALONE = config|datagram_|answers|hostile|trace|proxy|tls|trust
tsan_ONLY = ^(?!$(tsan_ALONE))
tsan-rest_ONLY = ^($(tsan_ALONE))
check-short: all test
	@python3 test/faults.py
check-faults: all test
	@python3 test/faults.py --long
check-fuzz: fuzz
	@FUZZ_SECONDS=$(FUZZ_SECONDS) test/fuzz.sh $(FUZZ)
check-binary: all install-test
	@test/binary.sh
check-arm64: build/unit-arm64 build/arm64/run arm64 test
	+@test/run.sh arm64-unit arm64-system
check-arm64-unit: build/unit-arm64 | install-emulator
	@qemu-aarch64-static build/unit-arm64
# Without the tests that limit memory, descriptors or threads, of which the emulator needs more, or that time hundreds of calls.
check-arm64-system: build/arm64/run arm64 test
	@BUTLER_SLOW=4 BUTLER_BINARY=build/arm64/run python3 test/system.py --jobs 8 \
		--only '^(?!config_(hostile|random)|hostile_memory|independent_of_all_at_once|limits_(too_few_descriptors|threads))'
# The program for Windows, run by wine.
check-windows: windows build/butler_webhook-test.exe install-test install-wine
	+@test/run.sh windows-system windows-only windows-faults windows-readme windows-demo
check-windows-system check-windows-only check-windows-readme check-windows-demo check-windows-faults: check-windows-%: windows \
		build/butler_webhook-test.exe | install-wine
	@BUTLER_BINARY=build/butler_webhook.exe python3 test/$(if $(filter only,$*),windows,$*).py $($*_ONLY)
# Those of the journal: what is killed, torn, damaged, dead, replayed.
faults_ONLY = --jobs 2 --only '^(kill|torn|damaged|letter|replay|webhook_(changed|removed)|full_state)'
check-dist: dist
	@SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) test/dist.sh $(foreach p,$(PLATFORMS),$($p_NAME))
check-readme: all install-demo
	@python3 test/readme.py
check-demo demo: all install-demo
	@python3 test/demo.py
bench: all install-bench
	@test/bench/run.sh

# The archives hold the same bytes wherever they are made: their files have the date of the last commit; without git, this one.
SOURCE_DATE_EPOCH ?= $(if $(wildcard .git),$(shell git -c safe.directory='$(CURDIR)' log -1 --format=%ct),1767225600)
archives: $(foreach p,$(PLATFORMS),$($p_FILE)) | install-archives
	@[ -n '$(SOURCE_DATE_EPOCH)' ] || { echo 'git does not tell the date of the last commit: set SOURCE_DATE_EPOCH'; exit 1; }
	$(Q)VERSION=$(VERSION) SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) vendor/dist.sh \
		'$(sort $(foreach l,$(LIBS),$(firstword $(subst /, ,$l))))' $(foreach p,$(PLATFORMS),$($p_NAME) $($p_FILE) '$($p_CC)')
dist: archives | install-dist
	@test/unpacked.sh
$(INSTALL): install-%:
	@test/install.sh $*
install: all
	install -D -m 755 build/butler_webhook $(DESTDIR)$(PREFIX)/bin/butler_webhook
uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/butler_webhook
clean:
	rm -rf build
distclean:
	rm -rf build vendor/cache
help:
	@sed -n 's/^## //p' Makefile

.PHONY: all arm64 windows archives dist asan tsan test fuzz check check-long check-analyzer analyzer-gcc analyzer-clang \
	check-lint check-unit check-system check-asan check-tsan check-tsan-rest check-short check-faults check-fuzz check-binary \
	check-arm64 check-arm64-unit check-arm64-system check-windows check-windows-system check-windows-only check-windows-faults \
	check-windows-readme check-windows-demo check-dist check-readme check-demo demo bench install uninstall clean distclean help \
	$(INSTALL)
.DELETE_ON_ERROR:
