"""Asking a disk for room."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_kvm.errors import NoCapacity
from pytest_kvm.host import disk_space
from pytest_kvm.host.disk_space import check_room, full_disk_in_words, why_no_space
from pytest_kvm.host.resources import disk_free_mib

RESOLUTION = "make room"


def test_a_disk_that_has_room(tmp_path):
    assert why_no_space(tmp_path / "not" / "made", mib=1) == ""


def test_a_disk_without_room_says_how_much_there_is_and_how_much_is_needed(tmp_path):
    needed = 2 * disk_free_mib(tmp_path)
    said = why_no_space(tmp_path, mib=needed)
    assert said.startswith(f"{needed} MiB are needed in {tmp_path}, and ")
    assert said.endswith(" MiB are free")


@pytest.mark.parametrize(("files", "left", "is_full"), [(100, 3, True), (100, 90, False), (0, 0, False)])
def test_a_file_system_may_run_out_of_files_first(tmp_path, monkeypatch, files, left, is_full):
    found = SimpleNamespace(f_files=files, f_favail=left, f_bavail=1024, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    said = why_no_space(tmp_path, mib=1)
    assert ("has room for 3 more files" in said) == is_full


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_write_to_a_full_disk_says_what_was_to_be_done(tmp_path, code):
    failing = pytest.raises(NoCapacity, match=f"web: no room: {os.strerror(code)}")
    with failing as refused, full_disk_in_words(tmp_path, what="web: no room", resolution=RESOLUTION):
        raise OSError(code, os.strerror(code))
    assert refused.value.details.endswith(f" MiB are free for {tmp_path}")


def test_the_file_that_the_error_names_may_be_on_another_disk(tmp_path):
    failing = pytest.raises(NoCapacity)
    with failing as refused, full_disk_in_words(tmp_path, what="web: no room", resolution=RESOLUTION):
        raise OSError(errno.ENOSPC, "No space left on device", "/dev/shm/pytest-kvm/ram")
    assert refused.value.details.endswith(" MiB are free for /dev/shm/pytest-kvm/ram")


def test_other_errors_are_left_alone(tmp_path):
    with pytest.raises(FileNotFoundError), full_disk_in_words(tmp_path, what="", resolution=RESOLUTION):
        (tmp_path / "missing").read_bytes()


def test_what_folders_of_one_disk_need_adds_up(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(disk_space, "disk_free_mib", lambda _folder: 100)
    check_room([(tmp_path, 60), (tmp_path / "a", 40)], what="web is not frozen")
    with pytest.raises(NoCapacity, match="web is not frozen: 101 MiB are needed in .*/a, and 100 MiB are"):
        check_room([(tmp_path, 60), (tmp_path / "a", 41)], what="web is not frozen")


def test_other_disks_count_for_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_space, "disk_free_mib", lambda _folder: 100)
    check_room([(tmp_path, 60), (Path("/dev"), 60)], what="web is not frozen")
