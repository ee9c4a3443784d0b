from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pytest_kvm.errors import HostError
from pytest_kvm.host.usable_folder import make_writable


def make(folder):
    make_writable(folder, what="the cache", flag="--kvm-cache-dir")


def test_it_is_made_with_those_around_it(tmp_path):
    folder = tmp_path / "a" / "b"
    make(folder)
    make(folder)
    assert folder.is_dir()


def test_a_file_in_its_place_or_above_it_is_told(tmp_path):
    (file := tmp_path / "file").touch()
    with pytest.raises(HostError, match=f"the cache {file} cannot be made: File exists"):
        make(file)
    with pytest.raises(HostError, match="cannot be made: Not a directory") as failure:
        make(file / "below")
    assert failure.value.resolution == "choose another with --kvm-cache-dir"


def test_a_full_disk_is_left_to_the_caller(monkeypatch):
    """Who knows what was to be written says it better."""
    monkeypatch.setattr(Path, "mkdir", _find_no_room)
    with pytest.raises(OSError, match="No space left"):
        make(Path("/cache"))


def _find_no_room(path, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def test_one_of_somebody_else_is_told(tmp_path, monkeypatch):
    """Root may write everywhere, so the kernel's answer is made up."""
    monkeypatch.setattr(os, "access", lambda _path, asked: asked == os.F_OK)
    with pytest.raises(HostError, match=f"the cache {tmp_path} cannot be written to: permission denied"):
        make(tmp_path)
