#!/usr/bin/env bash
# A sandbox for `make demo`: says nothing when one works, else installs bubblewrap with the package manager.
set -euo pipefail

works() { bwrap --ro-bind / / --unshare-user --unshare-pid true 2>/dev/null; }
works && exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
	if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
		as_root=(sudo)
	else
		echo "engine-for-demo: no sandbox works here; as root, install one: apt-get install bubblewrap" >&2
		exit 1
	fi
fi
if ! command -v bwrap >/dev/null; then
	echo "engine-for-demo: installing bubblewrap" >&2
	if command -v apt-get >/dev/null; then
		# The lists of packages may be old, or not there at all.
		"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq bubblewrap >&2 ||
			{ "${as_root[@]}" apt-get update -qq >&2 && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq bubblewrap >&2; }
	elif command -v dnf >/dev/null; then
		"${as_root[@]}" dnf install -y -q bubblewrap >&2
	elif command -v pacman >/dev/null; then
		"${as_root[@]}" pacman -S --noconfirm bubblewrap >&2
	elif command -v apk >/dev/null; then
		"${as_root[@]}" apk add -q bubblewrap >&2
	elif command -v zypper >/dev/null; then
		"${as_root[@]}" zypper -q install -y bubblewrap >&2
	else
		echo "engine-for-demo: no package manager that is known here: install bubblewrap by hand" >&2
		exit 1
	fi
fi
works || {
	echo "engine-for-demo: bubblewrap is installed and does not work: $(bwrap --ro-bind / / --unshare-user --unshare-pid true 2>&1 | head -1)" >&2
	echo "engine-for-demo: unprivileged user namespaces may be switched off (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)" >&2
	exit 1
}
