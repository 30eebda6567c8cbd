# SPDX-License-Identifier: MIT
# CC, CFLAGS, CPPFLAGS, LDFLAGS, PREFIX and DESTDIR are the user's. `make V=1` shows the commands. What `make help` prints:
## make              build/butler_webhook, the static binary for Linux x86-64
## make demo         shows the main job: datagrams in, webhook calls out
## make check        all the tests; ends with `N passed, N failed`
## make check-lint, check-unit, check-system, check-asan, check-tsan, check-short, check-fuzz, check-binary, check-readme
## make check-long   the long forms: check-faults (kill -9, broken disks and networks, a soak), a minute for each fuzzer
## make asan, tsan, test, fuzz   the variants that the tests use: sanitizers, short limits, fuzzers
## make bench        latency, throughput, memory, start
## make install, uninstall, clean, distclean   PREFIX (/usr/local) and DESTDIR say where; distclean: the downloads, too
## Missing packages are installed with apt-get, as root or with sudo. VENDOR_DIR=folder: archives for use without network.

ifeq ($(origin CC),default)
CC = gcc
endif
CLANG ?= clang
CFLAGS ?= -O2
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 6
Q = $(if $(V),,@)

# The parts of Mbed TLS that vendor/mbedtls_config.h needs.
MBEDTLS = aes aesce aesni asn1parse asn1write base64 bignum bignum_core bignum_mod bignum_mod_raw block_cipher chacha20 \
	chachapoly cipher cipher_wrap constant_time ecdh ecdsa ecp ecp_curves gcm hkdf md oid pem pk pk_ecc pk_wrap pkparse \
	platform platform_util poly1305 psa_crypto psa_crypto_aead psa_crypto_cipher psa_crypto_client \
	psa_crypto_driver_wrappers_no_static psa_crypto_ecp psa_crypto_hash psa_crypto_mac psa_crypto_rsa \
	psa_crypto_slot_management psa_util rsa rsa_alt_helpers sha1 sha256 sha512 ssl_ciphersuites ssl_client ssl_msg \
	ssl_tls ssl_tls12_client ssl_tls13_client ssl_tls13_generic ssl_tls13_keys threading x509 x509_crt
LIBYAML = api loader parser reader scanner
YAML_VERSION = MAJOR=0 MINOR=2 PATCH=5
LIBS = $(MBEDTLS:%=mbedtls/library/%.o) $(LIBYAML:%=libyaml/src/%.o)
MUSL = build/musl/lib/libc.a
GEN = build/gen/roots.h build/gen/notices.h
FUZZ = $(patsubst test/fuzz_%.c,build/fuzz/%,$(wildcard test/fuzz_*.c))

HEADERS = -DMBEDTLS_CONFIG_FILE='"vendor/mbedtls_config.h"' -DYAML_DECLARE_STATIC -iquote . -isystem build/gen \
	-isystem build/src/mbedtls/include -isystem build/src/libyaml/include
LIB_FLAGS = -std=gnu11 -w $(HEADERS) -DYAML_VERSION_STRING='"0.2.5"' $(YAML_VERSION:%=-DYAML_VERSION_%)
OWN_FLAGS = -std=c11 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Wundef -Wvla \
	-Wformat=2 -Werror $(HEADERS)
SPECS = -specs=build/musl/lib/musl-gcc.specs
HARDEN = -fPIE -fstack-protector-strong -fstack-clash-protection -fno-asynchronous-unwind-tables -ffunction-sections \
	-fdata-sections -ffile-prefix-map=$(CURDIR)=.
LINK = -static-pie -s -Wl,--gc-sections,--build-id=none,-z,relro,-z,now,-z,noexecstack,-z,separate-code
ASAN = -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
TSAN = -g -O1 -fsanitize=thread
SHORT = -DTIMEOUT_UNIT_MS=200 -DAGE_UNIT_MS=84 -DQUEUE_MAX_ALERTS=5 -DSENDER_IDLE_MS=1000 -DJOURNAL_REWRITE_MIN=16384 \
	-DJOURNAL_HEAL_MS=300

SHIM = $(foreach f,open read pread write fdatasync fsync ftruncate rename close clock_gettime socket getaddrinfo,-Wl,--wrap=$f)

# The variants for the tests: each is made from the first prerequisite and the objects among the others.
VARIANTS = $(patsubst %,build/%/butler_webhook,asan tsan test test-tsan) build/unit
define CLANG_LINK
	@mkdir -p $(@D) && echo "$@"
	$(Q)$(CLANG) $(OWN_FLAGS) $(VARIANT) $< $(filter %shim.c %.o,$^) -o $@ -lpthread -lm
endef

