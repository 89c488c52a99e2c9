#!/usr/bin/env bash
# Records a login of each flow, on the host and from inside a sandbox: docs/recordings/*.cast (asciinema play FILE) and the
# transcripts in docs/logins.md. Linux, with Go and bubblewrap. Nothing of yours is touched: see test/record.
#
# test/record-logins.sh --check says whether the recordings are those of the command as it is, and changes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v bwrap >/dev/null || { echo "record-logins: install bubblewrap (apt-get install bubblewrap)" >&2; exit 1; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
CGO_ENABLED=0 go build -trimpath -o "$scratch/bin/" ./cmd/credproxy
docs=docs
if [ "${1:-}" = --check ]; then
	docs=$scratch/docs
	mkdir "$docs"
	cp docs/logins.md "$docs"
fi
go run ./test/record -bin "$scratch/bin" -docs "$docs"
[ "$docs" = docs ] || { diff -u docs/logins.md "$docs/logins.md" && diff -ru docs/recordings "$docs/recordings"; }
