# make demo   what credproxy does, for real, in a minute
# make test   everything there is to test (installs what the tests need)
# make check-platform  what works on this machine, a line each: see docs/platforms.md
# make lint   formatting, vet, static analysis, a tidy go.mod
# make bench  speed and memory beside a raw echo
# make build  bin/credproxy; for macOS also the program that runs inside containers, bin/credproxy-linux-ARCH
# make guest-ARCH  bin/credproxy-linux-ARCH alone: for an engine whose machine has another processor (amd64, arm64)
# make cross  dist/credproxy-OS-ARCH for all systems
# make install, uninstall  into PREFIX (/usr/local), or out of it; DESTDIR is put before it
# make clean  without bin and dist
# make recordings  docs/recordings and the transcripts in docs/logins.md, anew

SHELL       := /bin/bash
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
INTERNAL    := github.com/credproxy/credproxy/internal
# The second is what one program finds in the file of the other, see internal/sandbox/linuxbinary.go.
STAMPS       = -X $(INTERNAL)/cli.version=$(VERSION) -X $(INTERNAL)/sandbox.stamp=credproxy-stamp:{$(VERSION)}
BUILD_FLAGS := -trimpath -ldflags '-s -w $(STAMPS)'
# The system that is built for, which is not always the one that builds.
GUESTS      := $(if $(filter linux,$(or $(GOOS),$(shell go env GOOS))),,amd64 arm64)
DEST         = $(DESTDIR)$(or $(PREFIX),/usr/local)
export CGO_ENABLED ?= 0

.PHONY: all build demo test lint bench recordings cross install uninstall clean check-platform

all: build

# Static, so that the same file runs inside any container.
build: $(GUESTS:%=guest-%)
	go build $(BUILD_FLAGS) -o bin/credproxy ./cmd/credproxy

# Where this system's own program cannot run in a container: for either processor, for an engine may emulate the other one's machine.
guest-%:
	GOOS=linux GOARCH=$* go build $(BUILD_FLAGS) -o bin/credproxy-linux-$* ./cmd/credproxy

# 7 says that no engine works. Whichever does is enough; it installs one only where there is none.
demo: build
	bin/credproxy demo || { [ $$? = 7 ] && test/engine-for-demo.sh && bin/credproxy demo; }

test:
	test/all.sh

lint:
	test/lint.sh

bench: build
	test/bench.sh

recordings:
	test/record-logins.sh

cross:
	@for target in linux/amd64 linux/arm64 darwin/amd64 darwin/arm64; do \
		echo "build $$target"; \
		GOOS=$${target%/*} GOARCH=$${target#*/} go build $(BUILD_FLAGS) -o dist/credproxy-$${target/\//-} ./cmd/credproxy || exit 1; \
	done

install: build
	install -d $(DEST)/bin
	install -m 0755 bin/credproxy $(DEST)/bin/credproxy
ifneq ($(GUESTS),)
	install -d $(DEST)/libexec/credproxy
	install -m 0755 $(GUESTS:%=bin/credproxy-linux-%) $(DEST)/libexec/credproxy
endif

uninstall:
	rm -f $(DEST)/bin/credproxy
	rm -rf $(DEST)/libexec/credproxy

check-platform:
	test/check-platform.sh

clean:
	rm -rf bin dist
