"""The folder of artifacts: what is replaced, what is numbered, what is rotated, and what is left alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pytest_kvm.host import folder_marker
from pytest_kvm.host.artifact_store import ArtifactStore, hold

TEST = Path("tests/test_it.py/test_it[a]")
MIB = 1024**2


@pytest.fixture
def root(tmp_path):
    return tmp_path / "kvm-artifacts"


@pytest.fixture
def store(root):
    """Return the store of a process, which lives until the end of the test."""
    stores = []

    def store(run="one", *, place=root, limit=MIB):
        stores.append(ArtifactStore(place, limit=limit, run=run))
        return stores[-1]

    yield store
    for each in stores:
        each.close()


@pytest.fixture
def left(store):
    """Have a run make folders, and end; return them."""

    def left(*tests, run="one"):
        process = store(run)
        folders = [process.new_folder(Path(test)) for test in tests]
        process.close()
        return folders

    return left


def test_a_test_has_a_private_folder_and_a_link_to_it(store, root):
    folder = store().new_folder(TEST)
    assert folder == root / TEST
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder_marker.is_ours(folder)
    assert (root / "last").readlink() == TEST
    store().describe(folder, {"test": "test_it"})
    assert json.loads((folder / "about.json").read_text()) == {"test": "test_it"}


def test_each_failure_in_one_run_has_its_own(store, root):
    folders = [store().new_folder(TEST) for _ in range(3)]
    assert [folder.name for folder in folders] == ["test_it[a]", "test_it[a]~2", "test_it[a]~3"]
    assert (root / "last").readlink() == TEST.with_name("test_it[a]~3")


def test_what_a_former_run_has_left_of_the_test_is_replaced(store, left, root):
    others = left(*(TEST.with_name(name) for name in ("test_it[b]", "test_it[a]b", "test_ita~2")))
    for each in left(TEST, TEST, TEST):
        (each / "web").mkdir()
    folder = store("two").new_folder(TEST)
    assert folder == root / TEST
    assert not (folder / "web").exists()
    assert set(folder.parent.iterdir()) == {folder, *others}


def test_what_another_process_is_at_work_on_stays(store, root):
    busy = store("one").new_folder(TEST)
    (busy / "console.log").write_bytes(bytes(64 * 1024))
    folder = store("two", limit=0).new_folder(TEST)
    assert busy.exists()
    assert folder == root / TEST.with_name("test_it[a]~2")


def test_a_folder_of_the_users_gets_one_of_ours(store, tmp_path):
    (place := tmp_path / "there").mkdir()
    (place / "notes.txt").write_text("the user's")
    (place / "last").symlink_to("notes.txt")
    folder_marker.make(place / "run", kind="run", run="other")
    folder = store(place=place, limit=0).new_folder(TEST)
    assert folder == place / "kvm-artifacts" / TEST
    assert {each.name for each in place.iterdir()} == {"notes.txt", "last", "run", "kvm-artifacts"}
    assert (place / "last").readlink() == Path("notes.txt")


def test_tests_in_a_folder_of_the_links_name_have_another(store, root):
    store().new_folder(TEST)
    assert store().new_folder(Path("last/test_it.py/test_it")) == root / "last-/test_it.py/test_it"
    assert (root / "last").is_symlink()


def test_an_empty_folder_is_taken(store, root):
    root.mkdir()
    assert store().new_folder(TEST) == root / TEST


def test_what_others_put_among_ours_is_left_alone(store, left, root):
    (mine,) = left(TEST)
    folder_marker.make(root / "run", kind="run", run="other")
    folder_marker.make(mine.parent / "test_it[a]~7", kind="run", run="other")
    (root / "notes.txt").write_text("the user's")
    store("two", limit=0).new_folder(TEST)
    assert (root / "run").exists()
    assert (mine.parent / "test_it[a]~7").exists()
    assert (root / "notes.txt").exists()


def test_somebody_elses_folder_in_both_places_is_an_error(store, root):
    for folder in (root, root / "kvm-artifacts"):
        folder.mkdir()
        (folder / "notes.txt").write_text("the user's")
    with pytest.raises(FileExistsError, match="kvm-artifacts was made by somebody else"):
        store().new_folder(TEST)


def test_the_oldest_go_if_all_take_up_too_much(store, left, root):
    folders = left(*(f"test_{number}.py/test_it" for number in range(4)))
    for number, folder in enumerate(folders):
        (folder / "console.log").write_bytes(bytes(64 * 1024))
        os.utime(folder / folder_marker.MARKER, (number, number))
    newest = store(limit=150 * 1024).new_folder(Path("test_4.py/test_it"))
    assert [folder.exists() for folder in [*folders, newest]] == [False, False, True, True, True]
    assert not folders[0].parent.exists()


def test_a_file_system_without_links_costs_the_link_only(store, root, monkeypatch):
    def refuses(self, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuses)
    assert store().new_folder(TEST) == root / TEST
    assert not (root / "last").exists()


def test_a_folder_that_cannot_be_made_is_an_error(root, store):
    root.write_text("no folder")
    with pytest.raises(OSError, match="Not a directory"):
        store().new_folder(TEST)


def test_a_folder_that_is_held_is_not_removed(store, left, root):
    (kept,) = left(str(TEST))
    (kept / "web/frozen").mkdir(parents=True)
    (kept / "web/frozen/disk0").write_bytes(bytes(64 * 1024))
    held = hold(root / "last/web/frozen")
    assert held is not None
    store(limit=1024).new_folder(Path("test_1.py/test_it"))
    assert (kept / "web/frozen/disk0").exists()
    held.release()
    store(limit=1024).new_folder(Path("test_2.py/test_it"))
    assert not kept.exists()


def test_a_folder_elsewhere_needs_no_hold(tmp_path):
    assert hold(tmp_path) is None
