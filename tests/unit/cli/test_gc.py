"""``pytest-kvm gc``: what dead runs have left is named, and goes when told to; what is alive stays."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from pytest_kvm.boot_cache import ram_file
from pytest_kvm.boot_cache.template_store import TemplateStore
from pytest_kvm.cli.main import main
from pytest_kvm.host import (
    folder_marker,
    locks,
    lost_processes,
    mounts,
    run_folder,
    undo_notes,
    watcher,
)
from pytest_kvm.host.run_folder import RUNS, held_run_folder
from pytest_kvm.host.undo_notes import UndoNotes
from pytest_kvm.images.image_store import ImageStore
from pytest_kvm.provision.leftovers import sweep_cache
from pytest_kvm.settings import Settings
from pytest_kvm.waiting import NotYet, wait_until
from tests.unit.host.machine_folders import machine

KEY = "5ca1ab1e" * 8


@pytest.fixture
def settings(parent, tmp_path):
    return Settings(cache_dir=tmp_path / "cache", run_dir=parent)


@pytest.fixture(autouse=True)
def _looks_at_processes_of_this_test_only(monkeypatch):
    """Let nobody end processes that other tests have lost on purpose."""
    monkeypatch.setenv("OWNER", name := secrets.token_hex(8))
    everybody = psutil.process_iter

    def own():
        for process in everybody():
            with suppress(psutil.Error):
                if process.environ().get("OWNER") == name:
                    yield process

    monkeypatch.setattr(psutil, "process_iter", own)


@pytest.fixture
def gc(settings, capsys, alone):
    def gc(*arguments, fails=False):
        """Return what the command prints."""
        places = ["--kvm-run-dir", str(settings.run_dir), "--kvm-cache-dir", str(settings.cache_dir)]
        assert main([*places, "gc", *arguments]) == int(fails)
        return capsys.readouterr().out

    return gc


@pytest.fixture
def dead(parent):
    """The folder of a run that has ended; who removes a run ends processes by its name, so it has its own."""
    with held_run_folder(parent):
        pass
    folder = parent / RUNS / secrets.token_hex(4)
    folder_marker.make(folder, **run_folder.host_facts())
    return folder


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """A folder in place of /dev/shm."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(ram_file, "_MEMORY", folder)
    return folder


def test_there_may_be_nothing(gc):
    assert gc() == "nothing is left of dead runs\n"
    assert gc("--yes") == "nothing is left of dead runs\n"


def test_a_dead_run_with_its_guest(gc, dead):
    with machine(dead) as qemu:
        UndoNotes(dead).add("network", "qemu:///system", "some-uuid")
        told = gc()
        assert f"run {dead.name} in {dead}, " in told
        assert f": its process {os.getpid()} has ended\n" in told
        assert f"\n    guest web\n    QEMU {qemu.pid}\n    network\n" in told
        assert told.endswith("1 leftover; remove with: pytest-kvm gc --yes\n")
        assert dead.exists()
        assert qemu.poll() is None
        shutil.rmtree(dead / undo_notes.FOLDER)
        assert gc("--yes").endswith("1 of 1 leftover removed\n")
        assert qemu.wait(20) == -signal.SIGKILL
    assert not dead.exists()
    assert gc() == "nothing is left of dead runs\n"


def test_a_run_of_before_the_boot(gc, parent, dead):
    shutil.rmtree(dead)
    folder_marker.make(dead, boot="another")
    assert "the host was booted since" in gc()


def test_a_live_run_is_not_in_it(gc, parent, dead):
    with held_run_folder(parent) as live, machine(live) as qemu:
        assert live.name not in gc()
        gc("--yes")
        assert qemu.poll() is None
        assert live.exists()
    assert not dead.exists()


def test_what_cannot_be_undone_stays_and_is_told(gc, dead, monkeypatch):
    monkeypatch.setitem(undo_notes._PROGRAMS, "network", "tests.unit.host.undo_program")
    UndoNotes(dead).add("network", "fail", "the daemon is away")
    told = gc("--yes", fails=True)
    assert f"    NOT removed: {dead} is still there" in told
    assert told.endswith("0 of 1 leftover removed\n")


