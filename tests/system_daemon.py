"""A real libvirtd in namespaces of a test's own: it, its networks and its guests end with the test."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_kvm.host.accelerator import choose_accelerator
from pytest_kvm.plugin.session import settings_stashed

if TYPE_CHECKING:
    import pytest

STATE = ("/run/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt")
"""What a system daemon keeps; under a file system of the test's own nothing of it stays."""
_SYSTEM = """
set -e
type libvirtd virtlogd >/dev/null
for folder in {state}; do mkdir -p "$folder"; mount -t tmpfs tmpfs "$folder"; done
mkdir /var/lib/libvirt/dnsmasq /run/libvirt/cgroup
# Another network namespace has other devices in it.
mount --rbind /sys/fs/cgroup /run/libvirt/cgroup
mount -t sysfs sysfs /sys
mount --rbind /run/libvirt/cgroup /sys/fs/cgroup
ip link set lo up
{without_kvm}
virtlogd --pid-file /run/libvirt/virtlogd.pid >/run/libvirt/virtlogd.out 2>&1 &
libvirtd --pid-file /run/libvirt/libvirtd.pid >/run/libvirt/libvirtd.out 2>&1 &
until test -S /run/libvirt/libvirt-sock && test -S /run/libvirt/virtlogd-sock; do
    test "$(jobs -pr | wc -l)" = 2 || {{ cat /run/libvirt/*.out >&2; exit 1; }}
    sleep 0.1
done
{prepare}
"$@"; exit $?
"""
_WITHOUT_KVM = """
mkdir /run/libvirt/dev
mount --rbind /dev /run/libvirt/dev
mount -t tmpfs -o mode=755 tmpfs /dev
ln -s /proc/self/fd /dev/fd
for each in null zero full random urandom tty ptmx; do
    touch /dev/$each
    mount --bind /run/libvirt/dev/$each /dev/$each
done
for each in net pts shm; do
    mkdir -p /dev/$each
    if test -e /run/libvirt/dev/$each; then mount --rbind /run/libvirt/dev/$each /dev/$each; fi
done
"""
"""A daemon that sees a KVM which QEMU cannot use asks QEMU anew what it can before each
domain (``virQEMUCapsIsValid`` in ``src/qemu/qemu_capabilities.c``): half a minute each."""
NAMESPACES = ("unshare", "--pid", "--mount-proc", "--fork", "--kill-child")
"""Daemons end with the test. The shell in front is their init and reaps what they
leave behind: outside, this very process would be their reaper, and libvirt waits
long for a QEMU that is a zombie."""


def beside_a_daemon(argv: Sequence[str], *, kvm: bool, prepare: str = "") -> list[str]:
    """Return the command that runs another beside a system daemon.

    Args:
        argv: The other.
        kvm: Whether KVM works here.
        prepare: Shell commands that come before it, once the daemon is there.
    """
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    without_kvm = "" if kvm else _WITHOUT_KVM
    script = _SYSTEM.format(state=" ".join(STATE), prepare=prepare, without_kvm=without_kvm)
    shell = ["bash", "-c", script, "bash"]
    return [*NAMESPACES, *rights, "--net", *shell, *argv]


def has_kvm(config: pytest.Config) -> bool:
    """Say whether this run's guests are on KVM."""
    settings = settings_stashed(config)
    return choose_accelerator(settings.accel, cache_dir=settings.cache_dir).kind == "kvm"
