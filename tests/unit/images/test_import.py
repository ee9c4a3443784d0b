from __future__ import annotations

import hashlib

import pytest

from pytest_kvm.errors import ChecksumMismatch, ImageError, SpecError
from pytest_kvm.host import command
from pytest_kvm.images import importing, qemu_img
from pytest_kvm.spec.image import ImageRef

_MIB = 1024**2


@pytest.fixture
def raw(tmp_path):
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"contents" + bytes(_MIB - 8))
    return disk


def test_a_raw_disk_becomes_a_qcow2_of_the_same_contents(store, raw, tmp_path):
    image = importing.take(store, str(raw), name="mine")
    assert qemu_img.info(image.disk).format == "qcow2"
    assert (image.virtual_size, image.kernel, image.built_from_packages) == (_MIB, None, False)
    command.run(["qemu-img", "convert", "-O", "raw", image.disk, tmp_path / "back"], timeout=30)
    assert (tmp_path / "back").read_bytes() == raw.read_bytes()
    assert store.resolve(ImageRef("mine")).manifest.source == str(raw)


def test_a_digest_is_checked(store, raw):
    digest = hashlib.sha256(raw.read_bytes()).hexdigest()
    assert importing.take(store, str(raw), name="mine", sha256=digest).name == "mine"
    with pytest.raises(ChecksumMismatch, match=digest):
        importing.take(store, str(raw), name="other", sha256="0" * 64)
    assert store.names() == ("mine",)


def test_a_disk_that_reads_another_file_is_refused(store, raw, tmp_path):
    overlay = tmp_path / "overlay.qcow2"
    qemu_img.create_overlay(overlay, backing=raw)
    with pytest.raises(ImageError, match=r"needs the file .*disk\.raw") as failure:
        importing.take(store, str(overlay), name="mine")
    assert "qemu-img convert" in failure.value.resolution


def test_a_disk_whose_data_are_in_another_file_is_refused(store, tmp_path):
    secret = tmp_path / "secret"
    option = f"data_file={secret},data_file_raw=on"
    command.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", option, tmp_path / "d", "1M"], timeout=30)
    with pytest.raises(ImageError, match="needs the file .*secret"):
        importing.take(store, str(tmp_path / "d"), name="mine")


@pytest.mark.parametrize("kind", ["vmdk", "vdi"])
def test_other_formats_are_refused_with_the_way_to_convert_them(store, tmp_path, kind):
    command.run(["qemu-img", "create", "-q", "-f", kind, tmp_path / "d", "1M"], timeout=30)
    with pytest.raises(ImageError, match=f"has the format {kind}") as failure:
        importing.take(store, str(tmp_path / "d"), name="mine")
    assert "qemu-img convert" in failure.value.resolution


def test_an_absent_file_is_named(store, tmp_path):
    with pytest.raises(ImageError, match="there is no file"):
        importing.take(store, str(tmp_path / "nothing"), name="mine")


def test_the_name_of_a_recipe_is_not_taken(store, raw):
    with pytest.raises(ImageError, match="built from packages"):
        importing.take(store, str(raw), name="debian-13")


def test_a_bad_name_is_refused_before_work_begins(store, raw):
    with pytest.raises(SpecError):
        importing.take(store, str(raw), name="../evil")


def test_an_overlay_reads_its_backing_file_and_never_writes_it(raw, tmp_path):
    before = raw.read_bytes()
    overlay = tmp_path / "overlay.qcow2"
    qemu_img.create_overlay(overlay, backing=raw, size=4 * _MIB)
    assert qemu_img.info(overlay).virtual_size == 4 * _MIB
    command.run(
        ["qemu-io", "-f", "qcow2", "-c", "read -P 0x63 0 1", "-c", "write -P 0x41 0 512", overlay], timeout=30
    )
    assert raw.read_bytes() == before


@pytest.mark.parametrize("disk_format", ["qcow2", "raw"])
def test_a_blank_disk_has_its_size_and_takes_no_room(tmp_path, disk_format):
    disk = tmp_path / "blank"
    qemu_img.create_blank(disk, size=1024 * _MIB, disk_format=disk_format)
    assert qemu_img.info(disk).virtual_size == 1024 * _MIB
    assert disk.stat().st_blocks * 512 < _MIB


def test_a_path_is_never_taken_for_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError):
        qemu_img.info(tmp_path / "nbd:unix:socket")