def test_a_folder_that_another_host_may_use_is_left_alone(gc, parent, dead, monkeypatch):
    monkeypatch.setattr(mounts, "is_shared", lambda _folder: True)
    assert f"run {dead.name} in {dead}" in gc(), "this host made it"
    shutil.rmtree(dead)
    folder_marker.make(dead, boot="another", host="elsewhere")
    (blank := dead.with_name("0ddba110")).mkdir()
    told = gc("--yes")
    assert told.startswith(f"left alone: {dead}: on a file system that other hosts may use, and made on else")
    with held_run_folder(parent):
        assert dead.exists(), "the sweep leaves it, too"
        assert blank.exists(), "another host may be making it"


def test_a_folder_that_is_open_to_others_is_left_alone(gc, dead):
    dead.parent.chmod(0o777)
    assert gc("--yes").startswith(
        f"left alone: {dead}: it is another user's, or its folder is open to others\n"
    )
    assert dead.exists()


def test_a_run_that_another_process_removes_is_dead(gc, dead):
    """Whoever removes it holds its lock."""
    shutil.rmtree(dead)
    folder_marker.make(dead, token="1:1:" + secrets.token_hex(8))
    lock = locks.try_exclusive(dead / folder_marker.MARKER)
    told = gc("--yes")
    assert "    another process removes it\n1 of 1 leftover removed\n" in told
    lock.release()
    assert dead.exists()


def test_a_run_that_was_started_through_a_link(gc, parent, dead, monkeypatch):
    """QEMU's command line has the path with the link in it."""
    (parent / "link").symlink_to(".")
    with machine(parent / "link" / RUNS / dead.name) as qemu:
        told = gc()
        assert told.count(f"run {dead.name} in") == 1
        assert f"\n    QEMU {qemu.pid}\n" in told
        gc("--yes")
        assert qemu.wait(20) == -signal.SIGKILL
    assert not dead.exists()


def test_a_command_line_of_any_length_can_be_noted(gc, parent):
    with held_run_folder(parent, command="ä" * 100_000, started_in="/x" * 50_000) as folder:
        assert folder_marker.is_ours(folder)
    assert not folder.exists()


def test_a_qemu_whose_run_was_removed_by_hand(gc, dead):
    with machine(dead) as qemu:
        shutil.rmtree(dead)
        assert f"a QEMU of the run {dead.name} (pid {qemu.pid}): {dead} is gone\n" in gc()
        assert qemu.poll() is None
        gc("--yes")
        assert qemu.poll() is not None


def test_a_qemu_of_a_live_run_whose_folder_was_moved_is_not_lost(gc, parent):
    with held_run_folder(parent) as live, machine(live) as qemu:
        live.rename(parent / "aside")
        assert gc("--yes") == "nothing is left of dead runs\n"
        assert qemu.poll() is None
        (parent / "aside").rename(live)


@pytest.mark.parametrize(
    "argument",
    ["path={}/web/console.log,append=on", "a=/b={}/web/x", '{{"filename":"{}/web/root.qcow2"}}', "{}/x"],
)
@pytest.mark.parametrize("name", ["plain", "k=v", "with,comma", "with:colon"])
def test_a_folder_is_found_in_whatever_qemu_is_told(tmp_path, argument, name):
    folder = tmp_path / name / RUNS / "5ca1ab1e"
    written = argument.format(str(folder).replace(",", ",,"))
    assert lost_processes._missing_run(written) is not None
    folder.mkdir(parents=True)
    assert lost_processes._missing_run(written) is None


def test_a_folder_that_cannot_be_reached_is_not_gone(tmp_path, monkeypatch):
    def unreachable(_path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "lstat", unreachable)
    assert lost_processes._missing_run("/x/kvm-runs/5ca1ab1e/web/console.log") is None


STARTS_A_SWITCH = """
import sys
from pytest_kvm.host.run_token import new_run_token
from pytest_kvm.switch.client import Switch

token = new_run_token()
switch = Switch(token)
print(switch.pid, token, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def run_with_switch():
    """A process with a switch, the switch, and the run's token."""
    argv = [sys.executable, "-c", STARTS_A_SWITCH]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        pid, token = run.stdout.readline().split()
        switch = psutil.Process(int(pid))
        yield run, switch, token
        run.kill()
    wait_until(partial(check_ended, switch), describe="the end of the switch", timeout=20)


def check_ended(process):
    if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        raise NotYet("it runs")


def test_a_switch_that_was_stopped_and_has_lost_its_run(gc, run_with_switch):
    run, switch, _ = run_with_switch
    assert "switch" not in gc(), "its run lives"
    switch.suspend()
    run.kill()
    run.wait()
    assert f"the switch of a run (pid {switch.pid}): the run's process {run.pid} has ended\n" in gc()
    gc("--yes")
    check_ended(switch)


