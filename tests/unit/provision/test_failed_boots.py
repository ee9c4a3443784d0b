"""What is kept of a machine that does not become ready, and that its own error is raised."""

from __future__ import annotations

import errno
import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import (
    BootFailed,
    CloudInitTimeout,
    GuestGone,
    HostCommandFailed,
    HostError,
    KernelPanicked,
)
from pytest_kvm.host.folder_marker import MARKER
from pytest_kvm.machine import evidence
from pytest_kvm.provision import failed_boots
from pytest_kvm.provision.failed_boots import BootKeeping, keeping_failed_boot, move, read_about
from pytest_kvm.provision.start_request import Teardown
from tests.unit.provision.start_requests import START_REQUEST

USUAL = BootKeeping(folder=Path(), dump=frozenset())


@pytest.fixture
def folder(tmp_path):
    return tmp_path / ".failed-boots"


@pytest.fixture
def dumps(monkeypatch):
    """Find no trouble; note whether the kernel may be asked."""
    asked = []

    def find_trouble(_machine, *, can_dump, before_dump):
        asked.append(can_dump)

    monkeypatch.setattr(failed_boots, "find_trouble", find_trouble)
    return asked


@pytest.fixture
def boot(machine, folder, dumps):
    """Have a boot fail by an error, and return where something is kept."""
    machine.console.log.write_text("Linux\n")
    (folder.parent / MARKER).touch()

    def boot(error, *, request=START_REQUEST, keeping=USUAL):
        keeping = keeping and replace(keeping, folder=folder)
        with pytest.raises(type(error)) as raised, keeping_failed_boot(machine, request, keeping=keeping):
            raise error
        assert raised.value is error
        return error.kept

    return boot


def test_files_and_facts_are_kept(boot, folder):
    kept = boot(BootFailed("web: nothing answers"))
    assert kept.parent == folder
    about = json.loads((kept / "about.json").read_text())
    assert about["guest"] == "web"
    assert about["boot"] == "BootFailed"
    assert {*about["files"], "about.json"} == {path.name for path in kept.iterdir()}
    assert (kept / "console.log").read_text() == "Linux\n"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (kept.parent, kept)] == [0o700, 0o700]


def test_each_boot_has_a_folder_of_its_own(boot):
    assert boot(BootFailed("a")) != boot(BootFailed("b"))


@pytest.mark.parametrize("error", [HostError("the host's fault"), ValueError("of our own")])
def test_other_errors_pass(machine, folder, error):
    keeping = replace(USUAL, folder=folder)
    with pytest.raises(type(error)), keeping_failed_boot(machine, START_REQUEST, keeping=keeping):
        raise error
    assert not folder.exists()


def test_nothing_is_kept_of_a_guest_that_was_removed_or_if_nobody_wants_it(boot, folder):
    removed = replace(START_REQUEST, teardown=Teardown("web"))
    removed.teardown.close()
    assert boot(GuestGone("web"), request=removed) is None
    assert boot(BootFailed("web"), keeping=None) is None
    assert not folder.exists()


def test_only_kernels_that_may_hang_are_asked(boot, dumps):
    boot(BootFailed("web: a step failed"))
    boot(CloudInitTimeout("web: it still ran"))
    assert dumps == [False, True]
    kept = boot(KernelPanicked("web: it panicked"))
    assert dumps == [False, True]
    assert (kept / "trouble.txt").read_text() == "web does not answer: its kernel has panicked\n"


def test_a_failure_of_ours_hides_nothing(boot, monkeypatch, caplog):
    def finish(self):
        raise ZeroDivisionError("by us")

    monkeypatch.setattr(evidence.Evidence, "finish", finish)
    assert boot(BootFailed("web: nothing answers")) is None
    assert "ZeroDivisionError: by us" in caplog.text


def test_what_is_kept_is_moved_to_a_test(boot, tmp_path):
    kept = boot(BootFailed("web: nothing answers"))
    assert read_about(kept)["guest"] == "web"
    move(kept, tmp_path / "web")
    assert {path.name for path in (tmp_path / "web").iterdir()} >= {"console.log", "domain.xml"}
    assert not (tmp_path / "web/about.json").exists()
    with pytest.raises(FileNotFoundError, match="is gone"):
        read_about(kept)


def test_what_is_kept_is_moved_to_another_disk(boot, tmp_path, monkeypatch):
    def rename(self, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "rename", rename)
    kept = boot(BootFailed("web: nothing answers"))
    move(kept, tmp_path / "web")
    assert {path.name for path in (tmp_path / "web").iterdir()} >= {"console.log", "domain.xml"}
    assert not (tmp_path / "web/about.json").exists()
    assert not kept.exists()


def test_what_is_in_the_way_of_a_move_stays(boot, tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web/console.log").touch()
    kept = boot(BootFailed("web: nothing answers"))
    with pytest.raises(OSError, match="Directory not empty"):
        move(kept, tmp_path / "web")
    assert [path.name for path in (tmp_path / "web").iterdir()] == ["console.log"]
    assert read_about(kept)["guest"] == "web"


def test_a_move_that_fails_leaves_nothing_half_done(boot, tmp_path, monkeypatch):
    def rename(self, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def copy_to_own(_source, _target):
        raise HostCommandFailed("cp failed", details="No space left on device")

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(failed_boots, "copy_to_own", copy_to_own)
    kept = boot(BootFailed("web: nothing answers"))
    with pytest.raises(OSError, match="No space left on device"):
        move(kept, tmp_path / "web")
    assert not (tmp_path / "web").exists()
    assert read_about(kept)["guest"] == "web"


def test_dumps_are_kept_if_they_are_asked_for(boot, monkeypatch):
    asked = []
    monkeypatch.setattr(evidence, "keep_dumps", lambda _machine, _folder, *, what: asked.append(what))
    boot(KernelPanicked("web: it panicked"), keeping=replace(USUAL, dump=frozenset({"guest"})))
    assert asked == [{"guest"}]


def test_a_large_spec_is_cut(boot):
    spec = kvm.GuestSpec(cloud_init=kvm.CloudInit(run_commands=["\N{DUCK}" * 70_000]))
    request = replace(START_REQUEST, teardown=Teardown("web"), spec=spec)
    assert len(read_about(boot(BootFailed("web"), request=request))["spec"]) == 4000


def test_nothing_is_put_into_a_run_folder_that_somebody_has_removed(boot, folder, caplog):
    (folder.parent / MARKER).unlink()
    assert boot(BootFailed("web: nothing answers")) is None
    assert not folder.exists()
    assert "somebody has removed it" in caplog.text


def test_a_terminal_that_is_gone_hides_nothing(boot):
    def on_step(step):
        raise BrokenPipeError("terminal")

    assert boot(BootFailed("web"), request=replace(START_REQUEST, on_step=on_step)) is None
