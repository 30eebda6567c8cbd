# SPDX-License-Identifier: MIT
#
# butler_webhook.c and three libraries make one static program for each platform. `make help` prints:
## make              build/butler_webhook, the program for Linux on x86-64
## make windows      build/butler_webhook.exe, for Windows on x86-64
## make arm64        build/butler_webhook-arm64, for Linux on 64-bit ARM
## make demo         shows the main job: datagrams in, webhook calls out
## make check        all tests but the long ones; ends with `N passed, N failed`
## make dist         build/dist: the archives of all three, their parts list (SBOM) and checksums; tries each
## make bench        latency, throughput, memory, start, beside rsyslog and syslog-ng
## make install, make uninstall   the program in PREFIX/bin below DESTDIR; PREFIX is /usr/local
## make clean, make distclean     removes what was built; distclean what was downloaded, too
## CC, CFLAGS, CPPFLAGS and LDFLAGS are yours. V=1 shows the commands. VENDOR_DIR=folder: the downloads, for a
## machine without network. Missing tools are installed with apt-get, as root or with sudo; without it, named.

ifeq ($(origin CC),default)
CC = gcc
endif
CFLAGS ?= -O2
PREFIX ?= /usr/local
AARCH64 = aarch64-linux-gnu-
MINGW = x86_64-w64-mingw32-
VERSION := $(shell sed -n 's/^.define VERSION "\([0-9.]*\)".*/\1/p' butler_webhook.c)
# Before each command: makes the target's folder, and prints its name, or with V=1 the command.
RUN = @mkdir -p $(@D) && $(if $(V),set -x,echo "$@") &&

# What is compiled of the libraries; of Mbed TLS it is what vendor/mbedtls_config.h needs.
MBEDTLS = aes aesce aesni asn1parse asn1write base64 bignum bignum_core bignum_mod bignum_mod_raw \
	block_cipher chacha20 chachapoly cipher cipher_wrap constant_time ecdh ecdsa ecp ecp_curves gcm hkdf \
	md oid pem pk pk_ecc pk_wrap pkcs5 pkparse platform platform_util poly1305 psa_crypto \
	psa_crypto_aead psa_crypto_cipher psa_crypto_client psa_crypto_driver_wrappers_no_static \
	psa_crypto_ecp psa_crypto_hash psa_crypto_mac psa_crypto_rsa psa_crypto_slot_management psa_util rsa \
	rsa_alt_helpers sha1 sha256 sha512 ssl_ciphersuites ssl_client ssl_msg ssl_tls ssl_tls12_client \
	ssl_tls13_client ssl_tls13_generic ssl_tls13_keys x509 x509_crt
EVEREST = mbedtls/3rdparty/everest
LIBS = $(MBEDTLS:%=mbedtls/library/%.o) $(addprefix libyaml/src/,api.o loader.o parser.o reader.o scanner.o) \
	$(addprefix $(EVEREST)/library/,everest.o x25519.o Hacl_Curve25519_joined.o) cjson/cJSON.o

# cJSON's functions would else be exported from the exe. It recurses; what we read has two levels.
HEADERS = -DMBEDTLS_CONFIG_FILE='"vendor/mbedtls_config.h"' -DYAML_DECLARE_STATIC -DCJSON_HIDE_SYMBOLS \
	-iquote . -isystem build/gen \
	$(addprefix -isystem build/src/,mbedtls/include $(EVEREST)/include libyaml/include cjson)
LIB_FLAGS = -std=gnu11 -w $(HEADERS) -DCJSON_NESTING_LIMIT=8 -DYAML_VERSION_STRING='"0.2.5"' \
	-DYAML_VERSION_MAJOR=0 -DYAML_VERSION_MINOR=2 -DYAML_VERSION_PATCH=5 \
	$(addprefix -isystem build/src/,mbedtls/library $(addprefix $(EVEREST)/include/everest,/ /kremlib))
OWN_FLAGS = -std=c11 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes \
	-Wundef -Wvla -Wformat=2 $(HEADERS)
