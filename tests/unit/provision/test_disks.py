"""Copies of a template's disks show the same contents in another folder."""

from __future__ import annotations

import subprocess

import pytest_kvm as kvm
from pytest_kvm.images import qemu_img
from pytest_kvm.provision.disks import copies_of


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
