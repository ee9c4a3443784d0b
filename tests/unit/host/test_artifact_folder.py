"""A folder of files that explain a failure: what cannot be written is noted."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from pytest_kvm.errors import NoCapacity
from pytest_kvm.host.artifact_folder import MISSING, ArtifactFolder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "test").mkdir(mode=0o700)
    return ArtifactFolder(tmp_path / "test" / "web")


def test_files_are_for_their_owner_alone(folder):
    folder.write("a.txt", "text \udcff")
    folder.write("b.png", b"\x89PNG")
    assert (folder.path / "a.txt").read_text() == "text ?"
    assert (folder.path / "b.png").read_bytes() == b"\x89PNG"
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert {each.stat().st_mode & 0o777 for each in folder.path.iterdir()} == {0o600}
    assert folder.files == ["a.txt", "b.png"]


def test_nothing_is_written_without_content(folder):
    folder.write("a.txt", "")
    folder.finish()
    assert not folder.path.exists()
    assert (folder.files, folder.missing) == ([], [])


def test_of_what_is_too_long_the_end_is_kept(folder):
    folder.write("a.txt", "0123456789", limit=4)
    folder.finish()
    assert (folder.path / "a.txt").read_text() == "6789"
    assert (folder.path / MISSING).read_text() == "a.txt: the last 4 of 10 bytes are kept\n"
    assert folder.files == ["a.txt", MISSING]


def test_what_cannot_be_written_is_noted(folder):
    folder.path.parent.rmdir()
    folder.write("a.txt", "text")
    folder.note("dmesg.txt", f"exit code 1:\nno\tsuch {'x' * 1000}")
    folder.finish()
    written, dmesg, missing = folder.missing
    assert written == "a.txt: is not written: No such file or directory"
    assert dmesg.startswith("dmesg.txt: exit code 1: no such xxx")
    assert len(dmesg) == 500
    assert missing == "missing.txt: is not written: No such file or directory"
    assert folder.files == []


def test_what_has_no_limit_is_kept_whole(folder):
    folder.write("core-1", bytes(5 * 1024**2), limit=None)
    assert (folder.path / "core-1").stat().st_size == 5 * 1024**2
    assert folder.missing == []


def test_a_link_is_not_followed(folder, tmp_path):
    folder.path.mkdir()
    (tmp_path / "other").write_text("other")
    (folder.path / "a.txt").symlink_to(tmp_path / "other")
    folder.write("a.txt", "text")
    assert (tmp_path / "other").read_text() == "other"
    assert folder.missing == ["a.txt: is not written: Too many levels of symbolic links"]


def test_files_that_belong_together(folder):
    folder.write_together("disks", lambda place: (place / "disk0").touch(mode=0o644))
    assert folder.files == ["disks/"]
    place = folder.path / "disks"
    assert [path.stat().st_mode & 0o777 for path in (folder.path, place, place / "disk0")] == [
        0o700, 0o700, 0o600
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "missing"),
    [
        (NoCapacity("no room"), ["disks: no room"]),
        (OSError("no room"), ["disks: no room"]),
        (ZeroDivisionError(), []),
    ],
)
def test_half_of_them_is_not_kept(folder, error, missing):
    def write(place):
        (place / "disk0").touch()
        raise error

    with pytest.raises(ZeroDivisionError) if not missing else nullcontext():
        folder.write_together("disks", write)
    assert list(folder.path.iterdir()) == []
    assert (folder.files, folder.missing) == ([], missing)


def test_a_folder_for_them_that_cannot_be_made(folder):
    folder.path.write_text("somebody's file")
    folder.write_together("disks", lambda place: (place / "disk0").touch())
    assert folder.files == []
    (missing,) = folder.missing
    assert missing.startswith("disks: [Errno 17] File exists")


def test_what_is_there_already_stays(folder):
    folder.write_together("disks", lambda place: (place / "disk0").write_text("first"))
    folder.write_together("disks", lambda place: (place / "disk0").write_text("second"))
    assert (folder.path / "disks/disk0").read_text() == "first"
    assert [path.name for path in folder.path.iterdir()] == ["disks"]
    assert folder.files == ["disks/"]
    assert "Directory not empty" in folder.missing[0]
