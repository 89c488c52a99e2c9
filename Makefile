# make demo   what credproxy does, for real, in a minute
# make test   everything there is to test (installs what the tests need)
# make lint   formatting, vet, static analysis, a tidy go.mod
# make bench  speed and memory beside a raw echo
# make build  bin/credproxy; on macOS also the program that runs inside containers, bin/credproxy-linux-ARCH
# make cross  dist/credproxy-OS-ARCH for all systems
# make install  into PREFIX (/usr/local); DESTDIR is put before it
# make recordings  docs/recordings and the transcripts in docs/logins.md, anew

SHELL       := /bin/bash
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
BUILD_FLAGS := -trimpath -ldflags '-s -w -X github.com/credproxy/credproxy/internal/cli.version=$(VERSION)'
GUESTS      := $(if $(filter Linux,$(shell uname -s)),,amd64 arm64)
DEST         = $(DESTDIR)$(or $(PREFIX),/usr/local)
export CGO_ENABLED ?= 0

.PHONY: all build demo test lint bench recordings cross install clean check-platform

all: build

# Static, so that the same file runs inside any container.
build: $(GUESTS:%=guest-%)
	go build $(BUILD_FLAGS) -o bin/credproxy ./cmd/credproxy

# Where this system's own program cannot run in a container: for either processor, for an engine may emulate the other one's machine.
guest-%:
	GOOS=linux GOARCH=$* go build $(BUILD_FLAGS) -o bin/credproxy-linux-$* ./cmd/credproxy

demo: build
	test/engine-for-demo.sh
	bin/credproxy demo

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

# What works on this machine, a line each: see docs/platforms.md.
check-platform:
	test/check-platform.sh

clean:
	rm -rf bin dist
