"""However a run ends, nothing of it stays: no process, file, socket or lock."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from pytest_kvm.host import folder_marker
from pytest_kvm.host.run_folder import RUNS, sweep
from pytest_kvm.host.watcher import processes_of
from pytest_kvm.plugin.session import settings_stashed
from pytest_kvm.waiting import NotYet, wait_until
from scripts.folders import own_folder

SUITE = """
import signal

import pytest_kvm as kvm

# A shell that put us into the background had us ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@kvm.network(scope="session")
def lan():
    return kvm.NetworkSpec()


@kvm.guest(scope="session")
def machine(lan):
    return kvm.GuestSpec(memory="512MiB", vcpus=1, nics=[kvm.Nic(lan)])


def test_forever(machine):
    print("GUEST IS UP", flush=True)
    machine.run(["sleep", "3600"])
"""


@pytest.fixture
def run_dir():
    """A run folder in which somebody else keeps files, beside the runs and among them."""
    with own_folder("kvm-") as folder:
        foreign = [Path(folder, "precious"), Path(folder, RUNS, "notes")]
        Path(folder, RUNS).mkdir(mode=0o700)
        for each in foreign:
            each.mkdir()
            (each / "file").write_text("kept")
        yield folder
        assert [(each / "file").read_text() for each in foreign] == ["kept", "kept"]


@pytest.fixture
def start(pytester, run_dir, pytestconfig):
    """Start a pytest process of its own, with a guest that is asked to run for an hour."""
    pytester.makepyfile(SUITE)
    output = pytester.path / "output"
    places = [f"--kvm-run-dir={run_dir}", f"--kvm-cache-dir={settings_stashed(pytestconfig).cache_dir}"]
    with ExitStack() as stack, output.open("w") as sink:

        def started(*arguments):
            argv = [sys.executable, "-m", "pytest", "-s", *places, *arguments]
            process = subprocess.Popen(argv, stdout=sink, stderr=sink)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process, output

        yield started


def shown(output, text):
    def look():
        if text not in output.read_text():
            raise NotYet(output.read_text()[-2000:])

    return look


def gone(run_dir):
    def look():
        left = [path.name for path in (run_dir / RUNS).iterdir() if path.name not in ("guard", "notes")]
        running = processes_of(run_dir)
        if left or running:
            raise NotYet(f"files {left}, processes {running}")

    return look


def child(process, module):
    """Return the child process that runs a module of the plugin's."""
    (found,) = (each for each in psutil.Process(process.pid).children() if module in " ".join(each.cmdline()))
    return found


COLD = "--kvm-cache=off"


@pytest.mark.parametrize(
    ("when", "arguments", "switch_is_stopped"),
    [("machine: power on", [COLD], False), ("GUEST IS UP", [], True)],
)
def test_after_kill_9(start, run_dir, when, arguments, switch_is_stopped):
    process, output = start(*arguments)
    wait_until(shown(output, when), describe=when, timeout=300)
    wait_until(lambda: processes_of(run_dir) or _not_yet("no QEMU"), describe="QEMU", timeout=60)
    switch = child(process, "switch.server")
    if switch_is_stopped:
        switch.suspend()
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(gone(run_dir), describe="the watcher's work", timeout=30)
    switch.wait(timeout=30)


def test_after_ctrl_c(start, run_dir):
    process, output = start()
    wait_until(shown(output, "GUEST IS UP"), describe="the guest", timeout=300)
    switch = child(process, "switch.server")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == pytest.ExitCode.INTERRUPTED
    gone(run_dir)()
    assert not switch.is_running()
    assert "KeyboardInterrupt" in output.read_text()


def test_a_dead_watcher_is_made_up_for_by_the_next_run(start, run_dir):
    process, output = start(COLD)
    wait_until(shown(output, "the kernel speaks"), describe="the kernel", timeout=300)
    child(process, "host.watcher").kill()
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = (path for path in (run_dir / RUNS).iterdir() if folder_marker.is_ours(path))
    assert processes_of(run_dir), "the guest outlived its run, as this test wants it"
    assert sweep(run_dir) == [folder]
    gone(run_dir)()


def test_a_live_run_is_not_swept(start, run_dir):
    process, output = start(COLD)
    wait_until(shown(output, "machine: power on"), describe="power on", timeout=300)
    assert sweep(run_dir) == []
    assert process.poll() is None


def _not_yet(seen):
    raise NotYet(seen)