HARDEN = -fstack-protector-strong -ffunction-sections -fdata-sections "-ffile-prefix-map=$(CURDIR)=." \
	-fno-unwind-tables -fno-asynchronous-unwind-tables
HARDEN_ELF = $(HARDEN) -fPIE -fstack-clash-protection
LINK_ELF = -static-pie -s -Wl,--gc-sections,--build-id=none,-z,relro,-z,now,-z,noexecstack

all: build/butler_webhook
arm64: build/butler_webhook-arm64
windows: build/butler_webhook.exe

# What is downloaded, and the headers that are made of it.
build/src/.done: vendor/lock vendor/fetch.sh vendor/sources.sh | install-build
	@vendor/fetch.sh build/src && touch $@
build/gen/roots.h: vendor/roots.awk vendor/lock build/src/.done
	$(RUN) awk -v date=$$(awk '/^certd/{print $$3}' vendor/lock) -f vendor/roots.awk build/src/certdata.txt >$@
build/gen/notices.h: vendor/notices.sh vendor/lock LICENSE build/src/.done
	$(RUN) vendor/notices.sh build/src linux >$@
build/gen/windows/notices.h: vendor/notices.sh vendor/lock vendor/mingw-w64.txt LICENSE build/src/.done
	$(RUN) vendor/notices.sh build/src windows >$@
build/gen/windows/version.h: butler_webhook.c
	$(RUN) printf '#define VERSION "%s"\n#define VERSION_NUMBERS %s,0\n' \
		$(VERSION) $$(echo $(VERSION) | tr . ,) >$@
GEN = build/gen/roots.h build/gen/notices.h
OURS = butler_webhook.c vendor/mbedtls_config.h Makefile
THEIRS = build/src/.done vendor/mbedtls_config.h Makefile

# Linux on x86-64.
LINUX_CC = $(CC) -specs=build/musl-linux/lib/musl-gcc.specs $(HARDEN_ELF)
LINUX_LINK = $(LINK_ELF),-z,separate-code
build/musl-linux/lib/libc.a: vendor/musl.sh build/src/.done
	@vendor/musl.sh build/musl-linux '$(CC)'
build/linux/%.o: $(THEIRS) | build/musl-linux/lib/libc.a
	$(RUN) $(LINUX_CC) $(LIB_FLAGS) -Os -c build/src/$*.c -o $@
build/linux/libs.a: $(LIBS:%=build/linux/%)
	$(RUN) rm -f $@ && $(AR) rcs $@ $^
build/linux/butler_webhook.o: $(OURS) $(GEN) | build/musl-linux/lib/libc.a
	$(RUN) $(LINUX_CC) $(OWN_FLAGS) $(CPPFLAGS) $(CFLAGS) -c $< -o $@
build/butler_webhook: build/linux/butler_webhook.o build/linux/libs.a
	$(RUN) $(LINUX_CC) $(CFLAGS) $(LINUX_LINK),-Map=build/linux/map $(LDFLAGS) $^ -o $@
	@! readelf -ldW $@ | grep -E 'INTERP|NEEDED' || { echo "$@ needs more than its system"; exit 1; }

# Linux on 64-bit ARM. Servers with pages of 64 KB can only load a file that is laid out for them, and a page
# border between code and constants would then cost 130 KB of zeros.
ARM64_CC = $(AARCH64)gcc -specs=build/musl-arm64/lib/musl-gcc.specs $(HARDEN_ELF)
ARM64_LINK = $(LINK_ELF),-z,max-page-size=65536,-z,noseparate-code
build/musl-arm64/lib/libc.a: vendor/musl.sh build/src/.done | install-arm64
	@vendor/musl.sh build/musl-arm64 $(AARCH64)gcc --target=aarch64 CROSS_COMPILE=$(AARCH64)
build/arm64/%.o: $(THEIRS) | build/musl-arm64/lib/libc.a
	$(RUN) $(ARM64_CC) $(LIB_FLAGS) -Os -c build/src/$*.c -o $@
build/arm64/libs.a: $(LIBS:%=build/arm64/%)
	$(RUN) rm -f $@ && $(AARCH64)ar rcs $@ $^
