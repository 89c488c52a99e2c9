#!/usr/bin/env bash
# For `make demo` where no sandbox engine works: installs bubblewrap with the package manager. The demo has said before what is wrong
# with each engine, and what to do; where there is no bubblewrap, that is left to you.
set -euo pipefail

[ "$(uname -s)" = Linux ] || exit 1

# Packages as the distributions call them. Lists of packages may be old, or not there at all.
if command -v apt-get >/dev/null; then
	install="apt-get install -y -qq -o DPkg::Lock::Timeout=120 bubblewrap ||
		{ apt-get update -qq; apt-get install -y -qq -o DPkg::Lock::Timeout=120 bubblewrap; }"
	by_hand="as root: apt-get install bubblewrap"
elif command -v dnf >/dev/null; then
	install="dnf install -y -q bubblewrap" by_hand="as root: dnf install bubblewrap"
elif command -v pacman >/dev/null; then
	install="pacman -S --noconfirm bubblewrap" by_hand="as root: pacman -S bubblewrap"
elif command -v apk >/dev/null; then
	install="apk add -q bubblewrap" by_hand="as root: apk add bubblewrap"
elif command -v zypper >/dev/null; then
	install="zypper -q install -y bubblewrap" by_hand="as root: zypper install bubblewrap"
else
	install="" by_hand="install bubblewrap with the package manager of this system"
fi

if ! command -v bwrap >/dev/null; then
	as_root=()
	if [ -n "$install" ] && [ "$(id -u)" != 0 ]; then
		if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
			as_root=(sudo)
		else
			install=""
		fi
	fi
	if [ -z "$install" ]; then
		echo "engine-for-demo: $by_hand; or start docker or podman" >&2
		exit 1
	fi
	echo "engine-for-demo: installing bubblewrap" >&2
	"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive sh -c "$install" >&2
fi
works() { bwrap --ro-bind / / --unshare-user --unshare-pid true; }
works 2>/dev/null || {
	echo "engine-for-demo: bubblewrap is installed and does not work: $(works 2>&1 | head -1)" >&2
	echo "engine-for-demo: unprivileged user namespaces may be switched off (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)" >&2
	exit 1
}
