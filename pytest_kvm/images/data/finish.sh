#!/bin/sh
# Last step of mmdebstrap (customize hook): turn a root filesystem into a guest's.
#   $1                the root filesystem
#   $PKVM_LEAN        1 for a lean image, 0 for Debian's own defaults
#   $PKVM_UUID        UUID the root file system will have
#   $PKVM_NOT_WANTED  wants to drop, $PKVM_MASKED units, $PKVM_MASKED_GENERATORS
#                     generators to mask; each separated by blanks
#   $PKVM_MODULES     modules of the initrd for direct boot
#   $PKVM_PLAIN_MODULES  modules to have uncompressed beside the packaged ones
#   $PKVM_UNPACK_MODULES the program that unpacks them
#   $PKVM_CLOUD_CONFIG   cloud-init's configuration
set -eu
root=$1
units=$root/etc/systemd/system

echo debian >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"
ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
chroot "$root" systemctl --quiet enable systemd-networkd.service ssh.service
chroot "$root" passwd --quiet --lock root
# Whoever looks for sshd's banner while a guest boots is not an attacker; since
# 9.8 sshd would shut the door on the only client there is.
chroot "$root" test -x /usr/sbin/sshd
if chroot "$root" sshd -G -o PerSourcePenalties=no >/dev/null 2>&1; then
    echo 'PerSourcePenalties no' >"$root/etc/ssh/sshd_config.d/11-pytest-kvm.conf"
fi
mkdir -p "$root/boot/grub"

if [ "$PKVM_LEAN" = 1 ]; then
    # The kernel mounts the root read-write and its superblock says what to do
    # on errors: nothing is left for fsck and remount in front of everything.
    echo '# / is mounted by the kernel: see /proc/cmdline' >"$root/etc/fstab"
    for want in $PKVM_NOT_WANTED; do
        mkdir -p "$units/${want%/*}"
        ln -sf /dev/null "$units/$want"
    done
    for unit in $PKVM_MASKED; do
        ln -sf /dev/null "$units/$unit"
    done
    mkdir -p "$root/etc/systemd/system-generators" "$units/multi-user.target.wants"
    for generator in $PKVM_MASKED_GENERATORS; do
        ln -sf /dev/null "$root/etc/systemd/system-generators/$generator"
    done
    ln -sf /lib/systemd/system/cloud-init.target "$units/multi-user.target.wants/cloud-init.target"
    chroot "$root" systemctl --quiet enable pytest-kvm-coldplug.service pytest-kvm-grow.service
    chroot "$root" install -d -o systemd-network -g systemd-network /var/lib/systemd/network
    # pam_motd(8) runs these at every login, and nobody reads what they print:
    # three programs fewer are a fifth of a translated guest's login.
    rm -rf "$root/etc/update-motd.d"
    if [ ! -e "$root/etc/cloud/cloud.cfg.distrib" ]; then
        # Diverted, so that an upgrade of cloud-init asks nobody about them.
        for file in /etc/cloud/cloud.cfg /etc/cloud/cloud.cfg.d/05_logging.cfg; do
            chroot "$root" dpkg-divert --quiet --local --rename --divert "$file.distrib" --add "$file"
        done
        install -m 0644 "$PKVM_CLOUD_CONFIG" "$root/etc/cloud/cloud.cfg"
    fi
    kernel=$(readlink "$root/vmlinuz")
    version=${kernel#*vmlinuz-}
    # shellcheck disable=SC2086 # a list of module names
    chroot "$root" python3 - "$version" $PKVM_PLAIN_MODULES <"$PKVM_UNPACK_MODULES"
    chroot "$root" depmod "$version"
    chroot "$root" mktirfs --include-modules="$PKVM_MODULES" -o /boot/initrd.direct "$version"
    chroot "$root" journalctl --update-catalog
    touch "$root/etc/.updated" "$root/var/.updated"
else
    echo "UUID=$PKVM_UUID / ext4 defaults,errors=remount-ro 0 1" >"$root/etc/fstab"
fi

# Identity and traces of the build: every guest makes its own.
rm -f "$root"/etc/ssh/ssh_host_*_key* "$root/var/lib/systemd/random-seed" \
    "$root/var/lib/dbus/machine-id" "$root"/root/.bash_history
: >"$root/etc/machine-id"
find "$root/var/log" -type f -delete
# Not /tmp: mmdebstrap keeps its own configuration there, and empties it later.
rm -rf "$root"/var/lib/cloud/* "$root"/var/cache/ldconfig/*