build/arm64/butler_webhook.o: $(OURS) $(GEN) | build/musl-arm64/lib/libc.a
	$(RUN) $(ARM64_CC) $(OWN_FLAGS) $(CPPFLAGS) $(CFLAGS) -c $< -o $@
build/butler_webhook-arm64: build/arm64/butler_webhook.o build/arm64/libs.a
	$(RUN) $(ARM64_CC) $(CFLAGS) $(ARM64_LINK),-Map=build/arm64/map $(LDFLAGS) $^ -o $@
	@! readelf -ldW $@ | grep -E 'INTERP|NEEDED' || { echo "$@ needs more than its system"; exit 1; }

# Windows on x86-64, by mingw-w64. Our code is made small, too: the exe must stay under 730 KB.
WINDOWS_CC = $(MINGW)gcc $(HARDEN) -D_WIN32_WINNT=0x0603 -D_FILE_OFFSET_BITS=64 -isystem build/gen/windows
WINDOWS_LINK = -static -s -Wl,--gc-sections,--no-insert-timestamp,--dynamicbase,--high-entropy-va,--nxcompat
WINDOWS_GEN = build/gen/roots.h build/gen/windows/notices.h
build/windows/%.o: $(THEIRS) | install-windows
	$(RUN) $(WINDOWS_CC) $(LIB_FLAGS) -Os -c build/src/$*.c -o $@
build/windows/libs.a: $(LIBS:%=build/windows/%)
	$(RUN) rm -f $@ && $(MINGW)ar rcs $@ $^
build/windows/butler_webhook.o: $(OURS) $(WINDOWS_GEN) | install-windows
	$(RUN) $(WINDOWS_CC) $(OWN_FLAGS) $(CPPFLAGS) $(CFLAGS) -Os -c $< -o $@
build/windows/resource.o: vendor/release/windows.rc vendor/release/windows.manifest \
		build/gen/windows/version.h | install-windows
	$(RUN) $(MINGW)windres -I build/gen/windows $< $@
build/butler_webhook.exe: build/windows/butler_webhook.o build/windows/resource.o build/windows/libs.a
	$(RUN) $(WINDOWS_CC) $(CFLAGS) $(WINDOWS_LINK),-Map=build/windows/map $(LDFLAGS) $^ -lws2_32 -ladvapi32 -o $@
	@! $(MINGW)objdump -p $@ | grep 'DLL Name:' | grep -viEx '.* (KERNEL32|ADVAPI32|WS2_32|msvcrt)\.dll' || \
		{ echo "$@ needs more than its system"; exit 1; }

# The archives hold the same bytes wherever they are made: their files have the date of the last commit.
LAST_COMMIT = $(shell git -c safe.directory='$(CURDIR)' log -1 --format=%ct)
SOURCE_DATE_EPOCH ?= $(if $(wildcard .git),$(LAST_COMMIT),1767225600)
archives: build/butler_webhook build/butler_webhook-arm64 build/butler_webhook.exe | install-archives
	@VERSION=$(VERSION) SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) vendor/release/dist.sh 'cjson libyaml mbedtls' \
		linux-x64 build/butler_webhook '$(CC)' linux-arm64 build/butler_webhook-arm64 $(AARCH64)gcc \
		windows-x64 build/butler_webhook.exe $(MINGW)gcc
dist: archives | install-dist
	@test/unpacked.sh

# Two at a time, in this order: those that mostly wait beside those that compute. What does not build fails.
check: install-test
	+@test/run.sh -j2 system lint vendor unit binary asan short fuzz tsan readme demo alone
demo: all install-demo
	@python3 test/demo.py
install: all
	install -D -m 755 build/butler_webhook "$(DESTDIR)$(PREFIX)/bin/butler_webhook"
uninstall:
	rm -f "$(DESTDIR)$(PREFIX)/bin/butler_webhook"
clean:
	rm -rf build
distclean: clean
	rm -rf vendor/cache
help:
	@sed -n 's/^## \{0,1\}//p' Makefile test/test.mk

.PHONY: all arm64 windows archives dist check demo install uninstall clean distclean help
.DELETE_ON_ERROR:
include test/test.mk
