#!/bin/bash
# Says what of credproxy works on this machine, a line each: PASS, FAIL, or none (it is not there, and need not be). It is for a person
# with a Mac, on which nobody could run anything so far (docs/platforms.md), and runs on Linux too, where `make test` runs it.
# The exit status is 0 without a FAIL.
#
#   test/check-platform.sh [docker|podman|bwrap]…     all engines that work, or these
#
# CREDPROXY=PATH takes that program instead of building one. Your logins, keys and configuration stay as they are: everything is in a
# directory of its own, and the one item that gets into the keyring is removed from it.
# It is for the bash 3.2 of macOS, and uses nothing that only GNU tools know.
set -u

usage() {
	echo "usage: test/check-platform.sh [docker|podman|bwrap]..." >&2
	echo "what works on this machine, a line each; without arguments in every engine that works (docs/platforms.md)" >&2
	exit 2
}
for e; do # "$@" of no arguments is unset in some versions
	case $e in
	docker | podman | bwrap) ;;
	*) usage ;;
	esac
done
cd "$(dirname "$0")/.." || exit 1
export LC_ALL=C

system=$(uname -s)
case $system in
Darwin)
	limit=103
	# What engines in virtual machines see of a Mac, whichever it is, is the home directory.
	work=$(mktemp -d "$HOME/Library/Caches/credproxy-check.XXXXXX") || exit 1
	;;
*)
	limit=107
	work=$(mktemp -d "${TMPDIR:-/tmp}/credproxy-check.XXXXXX") || exit 1
	;;
esac
mkdir -m 700 "$work/home" "$work/out"
dir=$work # of the socket, see serve
unset LLXPRT_CREDENTIAL_SOCKET CREDPROXY_CONFIG
export CREDPROXY_HOME="$work/home"
value="check-value-$$-$RANDOM$RANDOM" # of an API key; not a secret

