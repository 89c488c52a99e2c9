#!/bin/bash
# Installs Debian packages for the tests, as root: test/packages.sh PACKAGE…
# The lists of packages may be old or not there, the network may stumble, and another apt may be at work: it is tried for some minutes.
set -u

export DEBIAN_FRONTEND=noninteractive
apt() { apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120 "$@"; }

for pause in 5 15 30 60 0; do
	apt update # its failure matters only if the packages cannot be had
	apt install -y --no-install-recommends "$@" && exit
	sleep "$pause"
done
echo "packages: cannot be installed: $*" >&2
exit 1
