"""However a run ends, nothing of it stays: no process, file, socket or lock."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pytest_kvm.host import folder_marker
from pytest_kvm.host.run_folder import RUNS, sweep
from pytest_kvm.host.watcher import processes_of
from pytest_kvm.plugin.session import settings_stashed
from scripts.folders import own_folder
from tests.faults.suites import FOREVER
from tests.suite_process import FOREIGN, check_gone, suites_in

COLD = "--kvm-cache=off"


@pytest.fixture
def run_dir():
    """A folder for runs in which somebody else keeps files, beside the runs and among them."""
    with own_folder("kvm-") as folder:
        foreign = [folder / "precious", folder / RUNS / FOREIGN]
        (folder / RUNS).mkdir(mode=0o700)
        for each in foreign:
            each.mkdir()
            (each / "file").write_text("kept")
        yield folder
        assert [(each / "file").read_text() for each in foreign] == ["kept", "kept"]


@pytest.fixture
def suites(tmp_path, run_dir, pytestconfig):
    with suites_in(tmp_path, run_dir=run_dir, settings=settings_stashed(pytestconfig)) as suites:
        yield suites


@pytest.mark.parametrize(
    ("when", "arguments", "switch_is_stopped"),
    [("joined: power on", [COLD], False), ("GUEST IS UP", [], True)],
)
def test_after_kill_9(suites, when, arguments, switch_is_stopped):
    suite = suites.start(FOREVER, "-k", "test_forever", *arguments)
    suite.wait_shown(when)
    suite.wait_qemu()
    (switch,) = suite.children("switch.server")
    if switch_is_stopped:
        switch.suspend()
    suite.kill()
    suite.wait_gone()
    switch.wait(timeout=30)


def test_after_ctrl_c(suites):
    suite = suites.start(FOREVER, "-k", "test_forever")
    suite.wait_shown("GUEST IS UP")
    (switch,) = suite.children("switch.server")
    suite.process.send_signal(signal.SIGINT)
    assert suite.wait(60) == pytest.ExitCode.INTERRUPTED
    check_gone(suites.run_dir)
    assert not switch.is_running()
    assert "KeyboardInterrupt" in suite.output


def test_a_dead_watcher_is_made_up_for_by_the_next_run(suites):
    suite = suites.start(FOREVER, "-k", "test_forever", COLD)
    suite.wait_shown("the kernel speaks")
    (watcher,) = suite.children("host.watcher")
    watcher.kill()
    suite.process.kill()
    suite.wait()
    (folder,) = (path for path in Path(suites.run_dir, RUNS).iterdir() if folder_marker.is_ours(path))
    assert processes_of(suites.run_dir), "the guest outlived its run, as this test wants it"
    assert sweep(suites.run_dir) == [folder]
    check_gone(suites.run_dir)


def test_a_live_run_is_not_swept(suites):
    suite = suites.start(FOREVER, "-k", "test_forever", COLD)
    suite.wait_shown("joined: power on")
    assert sweep(suites.run_dir) == []
    assert not suite.has_ended
