#!/usr/bin/env bash
# Formatting, vet on both platforms, the go command's own modernisers, static analysis, a tidy go.mod.
set -euo pipefail
cd "$(dirname "$0")/.."
status=0
fail() { echo "lint: $*" >&2; status=1; }

unformatted=$(git ls-files -co --exclude-standard '*.go' | xargs -r gofmt -l)
[ -z "$unformatted" ] || fail "not formatted (run gofmt -w): $unformatted"
go vet -tags e2e ./... || fail "go vet" # the tag only adds files
# For one processor: no file here is for one alone, and both are built for later.
CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 go vet ./... || fail "go vet for darwin"
fixes=$(go fix -diff ./... 2>&1) || true
[ -z "$fixes" ] || fail "go fix has something to say: $fixes"
go tool -modfile=tools/go.mod staticcheck -tags e2e ./... || fail "staticcheck"
go mod tidy -diff || fail "go.mod is not tidy"
bash -n test/*.sh .ci/run || fail "a shell script does not parse"
exit $status
