"""A run's folder: found, watched, removed; and nothing else in the folder that the user gave."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from pytest_kvm.errors import HostError
from pytest_kvm.host import folder_marker, locks, undo_notes, watcher
from pytest_kvm.host import run_folder as paths
from pytest_kvm.host.folder_marker import MARKER
from pytest_kvm.host.undo_notes import UndoNotes
from pytest_kvm.hypervisor import embed

RUN = secrets.token_hex(4)
"""The name of a run's folder; each test process has its own: who removes a run ends processes by its name."""


@pytest.fixture
def parent():
    """A folder with a path as short as sockets want it, and a file of somebody else in it."""
    with tempfile.TemporaryDirectory(prefix="kvm-", dir="/var/tmp") as folder:
        precious = Path(folder) / "precious"
        precious.mkdir()
        (precious / "file").write_text("kept")
        yield Path(folder)
        assert (precious / "file").read_text() == "kept"


@pytest.fixture
def runs(parent):
    runs = parent / paths.RUNS
    runs.mkdir(mode=0o700)
    return runs


def test_a_run_has_a_folder_below_one_of_its_own(parent):
    with paths.held_run_folder(parent) as folder:
        assert folder.parent == parent / "kvm-runs"
        assert folder_marker.is_ours(folder)
        assert paths.foreign_files(parent) == []
        assert paths.sweep(parent) == [], "it lives"
    assert [path.name for path in (parent / "kvm-runs").iterdir()] == ["guard"]
    assert {path.name for path in parent.iterdir()} == {"precious", "kvm-runs"}


@pytest.mark.parametrize("name", ["precious", "5ca1ab1e", "5CA1AB1E", "5ca1ab1", "5ca1ab1e0"])
def test_a_strangers_folder_among_the_runs_is_left_alone_and_named(parent, runs, name):
    (runs / name).mkdir()
    (runs / name / "file").write_text("kept")
    with paths.held_run_folder(parent):
        assert paths.foreign_files(parent) == [runs / name]
    assert (runs / name / "file").read_text() == "kept"
    assert [path.name for path in (runs / name).iterdir()] == ["file"], "no lock was made in it"


def test_a_strangers_file_and_link_are_left_alone_and_named(parent, runs):
    (runs / "notes.txt").write_text("kept")
    (runs / RUN).symlink_to(parent / "precious")
    with paths.held_run_folder(parent):
        assert paths.foreign_files(parent) == [runs / RUN, runs / "notes.txt"]
    assert (runs / "notes.txt").read_text() == "kept"
    assert (runs / RUN).is_symlink()


def test_a_link_in_the_place_of_the_runs_is_refused(parent):
    (parent / "precious").chmod(0o700)
    (parent / "kvm-runs").symlink_to("precious")
    with pytest.raises(HostError, match="not a folder that only you may enter"):
        paths.held_run_folder(parent).__enter__()
    assert paths.foreign_files(parent) == [parent / "kvm-runs"]
    assert [path.name for path in (parent / "precious").iterdir()] == ["file"]


def test_a_link_in_the_place_of_a_run_is_not_followed_when_the_run_ends(parent, capsys):
    with paths.held_run_folder(parent) as folder:
        folder.rename(parent / "aside")
        folder.symlink_to(parent / "precious")
    assert folder.is_symlink()
    assert [path.name for path in (parent / "precious").iterdir()] == ["file"]
    assert f"cannot remove {folder}: {folder} was not made by pytest-kvm" in capsys.readouterr().err


def make_anew(folder):
    """Do as libvirt, which makes folders for its sockets, and as a test that begins."""
    (folder / "v" / "run" / "qemu").mkdir(parents=True)
    (folder / "test.json").touch()


def test_a_run_whose_folder_somebody_removes_knows_it_and_leaves_nothing(parent):
    with paths.held_run_folder(parent) as folder:
        paths.check_is_there(folder)
        shutil.rmtree(folder)
        make_anew(folder)
        with pytest.raises(HostError, match=f"the folder of this run, {folder}, or a part of it is gone"):
            paths.check_is_there(folder)
    assert [path.name for path in (parent / "kvm-runs").iterdir()] == ["guard"]


def test_what_others_put_in_the_place_of_a_runs_folder_stays(parent, capsys):
    with paths.held_run_folder(parent) as folder:
        folder.rename(parent / "aside")
        make_anew(folder)
        (folder / "thesis").write_text("kept")
    assert (folder / "thesis").read_text() == "kept"
    assert f"cannot remove {folder}: {folder} was not made by pytest-kvm" in capsys.readouterr().err


def test_a_dead_run_is_swept(parent, runs):
    dead = runs / RUN
    folder_marker.make(dead)
    (dead / "console.log").touch()
    assert paths.foreign_files(parent) == []
    assert paths.sweep(parent) == [dead]
    assert not dead.exists()


@pytest.mark.parametrize("has_marker", [True, False])
def test_a_run_that_was_killed_while_it_began_is_swept(parent, runs, has_marker):
    begun = runs / RUN
    begun.mkdir()
    if has_marker:
        (begun / MARKER).touch()
    assert paths.sweep(parent) == [begun]
    assert not begun.exists()


