"""What is looked for in an image before it is stored."""

from __future__ import annotations

import gzip
from types import SimpleNamespace

import pytest

from pytest_kvm.errors import ImageError
from pytest_kvm.images import checks

MODULE = b"\x7fELF rest"
VERSION = "6.12-cloud-amd64"


def cpio(files):
    """An archive as mktirfs writes it, for what the check reads of it."""
    archive = b""
    for name, content in [*files.items(), ("TRAILER!!!", b"")]:
        fields = [0, 0, 0, 0, 0, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        archive += b"\0" * (-len(archive) % 4) + content
        archive += b"\0" * (-len(archive) % 4)
    return gzip.compress(archive)


@pytest.fixture
def built(tmp_path):
    """What a build has made, all of it sound."""
    root = tmp_path / "root"
    modules = root / "lib/modules" / VERSION
    for name in ("cdrom", "isofs", "sr_mod", "virtio_net"):
        packed = modules / "kernel/drivers" / f"{name}.ko.xz"
        packed.parent.mkdir(parents=True, exist_ok=True)
        packed.write_bytes(b"\xfd7zXZ\x00 rest")
    (modules / "updates").mkdir()
    (modules / "updates/isofs.ko").write_bytes(MODULE)
    (modules / "modules.builtin").write_text("kernel/drivers/scsi/virtio_scsi.ko\nkernel/fs/ext4/ext4.ko\n")
    (modules / "modules.dep").write_text(
        "updates/isofs.ko: kernel/drivers/cdrom.ko.xz\n"
        "kernel/drivers/cdrom.ko.xz:\n"
        "kernel/drivers/sr_mod.ko.xz: kernel/drivers/cdrom.ko.xz\n"
        "kernel/drivers/virtio_net.ko.xz:\n"
    )
    (root / "boot").mkdir()
    for name in ("vmlinuz", "initrd.img"):
        (root / "boot" / f"{name}-{VERSION}").write_bytes(b"content")
        (root / name).symlink_to(f"boot/{name}-{VERSION}")
    datasource = root / checks.DATASOURCE
    datasource.parent.mkdir(parents=True)
    datasource.touch()
    (tmp_path / "kernel").write_bytes(MODULE)
    (tmp_path / "initrd").write_bytes(cpio({"virtio_blk.ko": MODULE}))
    return SimpleNamespace(root=root, modules=modules, kernel=tmp_path / "kernel", initrd=tmp_path / "initrd")


def check(built):
    checks.check(built.root, kernel=built.kernel, initrd=built.initrd, initrd_modules=("ext4", "virtio_blk"))


def test_a_sound_image_is_stored(built):
    check(built)


def test_a_packed_kernel_is_one_too(built):
    built.kernel.write_bytes(bytes(0x202) + b"HdrS rest")
    check(built)


def without(path, word):
    """Take the lines with a word out of a file."""
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if word not in line))


DAMAGES = {
    "the kernel is no kernel": lambda built: built.kernel.write_bytes(b""),
    "the initrd is empty": lambda built: built.initrd.write_bytes(b""),
    "the initrd is damaged": lambda built: built.initrd.write_bytes(built.initrd.read_bytes()[:-20]),
    "the initrd has no module virtio_blk": lambda built: built.initrd.write_bytes(cpio({"init": MODULE})),
    "the initrd on the disk is empty": lambda built: (built.root / "initrd.img").write_bytes(b""),
    "updates/isofs.ko is absent": lambda built: (built.modules / "updates/isofs.ko").write_bytes(b""),
    "updates/autofs4.ko is absent": lambda built: (built.modules / "updates/autofs4.ko").touch(),
    "cdrom.ko.xz is absent": lambda built: (built.modules / "kernel/drivers/cdrom.ko.xz").unlink(),
    "the kernel has no module sr_mod": lambda built: without(built.modules / "modules.dep", "sr_mod"),
    "no datasource NoCloud": lambda built: (built.root / checks.DATASOURCE).unlink(),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_what_is_damaged_is_named(built, said):
    DAMAGES[said](built)
    with pytest.raises(ImageError, match=said):
        check(built)


def test_all_of_it_is_named(built):
    DAMAGES["the kernel is no kernel"](built)
    DAMAGES["no datasource NoCloud"](built)
    with pytest.raises(ImageError) as failure:
        check(built)
    assert len(failure.value.details.splitlines()) == 2
