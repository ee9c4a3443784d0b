"""Only a folder with a marker of its own is removed, whatever it is called."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest

from pytest_kvm.host import folder_marker
from pytest_kvm.host.folder_marker import MARKER


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "5ca1ab1e"
    folder_marker.make(folder)
    return folder


def test_the_marker_says_who_when_and_which_version(folder):
    said = json.loads((folder / MARKER).read_text())
    assert (said["made_by"], said["folder"], said["pid"]) == ("pytest-kvm", "5ca1ab1e", os.getpid())
    assert said["version"]
    assert said["time"].startswith("20")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / MARKER).stat().st_mode & 0o777 == 0o600


def test_a_folder_of_ours_goes_with_all_it_holds(folder, tmp_path):
    (folder / "below").mkdir()
    (folder / "below/file").touch()
    (folder / "dangling").symlink_to("nowhere")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    (folder / "link").symlink_to(precious)
    folder_marker.remove(folder)
    assert not folder.exists()
    assert (precious / "file").exists(), "what a link leads to is somebody else's"


def test_what_is_gone_already_is_no_error(folder):
    shutil.rmtree(folder)
    folder_marker.remove(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda marker: marker.unlink(),
        lambda marker: marker.write_text("no JSON"),
        lambda marker: marker.write_bytes(b"\xff\xfe"),
        lambda marker: marker.write_text("[]"),
        lambda marker: marker.write_text("{}"),
        lambda marker: marker.write_text(marker.read_text().replace("5ca1ab1e", "another")),
        lambda marker: marker.write_text(marker.read_text().replace("pytest-kvm", "another")),
    ],
)
def test_a_folder_without_a_marker_that_holds_is_left_alone(folder, damage):
    (folder / "file").touch()
    damage(folder / MARKER)
    assert not folder_marker.is_ours(folder)
    with pytest.raises(ValueError, match="was not made by pytest-kvm"):
        folder_marker.remove(folder)
    assert (folder / "file").exists()


def test_links_prove_nothing(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere" / folder.name
    elsewhere.parent.mkdir()
    elsewhere.symlink_to(folder)
    assert not folder_marker.is_ours(elsewhere)
    (folder / MARKER).rename(tmp_path / "aside")
    (folder / MARKER).symlink_to(tmp_path / "aside")
    assert not folder_marker.is_ours(folder)
    for path in (elsewhere, folder):
        with pytest.raises(ValueError, match="was not made by"):
            folder_marker.remove(path)


def test_a_marker_that_is_no_file_does_not_hang(folder):
    (folder / MARKER).unlink()
    os.mkfifo(folder / MARKER)
    assert not folder_marker.is_ours(folder)


def test_another_users_marker_is_not_ours(folder, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert not folder_marker.is_ours(folder)


@pytest.mark.parametrize("content", [{}, {MARKER: ""}, {f".{MARKER}.4711": '{"folder": "beg'}])
def test_an_empty_folder_holds_nothing_to_lose(tmp_path, content):
    folder = tmp_path / "begun"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    assert folder_marker.is_blank(folder)
    assert not folder_marker.is_ours(folder)
    folder_marker.remove(folder)
    assert not folder.exists()


def test_what_cannot_be_removed_keeps_its_marker_and_the_rest_goes(folder):
    for name in ("a", "stuck", "z"):
        (folder / name).touch()

    def discard(path):
        if path.name == "stuck":
            raise PermissionError(path)
        path.unlink()

    with pytest.raises(PermissionError, match="stuck"):
        folder_marker.remove(folder, discard)
    assert {path.name for path in folder.iterdir()} == {MARKER, "stuck"}
    folder_marker.remove(folder)
    assert not folder.exists()


def test_nothing_is_made_in_the_place_of_something(folder):
    with pytest.raises(FileExistsError):
        folder_marker.make(folder)


def test_a_full_disk_leaves_no_folder_without_a_marker(tmp_path, monkeypatch):
    def full(*_arguments, **_more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(OSError, match="No space"):
        folder_marker.make(tmp_path / "5ca1ab1e")
    assert list(tmp_path.iterdir()) == []
