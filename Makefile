# make demo   what credproxy does, for real, in a minute
# make test   everything there is to test (installs what the tests need)
# make lint   formatting, vet, static analysis, a tidy go.mod
# make bench  speed and memory beside a raw echo
# make build  bin/credproxy
# make recordings  docs/recordings and the transcripts in docs/logins.md, anew

SHELL       := /bin/bash
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
BUILD_FLAGS := -trimpath -ldflags '-s -w -X github.com/credproxy/credproxy/internal/cli.version=$(VERSION)'
export CGO_ENABLED ?= 0

.PHONY: all build demo test lint bench recordings cross install clean

all: build

# Static, so that the same file runs inside any container.
build:
	go build $(BUILD_FLAGS) -o bin/credproxy ./cmd/credproxy

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
	install -m 0755 bin/credproxy $(or $(PREFIX),/usr/local)/bin/credproxy

clean:
	rm -rf bin dist
