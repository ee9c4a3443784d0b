"""Copies of disks with the files below them, made by the real qemu-img."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pytest_kvm.errors import ImageError
from pytest_kvm.images.disk_layers import copy_all, copy_as_one, layers_of
from pytest_kvm.images.qemu_img import create_blank, create_overlay, info, point_at

SIZE = 1024**2
_CLUSTER = 64 * 1024


def write(disk: Path, place: int, text: str) -> None:
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -P {ord(text)} {place} 4k", disk], check=True)


def contents(disk: Path) -> bytes:
    """Return a disk's first byte of each cluster of 64 KiB."""
    raw = disk.with_suffix(".read")
    subprocess.run(["qemu-img", "convert", "-O", "raw", disk, raw], check=True)
    return raw.read_bytes()[::_CLUSTER][:4]


def snapshot(disk: Path, name: str) -> None:
    subprocess.run(["qemu-img", "snapshot", "-c", name, disk], check=True)


@pytest.fixture
def store(tmp_path):
    """A folder of blobs with an image in it."""
    image = tmp_path / "images/blobs" / ("a" * 64)
    image.parent.mkdir(parents=True)
    create_blank(image, size=SIZE)
    write(image, 0, "i")
    return image


@pytest.fixture
def clone(tmp_path, store):
    """A clone's disk, on a template's that names the image by a relative path."""
    template, disk = tmp_path / "template/root.qcow2", tmp_path / "a, clone: 1/root.qcow2"
    for path, below in ((template, store), (disk, template)):
        path.parent.mkdir()
        create_overlay(path, backing=below)
    write(template, _CLUSTER, "t")
    point_at(template, backing=Path("../images/blobs", store.name), backing_format="qcow2")
    snapshot(disk, "before")
    write(disk, 2 * _CLUSTER, "c")
    return disk


@pytest.fixture
def target(tmp_path):
    (tmp_path / "kept").mkdir()
    return tmp_path / "kept/disk0.qcow2"


def test_the_layers_of_a_clone(clone, store, tmp_path):
    layers = layers_of(clone, disk_format="qcow2")
    assert layers.files == (clone, tmp_path / "template/root.qcow2")
    assert layers.formats == ("qcow2", "qcow2")
    assert layers.image == store
    assert layers.taken_mib == 0


def test_one_copy_needs_only_the_image(clone, store, target, tmp_path):
    clone.chmod(0o400)
    copy_as_one(layers_of(clone, disk_format="qcow2"), target)
    shutil.rmtree(tmp_path / "template")
    found = info(target)
    assert (found.backing_file, found.snapshots) == (str(store), ())
    assert contents(target) == b"itc\0"


def test_all_copies_name_each_other(clone, store, target, tmp_path):
    lower = target.with_name("disk0-below1.qcow2")
    copy_all(layers_of(clone, disk_format="qcow2"), [target, lower])
    shutil.rmtree(tmp_path / "template")
    assert (info(target).backing_file, info(target).snapshots) == (lower.name, ("before",))
    assert info(lower).backing_file == str(store)
    assert contents(target) == b"itc\0"
    subprocess.run(["qemu-img", "snapshot", "-a", "before", target], check=True)
    assert contents(target) == b"it\0\0"


def test_files_of_the_host_are_copied_with_the_disk(target, tmp_path):
    file, disk = tmp_path / "data.raw", tmp_path / "disk1"
    file.write_bytes(b"f" * SIZE)
    create_overlay(disk, backing=file)
    point_at(disk, backing=Path(file.name), backing_format="raw")
    file.chmod(0o400)
    write(disk, _CLUSTER, "d")
    layers = layers_of(disk, disk_format="qcow2")
    assert (layers.files, layers.formats, layers.image) == ((disk, file), ("qcow2", "raw"), None)
    copy_as_one(layers, target)
    assert info(target).backing_file is None
    assert contents(target) == b"fdff"
    both = [target.with_name("b.qcow2"), target.with_name("b.raw")]
    copy_all(layers, both)
    assert contents(both[0]) == b"fdff"


def test_disks_without_a_file_below(target, tmp_path):
    for name, disk_format in (("a", "qcow2"), ("b", "raw")):
        create_blank(tmp_path / name, size=SIZE, disk_format=disk_format)
        layers = layers_of(tmp_path / name, disk_format=disk_format)
        assert (layers.formats, layers.image) == ((disk_format,), None)
        copy_as_one(layers, target.with_name(name))
        assert info(target.with_name(name)).format == disk_format


def test_a_layer_that_is_gone(clone, tmp_path):
    shutil.rmtree(tmp_path / "template")
    with pytest.raises(ImageError, match="template/root.qcow2 is not a disk image"):
        layers_of(clone, disk_format="qcow2")


def test_what_a_guest_has_written_to_a_raw_disk_names_no_file_of_the_host(target, tmp_path):
    secret, disk = tmp_path / "secret", tmp_path / "disk"
    secret.write_text("of the host")
    create_overlay(disk, backing=secret, size=SIZE)
    layers = layers_of(disk, disk_format="raw")
    assert (layers.files, layers.formats) == ((disk,), ("raw",))
    copy_as_one(layers, target)
    assert target.read_bytes() == disk.read_bytes()


def test_a_raw_file_below_names_no_other_file_either(tmp_path):
    secret, file, disk = (tmp_path / name for name in ("secret", "file", "disk"))
    secret.write_text("of the host")
    create_overlay(file, backing=secret, size=SIZE)
    create_overlay(disk, backing=file)
    point_at(disk, backing=file, backing_format="raw")
    assert layers_of(disk, disk_format="qcow2").files == (disk, file)


def test_a_disk_that_is_below_itself(tmp_path):
    create_blank(tmp_path / "disk", size=SIZE)
    point_at(tmp_path / "disk", backing=tmp_path / "disk", backing_format="qcow2")
    with pytest.raises(ImageError, match="is below itself"):
        layers_of(tmp_path / "disk", disk_format="qcow2")


@pytest.mark.parametrize("options", [["-f", "vmdk"], ["-f", "qcow2", "-o", "data_file={}/data"]])
def test_disks_that_are_more_than_one_file(tmp_path, options):
    options = [each.format(tmp_path) for each in options]
    subprocess.run(["qemu-img", "create", "-q", *options, tmp_path / "file", "1M"], check=True)
    create_overlay(tmp_path / "disk", backing=tmp_path / "file")
    with pytest.raises(ImageError, match="file is not copied: only plain qcow2 and raw files are"):
        layers_of(tmp_path / "disk", disk_format="qcow2")
