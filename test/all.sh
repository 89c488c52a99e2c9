#!/usr/bin/env bash
# Everything there is to test, in the order in which it fails soonest: lint, unit tests with the race detector, fuzzing, the
# built command from outside in every engine, builds for every platform. What is missing on a Debian machine is installed.
#
# FUZZTIME=20000x is how many inputs each fuzz target gets. A duration works too, but the go command then sometimes reports its own
# deadline as a failure of the target ("context deadline exceeded").
set -euo pipefail
cd "$(dirname "$0")/.."

# Tests send signals. Under nohup, or in the background of a script, some are ignored, which every process below would inherit.
if [ -z "${SIGNALS_ARE_DEFAULT:-}" ] && env --default-signal=HUP,INT,QUIT true 2>/dev/null; then
	SIGNALS_ARE_DEFAULT=yes exec env --default-signal=HUP,INT,QUIT test/all.sh
fi
export PATH="$PATH:/usr/sbin:/sbin"
# As the builds have it, so that the standard library is compiled once for each platform and not twice.
export CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -trimpath"

begun=$SECONDS
say() { echo "test: $*" >&2; }
die() { say "$*"; exit 1; }

# step NAME COMMAND… says what is done and how long it took.
step() {
	local name=$1 start=$SECONDS
	shift
	say "$name …"
	"$@" || die "FAILED: $name (after $((SECONDS - start)) s)"
	say "$name: ok, $((SECONDS - start)) s"
}

as_root=()
if [ "$(id -u)" != 0 ]; then
	command -v sudo >/dev/null && sudo -n true 2>/dev/null ||
		die "the tests play several users and start container engines: run them as root, or as a user that has sudo without a password"
	as_root=(sudo -n)
fi
root() { "${as_root[@]}" "$@"; }

scratch=$(mktemp -d)
engines_job= cross_job=
engines_before=$(root "$PWD/test/engines.sh" started) # what runs already is not ours to stop
finish() {
	status=$?
	[ -z "$cross_job" ] || kill "$cross_job" 2>/dev/null || true
	[ -z "$engines_job$cross_job" ] || wait || true
	[ -n "$engines_before" ] || root "$PWD/test/engines.sh" down || true
	root rm -rf "$scratch"
	[ $status = 0 ] && say "all passed in $((SECONDS - begun)) s" || say "FAILED after $((SECONDS - begun)) s"
}
trap finish EXIT
trap 'exit 130' INT TERM

command -v go >/dev/null || die "no go in PATH: install Go 1.26 (go.dev/dl)"
packages=()
command -v gcc >/dev/null || packages+=(gcc libc6-dev) # the race detector
command -v python3 >/dev/null || packages+=(python3)
command -v dbus-send >/dev/null || packages+=(dbus-bin)
if [ ${#packages[@]} -gt 0 ]; then
	command -v apt-get >/dev/null || die "no apt-get here: install what provides ${packages[*]}"
	step "installing ${packages[*]}" root "$PWD/test/packages.sh" "${packages[@]}" >&2
fi

before=$(git status --porcelain)

# Engines take their time to come up, and need no core for it.
say "preparing docker, podman, bubblewrap and gnome-keyring in the background …"
root "$PWD/test/engines.sh" up >"$scratch/engines.env" 2>"$scratch/engines.log" &
engines_job=$!

# The network may stumble.
modules() {
	local pause
	for pause in 5 15 30 60 0; do
		go mod download && go mod download -modfile=tools/go.mod && return
		sleep "$pause"
	done
	return 1
}
step "download modules" modules
step "lint" test/lint.sh

# The engines may be what some unit tests look for.
if ! wait "$engines_job"; then
	engines_job=
	cat "$scratch/engines.log" >&2
	die "FAILED: preparing the engines"
fi
engines_job=
tail -1 "$scratch/engines.log" >&2

step "unit tests with the race detector" env CGO_ENABLED=1 go test -race -vet=off -timeout 10m ./... # lint has vetted all

fuzz() {
	local dir name
	while IFS=: read -r dir name; do
		say "fuzz $dir $name"
		go test -vet=off -run '^$' -fuzz "^$name\$" -fuzztime "${FUZZTIME:-20000x}" "$dir" >"$scratch/fuzz.log" 2>&1 || {
			cat "$scratch/fuzz.log" >&2
			return 1
		}
		grep 'elapsed' "$scratch/fuzz.log" | tail -1 >&2
	done < <(git ls-files -co --exclude-standard '*_test.go' | xargs grep -HoE '^func Fuzz[A-Za-z0-9_]+' | sed -E 's#^(.*)/[^/]*:func #./\1:#')
}
step "fuzz targets" fuzz

# The tests from outside run as root; only the compiler does not, so that its cache stays the user's.
outside() {
	local settings=()
	while IFS= read -r line; do settings+=("$line"); done <"$scratch/engines.env"
	local runner="env ${settings[*]} CREDPROXY_E2E_BINARY=$scratch/credproxy"
	[ ${#as_root[@]} = 0 ] || runner="sudo -n $runner PATH=$PATH"
	go test -tags e2e -vet=off -count=1 -parallel 4 -timeout 14m -exec "$runner" "$@"
}
step "build the command" go build -o "$scratch/credproxy" ./cmd/credproxy
chmod 755 "$scratch"

# In the time that tests wait for engines.
say "builds for linux and darwin on amd64 and arm64 in the background …"
nice -n 19 make cross >"$scratch/cross.log" 2>&1 &
cross_job=$!
step "sandboxes with real engines" outside ./internal/sandbox
step "the command from outside" outside ./test/e2e

# The script for people with a Mac, where it can be run.
platform() {
	local settings=()
	while IFS= read -r line; do settings+=("$line"); done <"$scratch/engines.env"
	root env "${settings[@]}" CREDPROXY="$scratch/credproxy" PATH="$PATH" test/check-platform.sh
}
step "the platform check" platform

built() {
	local status=0
	wait "$cross_job" || status=$?
	cross_job=
	cat "$scratch/cross.log" >&2
	return $status
}
step "builds for linux and darwin on amd64 and arm64" built

after=$(git status --porcelain)
[ "$before" = "$after" ] || die "FAILED: the tests have changed the tree: $(diff <(echo "$before") <(echo "$after"))"
