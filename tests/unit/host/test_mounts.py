"""Whether a file system may be another host's, too."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from pytest_kvm.host.mounts import is_shared


@pytest.fixture
def mounted(monkeypatch):
    """Say what is mounted: places and types, in order."""

    def mounted(*mounts):
        found = [SimpleNamespace(mountpoint=str(place), fstype=kind) for place, kind in mounts]
        monkeypatch.setattr(psutil, "disk_partitions", lambda **_: found)

    return mounted


@pytest.mark.parametrize(
    ("kind", "shared"),
    [
        *(("nfs4", True), ("cifs", True), ("fuse.sshfs", True), ("virtiofs", True), ("of-tomorrow", True)),
        *(("ext4", False), ("overlay", False), ("btrfs", False)),
    ],
)
def test_the_type_of_the_file_system_says_it(tmp_path, mounted, kind, shared):
    other = "nfs4" if not shared else "ext4"
    mounted(("/", other), (tmp_path, kind), (tmp_path / "below", other), (f"{tmp_path}2", other))
    assert is_shared(tmp_path) == shared


def test_the_last_of_two_in_one_place_is_seen(tmp_path, mounted):
    mounted(("/", "ext4"), ("/", "nfs4"))
    assert is_shared(tmp_path)


def test_what_is_not_listed_may_be_shared(tmp_path, mounted):
    mounted(("/elsewhere", "ext4"))
    assert is_shared(tmp_path)


def test_a_link_is_followed(tmp_path, mounted):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    mounted(("/", "ext4"), (tmp_path / "far", "nfs4"))
    assert is_shared(tmp_path / "link")


def test_this_disk_is_not(tmp_path):
    assert not is_shared(tmp_path)