cleanup() {
	status=$?
	trap - EXIT
	if [ -f "$work/serve.pid" ]; then kill "$(cat "$work/serve.pid")" 2>/dev/null; fi
	for f in "$work"/image.*; do
		[ -f "$f" ] && "$(cat "$f")" rmi "credproxy-check:$$" >/dev/null 2>&1
	done
	rm -rf "$work"
	exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

pass() { printf 'PASS  %s: %s\n' "$1" "$2"; }
fail() {
	printf 'FAIL  %s: %s\n' "$1" "$2"
	echo "$1" >>"$work/failed"
}
none() { printf 'none  %s: %s\n' "$1" "$2"; }

# first FILE… is the first line of the files, for a message.
first() { cat "$@" 2>/dev/null | grep -v '^$' | head -1 | cut -c1-300; }

# await SECONDS COMMAND… waits until the command succeeds.
await() {
	tries=$(($1 * 20))
	shift
	until "$@" >/dev/null 2>&1; do
		tries=$((tries - 1))
		[ "$tries" -gt 0 ] || return 1
		sleep 0.05
	done
}

# gone PID: the process has ended.
gone() { ! kill -0 "$1" 2>/dev/null; }

# limited COMMAND… ends it after five minutes; usual COMMAND… becomes it, with signals that a script's background has ignored.
# Both macOS and whatever has git have perl.
limited() {
	perl -e 'my $p = fork; unless ($p) { exec @ARGV or exit 127 } $SIG{ALRM} = sub { kill 9, $p }; alarm 300;
		until (waitpid($p, 0) == $p) {} exit($? & 127 ? 128 + ($? & 127) : $? >> 8)' "$@"
}
usual() { exec perl -e '$SIG{INT} = $SIG{QUIT} = "DEFAULT"; exec @ARGV or exit 127' "$@"; }
command -v perl >/dev/null || {
	fail perl "not found: install it"
	exit 1
}

# The program

build() {
	if [ -n "${CREDPROXY:-}" ]; then
		cp=$CREDPROXY
	elif make build >"$work/out/build" 2>&1; then
		cp=$PWD/bin/credproxy
	else
		fail build "$(tail -1 "$work/out/build")"
		exit 1
	fi
	if version=$("$cp" version 2>"$work/out/version"); then
		pass build "$(echo "$version" | head -1) on $system $(uname -r) $(uname -m)"
	else
		fail build "$(first "$work/out/version")"
		exit 1
	fi
}

configure() {
	umask 077
	cat >"$CREDPROXY_HOME/config.toml" <<-END
		store = "file"
		[file_store]
		key = "file"
		[providers.check]
		client_id = "check"
		flows = ["paste"]
		authorize_url = "https://login.example/authorize"
		token_url = "https://login.example/token"
		redirect_url = "https://login.example/done"
		[profiles.default]
		keys = ["check-key"]
		login = "allow"
		[profiles.default.providers]
		check = ["default"]
	END
	printf %s "$value" | "$cp" key set check-key >"$work/out/set" 2>&1 || fail "file store" "$(first "$work/out/set")"
	printf %s "$value" | "$cp" key set check-other >>"$work/out/set" 2>&1 || fail "file store" "$(first "$work/out/set")"
	# It also tells which engines work. An engine that is asked for must.
	limited "$cp" doctor >"$work/doctor" 2>&1
	if grep '^FAIL' "$work/doctor" >"$work/out/doctor"; then
		fail doctor "$(first "$work/out/doctor")"
	else
		pass doctor "$(grep -c '^ok' "$work/doctor") checks are ok, $(grep -c '^warn' "$work/doctor") warn; $(sed -n 's/^ok *guest program *//p' "$work/doctor" | head -1)"
	fi
}

# The socket, and what becomes of a client when the proxy dies

serve() {
	"$cp" serve --json >"$work/serve" 2>"$work/out/serve" &
	echo $! >"$work/serve.pid"
	disown
	if ! await 60 grep -q socket "$work/serve"; then
		fail socket "$(first "$work/out/serve")"
		return
	fi
	socket=$(sed -n 's/.*"socket":"\([^"]*\)".*/\1/p' "$work/serve")
	dir=$(dirname "$socket")
	mode=$(ls -ld "$socket" | cut -c1-10)
	dirmode=$(ls -ld "$dir" | cut -c1-10)
	if [ "$mode" != srw------- ] || [ "$dirmode" != drwx------ ]; then
		fail socket "modes $mode and $dirmode of $socket and its directory"
	elif [ "$(cd "$dir" && pwd -P)" != "$dir" ]; then
		fail socket "$socket has a symbolic link in it"
	elif [ ${#socket} -gt $limit ]; then
		fail socket "$socket has ${#socket} bytes, more than $limit"
	else
		pass socket "$socket, ${#socket} of $limit bytes, $mode in $dirmode"
	fi

	LLXPRT_CREDENTIAL_SOCKET=$socket "$cp" key get check-key >"$work/out/get" 2>"$work/out/get.err" &
	client=$!
	wait $client
	got=$(cat "$work/out/get")
	record="\"uid\":$(id -u),\"pid\":$client"
	if [ "$got" != "$value" ]; then
		fail "peer identity" "the key did not come: $(first "$work/out/get.err")"
	elif await 60 grep -q "$record" "$CREDPROXY_HOME/state/audit.log"; then
		pass "peer identity" "the audit log has $record"
	else
		fail "peer identity" "$record is not in the audit log: $(tail -1 "$CREDPROXY_HOME/state/audit.log")"
	fi

	mkfifo "$work/paste"
	exec 4<>"$work/paste"
	LLXPRT_CREDENTIAL_SOCKET=$socket "$cp" auth login check --flow paste <"$work/paste" >"$work/out/lost" 2>"$work/out/lost.err" &
	client=$!
	await 60 grep -q https "$work/out/lost"
	kill -9 "$(cat "$work/serve.pid")"
	rm "$work/serve.pid"
	echo 'code#state' >&4
	await 60 gone $client || kill -9 $client
	wait $client
	status=$?
	exec 4>&-
	lost='Credential proxy connection lost. Restart the session.'
	if [ $status = 7 ] && grep -q "$lost" "$work/out/lost.err"; then
		pass "loss message" "$lost"
	else
		fail "loss message" "status $status: $(tail -1 "$work/out/lost.err")"
	fi
}

# The keyring

keyring() {
	if [ "$system" != Darwin ] && [ -z "${DBUS_SESSION_BUS_ADDRESS:-}" ]; then
		none keyring "there is no session bus, so credentials are in files"
		return
	fi
	mkdir "$work/keyring"
	echo 'store = "keyring"' >"$work/keyring/config.toml"
	name="credproxy-check-$$"
	if ! printf %s "$value" | CREDPROXY_HOME="$work/keyring" limited "$cp" key set "$name" >"$work/out/keyring" 2>&1; then
		fail keyring "set: $(first "$work/out/keyring")"
		return
	fi
	got=$(CREDPROXY_HOME="$work/keyring" limited "$cp" key get "$name" 2>"$work/out/keyring")
	raw=$value
	if [ "$system" = Darwin ]; then # as the original client and every other program reads it
		raw=$(security find-generic-password -a "$name" -w 2>>"$work/out/keyring")
	fi
	CREDPROXY_HOME="$work/keyring" limited "$cp" key remove "$name" >>"$work/out/keyring" 2>&1
	CREDPROXY_HOME="$work/keyring" limited "$cp" key get "$name" >/dev/null 2>&1
	status=$?
	if [ "$got" != "$value" ] || [ "$raw" != "$value" ]; then
		fail keyring "another value came back: $(first "$work/out/keyring")"
	elif [ $status != 3 ]; then
		fail keyring "the item is still there (status $status): $name"
	else
		pass keyring "an item was stored, read and removed"
	fi
}

# Sandboxes

# transports ENGINE: those that it has.
transports() {
	case $(sed -n "s/^ok *engine $1 .*transport \([a-z]*\)\$/\1/p" "$work/doctor") in
	tls) echo tls ;;
	unix) if [ "$1" = bwrap ]; then echo unix; else echo unix tls; fi ;;
	esac
}

# containers ENGINE PID: those of a run.
containers() { "$1" ps --all --format '{{.Names}}' | grep "^credproxy-$2-"; }

# leftovers ENGINE PID: what a run has left.
leftovers() {
	ls "$CREDPROXY_HOME/state/runs" | grep "^credproxy-$2-"
	ls "$dir" | grep -e "-$2-"
	if [ "$1" != bwrap ]; then containers "$1" "$2"; fi
}

engine() {
	engine=$1
	image=()
	if ! grep -q "^ok *engine $engine " "$work/doctor"; then
		why=$(sed -n "s/^[a-zA-Z]* *engine $engine *//p" "$work/doctor")
		if [ -n "$asked" ]; then fail "$engine" "$why"; else none "$engine" "$why"; fi
		return
	fi
	echo "$engine" >>"$work/works"
	if [ "$engine" != bwrap ]; then
		# An image with nothing in it: all that a sandbox needs of ours is mounted.
		mkdir -p "$work/empty.$engine/tmp"
		if ! (cd "$work/empty.$engine" && COPYFILE_DISABLE=1 tar -cf - tmp) | "$engine" import - "credproxy-check:$$" >"$work/out/import.$engine" 2>&1; then
			fail "$engine" "an image cannot be imported: $(tail -1 "$work/out/import.$engine")"
			return
		fi
		echo "$engine" >"$work/image.$engine"
		image=(--image "credproxy-check:$$")
	fi
	signal=TERM
	for transport in $(transports "$engine"); do
		sandboxed "$engine" "$transport" "$signal"
		signal=INT
	done
	if [ "$engine" = bwrap ]; then sandboxed bwrap unix INT; fi
}

# sandboxed ENGINE TRANSPORT SIGNAL
sandboxed() {
	about="$1 over $2"
	out=$work/out/$1.$2
	run=("$cp" run --engine "$1" --transport "$2" ${image[@]+"${image[@]}"} --no-workdir --)
	if [ "$3" = TERM ] || [ "$1" != bwrap ]; then
		limited "${run[@]}" credproxy key get check-key >"$out.get" 2>"$out.err" </dev/null
		status=$?
		if [ $status = 0 ] && [ "$(cat "$out.get")" = "$value" ]; then
			pass "$about" "a program inside got its key"
		else
			fail "$about" "status $status: $(first "$out.err")"
			return
		fi
	fi
	if [ "$3" = TERM ]; then
		limited "${run[@]}" credproxy key get check-other >"$out.get" 2>"$out.err" </dev/null
		status=$?
		if [ $status = 5 ]; then
			pass "$about, exit status" "5, of a command that was refused a key of another profile"
		else
			fail "$about, exit status" "$status, not 5: $(first "$out.err")"
		fi
	fi

	# A command that waits, and a signal for it.
	mkfifo "$out.fifo"
	exec 5<>"$out.fifo"
	usual "${run[@]}" credproxy auth login check --flow paste <"$out.fifo" >"$out.login" 2>"$out.err" &
	pid=$!
	if ! await 60 grep -q https "$out.login"; then
		fail "$about, SIG$3" "the command inside did not start: $(first "$out.err")"
		kill -9 $pid
		exec 5>&-
		return
	fi
	if [ "$1" != bwrap ]; then
		# shellcheck disable=SC2046
		"$1" inspect $(containers "$1" $pid) >"$out.inspect" 2>&1
		if grep -q "$value" "$out.inspect"; then
			fail "$about, secrets" "the key is in what $1 shows of the container"
		elif ! grep -q "LLXPRT_CREDENTIAL_SOCKET" "$out.inspect"; then
			fail "$about, secrets" "the container cannot be looked at: $(first "$out.inspect")"
		else
			pass "$about, secrets" "none in what $1 shows of the container"
		fi
	fi
	kill -"$3" $pid
	await 60 gone $pid || kill -9 $pid
	wait $pid 2>/dev/null
	status=$?
	exec 5>&-
	expected=143
	[ "$3" = INT ] && expected=130
	if [ $status = $expected ]; then
		pass "$about, SIG$3" "the command ended of it, exit status $status"
	else
		fail "$about, SIG$3" "exit status $status, not $expected: $(tail -1 "$out.err")"
	fi
	left=$(leftovers "$1" $pid)
	if [ -n "$left" ]; then # the engine's client was killed before it could say that it was done: the next run looks after that
		limited "${run[@]}" credproxy version >/dev/null 2>&1 </dev/null
		left=$(leftovers "$1" $pid)
	fi
	if [ -z "$left" ]; then
		pass "$about, afterwards" "no container, no record and no socket is left"
	else
		fail "$about, afterwards" "left: $(echo "$left" | tr '\n' ' ')"
	fi
}

# demo ENGINE: a real OAuth login, its token inside, its secrets not.
demo() {
	if limited "$cp" demo --engine "$1" >"$work/out/demo.$1" 2>&1 </dev/null; then
		pass "$1, token inside" "$(grep -c '^ok' "$work/out/demo.$1") steps of credproxy demo --engine $1"
	else
		fail "$1, token inside" "$(grep -A1 '^FAIL' "$work/out/demo.$1" | tr '\n' ' ')$(tail -1 "$work/out/demo.$1" | cut -c1-300)"
	fi
}

build
configure
serve
keyring
asked=
engines="docker podman bwrap"
if [ $# -gt 0 ]; then
	asked=yes
	engines=$*
fi
# They wait for their engines more than they work.
jobs=
for e in $engines; do
	(engine "$e") >"$work/out/lines.$e" 2>"$work/out/trouble.$e" &
	jobs="$jobs $!"
done
# On Linux one engine for the demo is enough here; `make test` has the others. In a virtual machine everything is different.
demos=
for e in $engines; do
	grep -q "^ok *engine $e " "$work/doctor" || continue
	if [ "$system" = Linux ]; then demos=$e; else demos="$demos $e"; fi
done
for e in $demos; do demo "$e"; done
for j in $jobs; do wait "$j"; done
for e in $engines; do cat "$work/out/lines.$e"; done
[ -f "$work/works" ] || fail engines "none works here"

if [ -f "$work/failed" ]; then
	echo "$(wc -l <"$work/failed" | tr -d ' ') failed"
	exit 1
fi
echo "nothing failed"