def test_the_switch_of_a_dead_run_goes_with_it(gc, dead, run_with_switch):
    run, switch, token = run_with_switch
    assert watcher.processes_of(dead) == []
    shutil.rmtree(dead)
    folder_marker.make(dead, token=token)
    assert watcher.processes_of(dead) == [switch.pid]
    switch.suspend()
    gc("--yes")
    check_ended(switch)
    assert run.poll() is None


def test_a_watcher_that_was_stopped_and_has_lost_its_run(gc, parent, dead):
    arguments = [str(Path.cwd()), str(dead), "1:1:" + secrets.token_hex(8)]
    argv = [sys.executable, "-I", "-S", "-c", watcher.BOOTSTRAP, *arguments]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as stopped:
        stopped.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)
        shutil.rmtree(dead)
        assert (
            f"the watcher of the run {dead.name} (pid {stopped.pid}): it is stopped, and {dead} is gone\n"
            in gc()
        )
        gc("--yes")
        assert stopped.poll() is not None


@pytest.fixture
def half_made(settings, memory):
    """What a process that was killed has left in the cache: a template, its memory, and an image."""
    store = TemplateStore.of(settings)
    with store.building(KEY) as building:
        aside = settings.cache_dir / "aside"
        shutil.copytree(building.folder, aside)
    shutil.move(aside, building.folder)
    folder_marker.make(memory / f"pytest-kvm-{os.getuid()}-gone", entry="/nowhere/gone")
    images = ImageStore.of(settings)
    with images.building("mine") as work:
        shutil.copytree(work, aside)
    shutil.move(aside, work)
    return building.folder, memory / f"pytest-kvm-{os.getuid()}-gone", work


def test_what_killed_runs_left_in_the_cache(gc, half_made):
    told = gc()
    for path in half_made:
        assert f" in {path}, " in told
    assert told.endswith("3 leftovers; remove with: pytest-kvm gc --yes\n")
    assert all(path.exists() for path in half_made)
    assert gc("--yes").endswith("3 of 3 leftovers removed\n")
    assert not any(path.exists() for path in half_made)


def test_notes_of_who_held_locks(gc, settings):
    notes = []
    for name in ("images", "templates"):
        folder = settings.cache_dir / name / "locks"
        folder.mkdir(parents=True)
        (folder / "key.lock").touch()
        notes.append(folder / "key.lock.holder")
        notes[-1].write_text("{}")
    told = gc()
    assert told.count("a note of who holds a lock in ") == 2
    assert all(note.exists() for note in notes)
    assert gc("--yes").endswith("2 of 2 leftovers removed\n")
    assert not any(note.exists() for note in notes)


def test_what_is_made_now_is_not_in_it(gc, settings, memory):
    with (
        TemplateStore.of(settings).building(KEY) as building,
        ImageStore.of(settings).building("mine") as work,
    ):
        assert gc("--yes") == "nothing is left of dead runs\n"
        assert building.folder.exists()
        assert work.exists()


def test_a_cache_that_other_hosts_may_use_is_left_alone(gc, settings, half_made, monkeypatch):
    monkeypatch.setattr(mounts, "is_shared", lambda _folder: True)
    assert gc("--yes").startswith(
        f"left alone: {settings.cache_dir}: on a file system that other hosts may use"
    )
    sweep_cache(settings)
    assert all(path.exists() for path in half_made)


def test_one_that_cannot_be_removed_keeps_no_other(settings, half_made, monkeypatch, caplog):
    def refuse():
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(ram_file, "sweep", refuse)
    sweep_cache(settings)
    _, memory, work = half_made
    assert "a template's memory stays" in caplog.text
    assert memory.exists()
    assert not work.exists()


def test_each_run_begins_by_removing_what_is_left_in_the_cache(settings, half_made):
    sweep_cache(settings)
    assert not any(path.exists() for path in half_made)


def test_a_cache_that_cannot_be_cleaned_stops_no_run(settings, half_made, monkeypatch, caplog):
    def refuse(*_arguments):
        raise PermissionError(13, "Permission denied", "images")

    monkeypatch.setattr(folder_marker, "remove", refuse)
    sweep_cache(settings)
    assert "an unfinished image stays" in caplog.text
