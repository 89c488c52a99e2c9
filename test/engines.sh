#!/bin/bash
# Prepares the engines for the end-to-end tests: packages, a docker server, a podman that works without systemd, an unprivileged
# user, and one tiny image for each. It can be run any number of times.
#
#   test/engines.sh [up]   make everything ready; prints NAME=value lines on stdout (for `eval`), progress on stderr
#   test/engines.sh down   stop the docker server if `up` has started it
#
# Needs root, or sudo without a password, for what is missing. Where neither is there it says what to install and fails.
set -euo pipefail

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

if [ "${1:-up}" = down ]; then
	if [ -f "$state/dockerd.pid" ]; then
		root kill "$(cat "$state/dockerd.pid")" 2>/dev/null || true
		root rm -f "$state/dockerd.pid"
	fi
	exit 0
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
need fuse-overlayfs fuse-overlayfs
need gnome-keyring-daemon gnome-keyring
need dbus-run-session dbus-daemon
need dbus-daemon dbus-daemon
need secret-tool libsecret-tools
need tini-static tini
need runuser util-linux
need script bsdutils
busybox=$(command -v busybox || true)
# ldd fails for what is not linked dynamically.
{ [ -n "$busybox" ] && ! ldd "$busybox" >/dev/null 2>&1; } || missing+=(busybox-static)
if [ ${#missing[@]} -gt 0 ]; then
	say "missing: ${missing[*]}"
	[ "${as_root[0]:-}" = false ] && die "run as root: apt-get install ${missing[*]}"
	command -v apt-get >/dev/null || die "no apt-get here: install what provides ${missing[*]}"
	root env DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2
	root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
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

# Docker: use the server that answers, else start one.
docker_answers() { [ -n "$(docker info --format '{{.ServerVersion}}' 2>/dev/null || true)" ]; }
if ! docker_answers; then
	[ "${as_root[0]:-}" = false ] && die "no docker server answers: start it as root (systemctl start docker), and join the docker group"
	say "starting dockerd (log: $state/dockerd.log)"
	root sh -c 'nohup setsid dockerd >"$1/dockerd.log" 2>&1 & echo $! >"$1/dockerd.pid"' sh "$state"
	for _ in $(seq 150); do
		docker_answers && break
		sleep 0.2
	done
	docker_answers || die "dockerd does not answer: $(tail -3 "$state/dockerd.log")"
fi
docker image inspect "$image" >/dev/null 2>&1 || docker import "$state/image.tar" "$image" >/dev/null

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

# The unprivileged user, for rootless podman and for everything else that must not need root.
if [ "$(id -u)" = 0 ]; then
	id "$user" >/dev/null 2>&1 || useradd --create-home --shell /bin/sh "$user"
	grep -q "^$user:" /etc/subuid || usermod --add-subuids 100000-165535 "$user"
	grep -q "^$user:" /etc/subgid || usermod --add-subgids 100000-165535 "$user"
	[ -c /dev/net/tun ] && chmod 666 /dev/net/tun # as udev has it; slirp4netns needs it
	home=$(getent passwd "$user" | cut -d: -f6)
	runtime=$state/runtime-$user
	install -d -m 700 -o "$user" -g "$(id -g "$user")" "$runtime"
	as_user() {
		(cd / && runuser -u "$user" -- env -i PATH="$PATH" HOME="$home" USER="$user" LOGNAME="$user" \
			XDG_RUNTIME_DIR="$runtime" CONTAINERS_CONF="$conf" "$@")
	}
	as_user podman image inspect "$image" >/dev/null 2>&1 || as_user podman import -q "$state/image.tar" "$image" >/dev/null 2>&1 ||
		die "rootless podman does not work: $(as_user podman info 2>&1 | tail -1)"
	echo "CREDPROXY_TEST_USER=$user"
	echo "CREDPROXY_TEST_USER_RUNTIME=$runtime"
fi
echo "CREDPROXY_TEST_IMAGE=$image"
echo "CONTAINERS_CONF=$conf"
say "ready: $(docker info --format 'docker {{.ServerVersion}}'), $(podman --version), $(bwrap --version)"
