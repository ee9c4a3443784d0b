"""Whether a file system may be another host's, too."""

from __future__ import annotations

import os

import pytest

from pytest_kvm.host.mounts import is_shared


def line(folder, kind):
    device = folder.stat().st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"
    return f"36 35 {numbers} / /mnt\\040x rw,noatime shared:1 - {kind} server:/x rw\n"


@pytest.mark.parametrize(
    ("kind", "shared"),
    [
        ("nfs4", True),
        ("cifs", True),
        ("fuse.sshfs", True),
        ("virtiofs", True),
        ("ext4", False),
        ("overlay", False),
    ],
)
def test_the_type_of_the_file_system_says_it(tmp_path, kind, shared):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"22 1 0:99999 / / rw - nfs4 other:/ rw\n{line(tmp_path, kind)}")
    assert is_shared(tmp_path, mounts=mounts) == shared


def test_this_disk_is_not(tmp_path):
    assert not is_shared(tmp_path)