all: build/butler_webhook
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
build/gen/notices.h: vendor/notices.sh LICENSE build/src/.done
	$(Q)vendor/notices.sh build/src >$@
$(MUSL): build/src/.done
	@echo "building musl (build/musl.log)"
	@cd build/src/musl && { CC='$(CC)' CFLAGS='-Os -fPIE -fstack-protector-strong -ffile-prefix-map=$(CURDIR)=.' ./configure \
		--prefix='$(CURDIR)/build/musl' --disable-shared --enable-wrapper=gcc && $(MAKE) -j$$(nproc) && \
		$(MAKE) install; } >../../musl.log 2>&1 || { tail -n 20 ../../musl.log; exit 1; }

# The binary, and a check that nothing made it a dynamic one.
build/release/%.o: build/src/.done vendor/mbedtls_config.h | $(MUSL)
	@mkdir -p $(@D) && echo "$@"
	$(Q)$(CC) $(SPECS) -Os $(LIB_FLAGS) $(HARDEN) -c build/src/$*.c -o $@
build/release/butler_webhook.o: butler_webhook.c $(GEN) vendor/mbedtls_config.h Makefile $(MUSL)
	@mkdir -p $(@D) && echo "$@"
	$(Q)$(CC) $(SPECS) $(OWN_FLAGS) $(HARDEN) $(CPPFLAGS) $(CFLAGS) -c $< -o $@
build/butler_webhook: build/release/butler_webhook.o $(LIBS:%=build/release/%)
	@echo "$@"
	$(Q)$(CC) $(SPECS) $(HARDEN) $(CFLAGS) $(LINK) $(LDFLAGS) $^ -o $@
	@! readelf -ldW $@ | grep -E 'INTERP|NEEDED' || { echo "$@ is not static"; exit 1; }

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
build/unit: test/unit.c butler_webhook.c build/asan/cjson/cJSON.o $(LIBS:%=build/asan/%)
build/fuzz/%: test/fuzz_%.c test/fuzz.h butler_webhook.c $(LIBS:%=build/asan/%)
	$(CLANG_LINK)
build/unit: VARIANT = $(ASAN) -isystem build/src/cjson
build/asan/butler_webhook: VARIANT = $(ASAN)
build/tsan/butler_webhook: VARIANT = $(TSAN)
build/test/butler_webhook: VARIANT = $(ASAN) $(SHORT) $(SHIM)
build/test-tsan/butler_webhook: VARIANT = $(TSAN) $(SHORT) $(SHIM)
$(FUZZ): VARIANT = $(ASAN) -fsanitize=fuzzer
$(FUZZ) $(VARIANTS): $(GEN) Makefile
$(VARIANTS):
	$(CLANG_LINK)

# Each check prints what fails and ends with a line `N passed, N failed`; check adds them up.
check: all install-test
	-$(MAKE) -k -j$$(nproc) asan tsan test fuzz build/unit
	+@test/run.sh lint unit system asan tsan short fuzz binary readme demo
check-long: all install-test test fuzz
	+@FUZZ_SECONDS=60 test/run.sh analyzer faults fuzz
check-analyzer: install-test $(GEN)
	@$(CC) $(OWN_FLAGS) -O1 -fanalyzer -c butler_webhook.c -o build/analyzer.o && echo "1 passed, 0 failed"
check-lint: install-test $(GEN)
	@test/lint.sh $(OWN_FLAGS)
check-unit: build/unit
	@build/unit
check-system: all test
	@python3 test/system.py
check-asan: asan test
	@BUTLER_SLOW=2 BUTLER_BINARY=build/asan/butler_webhook python3 test/system.py
check-tsan: tsan test
	@BUTLER_SLOW=3 BUTLER_BINARY=build/tsan/butler_webhook BUTLER_BINARY_TEST=build/test-tsan/butler_webhook python3 test/system.py
check-short: all test
	@python3 test/faults.py
check-faults: all test
	@python3 test/faults.py --long
check-fuzz: fuzz
	@FUZZ_SECONDS=$(FUZZ_SECONDS) test/fuzz.sh $(FUZZ)
check-binary: all install-test
	@test/binary.sh
check-readme: all install-demo
	@python3 test/readme.py
check-demo demo: all install-demo
	@python3 test/demo.py
bench: all install-bench
	@test/bench/run.sh
install-build install-demo install-test install-bench: install-%:
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

.PHONY: all asan tsan test fuzz check check-long check-analyzer check-lint check-unit check-system check-asan check-tsan check-short check-faults \
	check-fuzz check-binary check-readme check-demo demo bench install-build install-demo install-test install-bench install uninstall clean distclean help
.DELETE_ON_ERROR:
