#!/bin/bash
# Prepares the engines for the end-to-end tests: packages, a docker server, one that remaps users, a rootless one, a podman that
# works without systemd, an unprivileged user, and one tiny image for each. It can be run any number of times.
#
#   test/engines.sh [up]     make everything ready; prints NAME=value lines on stdout (for `eval`), progress on stderr
#   test/engines.sh down     stop the docker servers that `up` has started
#   test/engines.sh started  which of them run: process ids
#
# Needs root, or sudo without a password, for what is missing. Where neither is there it says what to install and fails.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
state=${CREDPROXY_TEST_ENGINES:-/tmp/credproxy-test-engines}
user=credproxy-test
image=credproxy-test:e2e

say() { echo "engines: $*" >&2; }
die() { say "$*"; exit 1; }

as_root=()
if [ "$(id -u)" != 0 ]; then
	if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then as_root=(sudo -n); else as_root=(false); fi
fi
root() { "${as_root[@]}" "$@"; }

# started prints the ids of the docker servers that `up` has started and that still run. A number may be another program's by now.
started() {
	local file pid
	for file in "$state/dockerd.pid" "$state/remapped/pid" "$state/rootless/pid"; do
		pid=$(cat "$file" 2>/dev/null) || continue
		[ "$(cat "/proc/$pid/comm" 2>/dev/null)" != dockerd ] || echo "$pid"
	done
}

case ${1:-up} in
up) ;;
started)
	started
	exit
	;;
down)
	pids=$(started)
	for pid in $pids; do root kill "$pid" || true; done
	for pid in $pids; do
		for _ in $(seq 150); do
			[ -d "/proc/$pid" ] || break
			sleep 0.1
		done
	done
	root rm -f "$state/dockerd.pid"
	exit
	;;
*) die "up, down or started" ;;
esac

# One at a time; the lock is not handed on to servers and to what podman leaves running.
if [ -z "${ENGINES_LOCKED:-}" ] && command -v flock >/dev/null && mkdir -p "$state" && chmod 755 "$state"; then
	ENGINES_LOCKED=yes exec flock --close "$state/lock" "$0" "$@"
fi

# Packages: the program to look for, and the Debian package that brings it.
missing=()
need() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null || missing+=("$2"); }
need docker docker.io
need dockerd docker.io
need podman podman
need runc runc
need bwrap bubblewrap
need newuidmap uidmap
need slirp4netns slirp4netns
need rootlesskit rootlesskit
need fuse-overlayfs fuse-overlayfs
need gnome-keyring-daemon gnome-keyring
need dbus-run-session dbus-daemon
need dbus-daemon dbus-daemon
need secret-tool libsecret-tools
need runuser util-linux
need script bsdutils
busybox=$(command -v busybox || true)
# ldd fails for what is not linked dynamically.
{ [ -n "$busybox" ] && ! ldd "$busybox" >/dev/null 2>&1; } || missing+=(busybox-static)
if [ ${#missing[@]} -gt 0 ]; then
	say "missing: ${missing[*]}"
	[ "${as_root[0]:-}" = false ] && die "run as root: apt-get install ${missing[*]}"
	command -v apt-get >/dev/null || die "no apt-get here: install what provides ${missing[*]}"
	root "$here/packages.sh" "${missing[@]}" >&2 || die "the packages cannot be installed"
	busybox=$(command -v busybox)
fi
PATH=$PATH:/usr/sbin:/sbin

mkdir -p "$state"
chmod 755 "$state"

# The image: busybox and nothing else, made without a registry.
if [ ! -f "$state/image.tar" ]; then
	rm -rf "$state/rootfs"
	mkdir -p "$state/rootfs/bin" "$state/rootfs/tmp" "$state/rootfs/etc"
	cp "$busybox" "$state/rootfs/bin/busybox"
	for applet in $("$busybox" --list); do
		[ "$applet" = busybox ] || ln -s busybox "$state/rootfs/bin/$applet"
	done
	chmod 1777 "$state/rootfs/tmp"
	tar -C "$state/rootfs" --numeric-owner --owner=0 --group=0 -cf "$state/image.tar.new" .
	mv "$state/image.tar.new" "$state/image.tar"
	rm -rf "$state/rootfs"
fi

# Docker: use the server that answers, else start one. version fails or says nothing without a server, whatever the client's age.
answers() { [ -n "$("$@" docker version --format '{{.Server.Version}}' 2>/dev/null || true)" ]; }

# await_server LOG COMMAND… waits for the server that COMMAND… docker reaches, and shows its log if it does not come.
await_server() {
	local log=$1
	shift
	for _ in $(seq 1200); do
		answers "$@" && return
		sleep 0.1
	done
	say "no answer from a server within two minutes; the end of $log:"
	root tail -n 20 "$log" >&2
	return 1
}
has_image() {
	"$@" docker image inspect "$image" >/dev/null 2>&1 || "$@" docker import "$state/image.tar" "$image" >/dev/null
}

# What the two servers beside the usual one have in common: nothing is theirs but what is below their directory, and they touch
# no network. Their containers have loopback only.
own_server() {
	local dir=$1
	shift
	echo '{}' >"$dir/daemon.json"
	echo dockerd "--config-file=$dir/daemon.json" "--host=unix://$dir/docker.sock" "--data-root=$dir/data" "--exec-root=$dir/exec" "--pidfile=$dir/pid" --bridge=none \
		--iptables=false --ip6tables=false --ip-forward=false --ip-masq=false --exec-opt native.cgroupdriver=cgroupfs "$@"
}

# The server that maps the users of containers to others (userns-remap): root inside is nobody on the host.
remapped() {
	local dir=$state/remapped
	if ! answers env DOCKER_HOST="unix://$dir/docker.sock"; then
		say "starting a dockerd that remaps users (log: $dir/log)"
		install -d -m 755 "$dir"
		rm -f "$dir/pid" "$dir/docker.sock"
		# shellcheck disable=SC2046 # words without spaces
		# In a network of its own: with --bridge=none a dockerd removes docker0, which is the usual server's.
		nohup setsid unshare --net $(own_server "$dir" "--userns-remap=$user") >"$dir/log" 2>&1 </dev/null &
		await_server "$dir/log" env DOCKER_HOST="unix://$dir/docker.sock" || return 1
	fi
	has_image env DOCKER_HOST="unix://$dir/docker.sock"
}

# The rootless server of the unprivileged user. As its containers have no network, it needs none of its own either.
rootless() {
	local dir=$state/rootless
	if ! answers env DOCKER_HOST="unix://$dir/docker.sock"; then
		say "starting a rootless dockerd (log: $dir/log)"
		install -d -m 755 -o "$user" -g "$(id -g "$user")" "$dir"
		rm -rf "$dir/pid" "$dir/docker.sock" "$dir/rootlesskit"
		# In the copy of /run that rootlesskit makes, docker's own directories are the machine's: links, which have to go.
		(cd / && exec nohup setsid "${as_user[@]}" XDG_RUNTIME_DIR="$dir" rootlesskit --state-dir="$dir/rootlesskit" \
			--net=host --copy-up=/etc --copy-up=/run --propagation=rslave \
			sh -c "rm -f /run/docker /run/containerd /run/xtables.lock; exec $(own_server "$dir" --rootless)") >"$dir/log" 2>&1 </dev/null &
		await_server "$dir/log" env DOCKER_HOST="unix://$dir/docker.sock" || return 1
	fi
	has_image env DOCKER_HOST="unix://$dir/docker.sock"
}

if ! answers env; then
	[ "${as_root[0]:-}" = false ] && die "no docker server answers: start it as root (systemctl start docker), and join the docker group"
	say "starting dockerd (log: $state/dockerd.log)"
	root sh -c 'nohup setsid dockerd >"$1/dockerd.log" 2>&1 </dev/null & echo $! >"$1/dockerd.pid"' sh "$state"
	docker_starts=yes
fi

# The unprivileged user, for rootless engines and for everything else that must not need root.
servers=()
if [ "$(id -u)" = 0 ]; then
	id "$user" >/dev/null 2>&1 || useradd --create-home --shell /bin/sh "$user"
	grep -q "^$user:" /etc/subuid || usermod --add-subuids 100000-165535 "$user"
	grep -q "^$user:" /etc/subgid || usermod --add-subgids 100000-165535 "$user"
	# Podman of root takes its --userns=auto from the range of a user of this name, which need not be there.
	for ids in /etc/subuid /etc/subgid; do
		grep -q "^containers:" "$ids" || echo containers:2147483647:2147483648 >>"$ids"
	done
	# As udev has it; slirp4netns needs it.
	[ -c /dev/net/tun ] || { mkdir -p /dev/net && mknod /dev/net/tun c 10 200; } || say "no /dev/net/tun: rootless podman will have no network"
	[ ! -c /dev/net/tun ] || chmod 666 /dev/net/tun
	home=$(getent passwd "$user" | cut -d: -f6)
	runtime=$state/runtime-$user
	install -d -m 700 -o "$user" -g "$(id -g "$user")" "$runtime"
	as_user=(runuser -u "$user" -- env -i PATH="$PATH" HOME="$home" USER="$user" LOGNAME="$user"
		XDG_RUNTIME_DIR="$runtime" CONTAINERS_CONF="$state/containers.conf")
	as_user() { (cd / && "${as_user[@]}" "$@"); }
	remapped & servers+=($!)
	rootless & servers+=($!)
fi

# Podman as it works in a container or a virtual machine without systemd.
conf=$state/containers.conf
cat >"$conf.new" <<'CONF'
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
CONF
mv "$conf.new" "$conf"
chmod 644 "$conf"
export CONTAINERS_CONF=$conf
podman image inspect "$image" >/dev/null 2>&1 || podman import -q "$state/image.tar" "$image" >/dev/null

if [ "$(id -u)" = 0 ]; then
	as_user podman image inspect "$image" >/dev/null 2>&1 || as_user podman import -q "$state/image.tar" "$image" >/dev/null 2>&1 ||
		die "rootless podman does not work: $(as_user podman info 2>&1 | tail -1)"
	echo "CREDPROXY_TEST_USER=$user"
	echo "CREDPROXY_TEST_USER_RUNTIME=$runtime"
	for server in "${servers[@]}"; do
		wait "$server" || die "a docker server does not run here; its log is above"
	done
	echo "CREDPROXY_TEST_DOCKER_REMAPPED=unix://$state/remapped/docker.sock"
	echo "CREDPROXY_TEST_DOCKER_ROOTLESS=unix://$state/rootless/docker.sock"
fi
[ -z "${docker_starts:-}" ] || await_server "$state/dockerd.log" env || die "dockerd does not answer"
has_image env || die "docker cannot import an image"
echo "CREDPROXY_TEST_IMAGE=$image"
echo "CONTAINERS_CONF=$conf"
say "ready: $(docker info --format 'docker {{.ServerVersion}}'), $(podman --version), $(bwrap --version)"
