#!/bin/sh
# Customize hook of mmdebstrap for a derived image: install further packages.
#   $1              the root filesystem, unpacked from the base image
#   $PKVM_PACKAGES  what to install, separated by blanks
#   $PKVM_FINISH    the script that finishes a root filesystem
set -eu
root=$1

# The guest's own resolv.conf points at a resolver that does not run here.
rm -f "$root/etc/resolv.conf"
cp /etc/resolv.conf "$root/etc/resolv.conf"
# shellcheck disable=SC2086 # a list of package names, checked by the caller
chroot "$root" env DEBIAN_FRONTEND=noninteractive apt-get -y \
    -o Dpkg::Options::=--force-unsafe-io install $PKVM_PACKAGES
chroot "$root" apt-get clean
rm -rf "$root"/var/lib/apt/lists/*
exec sh "$PKVM_FINISH" "$root"
