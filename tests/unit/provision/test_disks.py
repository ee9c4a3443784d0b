"""Disks of a guest show what their image, template or host file holds."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import SpecError
from pytest_kvm.images import qemu_img
from pytest_kvm.provision.disks import copies_of, new_disks


def test_copies_keep_their_format_and_what_is_behind_them(tmp_path):
    template, copies = tmp_path / "template", tmp_path / "run" / "web"
    template.mkdir()
    copies.mkdir(parents=True)
    image, host_file, blank = template / "image.qcow2", tmp_path / "host.img", template / "disk2.raw"
    qemu_img.create_blank(image, size=1 << 20)
    host_file.write_bytes(b"on the host".ljust(1 << 20, b"\0"))
    blank.write_bytes(b"QFI\xfb looks like qcow2, and is raw".ljust(1 << 20, b"\0"))
    root, disk = template / "root.qcow2", template / "disk1"
    qemu_img.create_overlay(root, backing=image)
    qemu_img.point_at(root, backing=image.relative_to(template), backing_format="qcow2")
    link = tmp_path / "latest.img"
    link.symlink_to(host_file)
    qemu_img.create_overlay(disk, backing=link)

    spec = kvm.GuestSpec(disks=[kvm.Disk(file=link), kvm.Disk(size="1MiB", format="raw")])
    frozen = [(root, "qcow2"), (disk, "qcow2"), (blank, "raw")]
    plans = copies_of(spec, frozen, seed=template / "seed.iso", folder=copies)

    assert [(plan.path.name, plan.format) for plan in plans] == [
        ("root.qcow2", "qcow2"),
        ("disk1", "qcow2"),
        ("disk2.raw", "raw"),
        ("seed.iso", "raw"),
    ]
    # The path to the host's file stays what the spec says, also if that leads to another file one day.
    assert [qemu_img.info(plan.path).backing_file for plan in plans[:2]] == [str(image), str(link)]
    subprocess.run(["qemu-img", "compare", "-q", disk, copies / "disk1"], check=True)
    assert (copies / "disk2.raw").read_bytes() == blank.read_bytes()
    assert (copies / "disk2.raw").stat().st_blocks * 512 < 1 << 18


def test_a_disk_is_never_smaller_than_what_it_shows(tmp_path):
    disk, file, seed = tmp_path / "image.qcow2", tmp_path / "host.img", tmp_path / "seed.iso"
    qemu_img.create_blank(disk, size=2 << 20)
    file.write_bytes(bytes(3 << 20))
    image: Any = SimpleNamespace(disk=disk, virtual_size=2 << 20)

    def sizes(*, root_size, size):
        spec = kvm.GuestSpec(root_size=root_size, disks=[kvm.Disk(file=file, size=size)])
        *plans, _seed = new_disks(spec, image, seed=seed, folder=tmp_path)
        return [qemu_img.info(plan.path).virtual_size >> 20 for plan in plans]

    assert sizes(root_size="2MiB", size="3MiB") == [2, 3]
    assert sizes(root_size=None, size=None) == [2, 3]
    assert sizes(root_size="4MiB", size="5MiB") == [4, 5]
    with pytest.raises(SpecError, match=r"GuestSpec.root_size: '1MiB' is less than 2MiB, the size of what"):
        sizes(root_size="1MiB", size=None)
    with pytest.raises(SpecError, match=r"Disk.size: '2MiB' is less than 3MiB, the size of what") as caught:
        sizes(root_size=None, size="2MiB")
    assert "a disk can only grow" in caught.value.resolution