def test_nothing_is_swept_where_no_run_ever_was(parent):
    assert paths.sweep(parent) == []
    assert paths.foreign_files(parent) == []
    assert [path.name for path in parent.iterdir()] == ["precious"]


def test_a_process_of_a_strangers_folder_is_not_ended(parent, runs):
    """QEMU of somebody who keeps his machines among the runs."""
    (runs / RUN).mkdir()
    (runs / RUN / "disk").touch()
    argv = ["qemu-of-somebody", "-c", "import time; print(flush=True); time.sleep(60)"]
    argv.append(f"{runs}/{RUN}/disk")
    with subprocess.Popen(argv, executable=sys.executable, stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()  # Popen returns before the kernel shows the command line
            assert watcher.processes_of(runs / RUN) == [process.pid]
            with paths.held_run_folder(parent):
                pass
            assert process.poll() is None
        finally:
            process.kill()


def test_the_watcher_removes_a_run_and_nothing_that_took_its_place(parent, runs):
    folder_marker.make(runs / RUN)
    (runs / "0ddba110").mkdir()
    (runs / "0ddba110" / "file").write_text("kept")
    (runs / "decade00").symlink_to(parent / "precious")
    make_anew(runs / "ba5eba11")
    for name in (RUN, "0ddba110", "decade00", "ba5eba11"):
        arguments = [str(Path(watcher.__file__).parents[2]), str(runs / name), str(_dead_pid())]
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", watcher.BOOTSTRAP, *arguments],
            stdin=subprocess.PIPE,
            capture_output=True,
            text=True,
            check=True,
        )
        assert ("was not made by pytest-kvm" in done.stderr) == (name in ("0ddba110", "decade00"))
    assert {path.name for path in runs.iterdir()} == {"0ddba110", "decade00"}
    assert (runs / "0ddba110/file").read_text() == "kept"


@pytest.fixture
def undoing(monkeypatch):
    monkeypatch.setitem(undo_notes._PROGRAMS, "network", "tests.unit.host.undo_program")


@pytest.mark.usefixtures("undoing")
def test_the_notes_of_a_dead_run_stay_until_what_it_made_is_undone(parent, runs, capsys):
    dead, made = runs / RUN, parent / "made"
    folder_marker.make(dead)
    (dead / "console.log").touch()
    UndoNotes(dead).add("network", "remove", str(made))
    assert paths.sweep(parent) == []
    assert sorted(path.name for path in dead.iterdir()) == [undo_notes.FOLDER, MARKER]
    assert "is not undone, and a later run will try again" in capsys.readouterr().err
    assert paths.foreign_files(parent) == []
    made.touch()
    assert paths.sweep(parent) == [dead]
    assert not dead.exists()
    assert not made.exists()


@pytest.mark.usefixtures("undoing")
def test_notes_in_a_strangers_folder_are_not_carried_out(parent, runs):
    stranger, made = runs / RUN, parent / "made"
    stranger.mkdir()
    made.touch()
    UndoNotes(stranger).add("network", "remove", str(made))
    watcher.remove_run(stranger)
    assert made.exists()
    assert stranger.exists()


@pytest.mark.usefixtures("undoing")
def test_others_can_begin_while_a_dead_run_is_undone(parent, runs, monkeypatch):
    dead = runs / RUN
    folder_marker.make(dead)
    seen: list[bool] = []

    def carry_out(folder):
        guard = os.open(runs / "guard", os.O_RDWR)
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(guard)
        seen.append(locks.try_exclusive(folder / MARKER) is None)
        return True

    monkeypatch.setattr(undo_notes, "carry_out", carry_out)
    assert paths.sweep(parent) == [dead]
    assert seen == [True], "and no other sweep takes the same folder"


def _dead_pid() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_others_may_enter_is_refused(parent, mode):
    parent.chmod(mode)
    with pytest.raises(HostError, match="not a folder that only you may enter"):
        paths.held_run_folder(parent).__enter__()
    parent.chmod(0o700)


def test_a_file_in_the_place_of_the_parent_is_refused(parent):
    (parent / "file").touch()
    with pytest.raises(HostError, match="not a folder that only you may enter"):
        paths.held_run_folder(parent / "file").__enter__()


def test_the_longest_path_is_what_sockets_allow(tmp_path):
    with pytest.raises(HostError, match="more than 32 bytes"):
        paths.held_run_folder(Path("/" + "x" * 32)).__enter__()
    longest = Path("/" + "x" * 31, paths.RUNS, RUN, "v", embed._LONGEST_SOCKET)
    assert len(os.fsencode(longest)) == embed._SOCKET_PATH_MAX


def test_a_watcher_that_was_stopped_holds_nobody_up(parent, monkeypatch):
    monkeypatch.setattr(paths, "_FAREWELL_WITHIN", 0.2)
    with paths.held_run_folder(parent) as folder:
        children = [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]
        (watching,) = (each for each in children if str(folder) in each.cmdline())
        watching.suspend()
    assert not folder.exists()
    assert not watching.is_running()
