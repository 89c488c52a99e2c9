#!/usr/bin/env bash
# What bin/credproxy costs, beside a raw echo: test/bench measures and prints the table, docs/benchmarks.md explains it.
# Arguments choose measurements (test/bench lists them). Then the micro-benchmarks of what lies on a request's way. A missed target is no error.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(uname -s)" = Linux ] || { echo "bench: it reads /proc: run it on Linux" >&2; exit 1; }
[ -x bin/credproxy ] || { echo "bench: there is no bin/credproxy: run make bench" >&2; exit 1; }
export CGO_ENABLED=0

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
go build -o "$scratch/bench" ./test/bench
TMPDIR=$scratch "$scratch/bench" bin/credproxy "$@"

echo
go test -run '^$' -bench . -benchtime 100ms -benchmem ./wire ./internal/frame ./internal/audit ./internal/vault/internal/store |
	grep -E '^Benchmark|^FAIL|^panic'
