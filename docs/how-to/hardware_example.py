"""Extra disks and network cards, and what the hook did to the domain."""

from __future__ import annotations

import pytest_kvm as kvm


def test_a_disk_is_found_by_its_serial(server: kvm.Guest) -> None:
    server.run("mkfs.ext4 -q /dev/disk/by-id/virtio-scratch")
    server.run("mount /dev/disk/by-id/virtio-scratch /mnt && df /mnt && umount /mnt")
    sizes = server.run("lsblk -dnb -o SERIAL,SIZE | sort").stdout.split()
    assert sizes[sizes.index("scratch") + 1] == str(1024**3)
    assert sizes[sizes.index("small") + 1] == str(64 * 1024**2)


def test_a_card_is_found_by_its_address(server: kvm.Guest) -> None:
    card = server.run("ip -o link | grep -i 52:54:00:00:00:77").stdout.split()[1].rstrip(":")
    server.wait_until(["ip", "-4", "route", "show", "dev", card, "10.0.3.0/24"])


def test_a_cable_that_is_not_plugged_in(server: kvm.Guest) -> None:
    server.run("for card in /sys/class/net/e*; do ip link set ${card##*/} up; done")
    server.wait_until("ip -o link | grep 52:54:00:00:00:78 | grep NO-CARRIER")


def test_the_hook_changed_the_domain(server: kvm.Guest) -> None:
    assert "<title>a guest of the documentation</title>" in server.domain_xml
