"""What is large and kept of guests of failed tests, and guests that go on from it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_kvm.images.image_store import ImageStore
from pytest_kvm.images.qemu_img import info
from pytest_kvm.plugin.session import settings_stashed
from pytest_kvm.waiting import wait_until
from scripts.folders import own_folder
from tests.own_disk import on_small_disk
from tests.resumed_guest import resumed_guest
from tests.suite_process import Suites, check_gone, run_command, suites_in

SUITE = """
import time

import pytest
import pytest_kvm as kvm

SPEC = kvm.GuestSpec(memory="512MiB", vcpus=1)
pytestmark = pytest.mark.kvm(reset="never")
started = []


@kvm.network(scope="module")
def lan():
    return kvm.NetworkSpec(subnet="10.1.0.0/24")


@kvm.guest(scope="module")
def web(lan):
    return kvm.GuestSpec(memory="512MiB", vcpus=1, nics=[kvm.Nic(lan)])


@kvm.guest
def twin():
    return SPEC


@kvm.guest
def cold():
    return kvm.GuestSpec(memory="512MiB", vcpus=1, cmdline_extra="init=/nonexistent")


def test_fails(web):
    web.run("echo left-in-memory >/dev/shm/left; echo left-on-disk >/root/left; sync")
    started.append(web.start("echo begun; exec -a still-at-work sleep 1000"))
    assert next(started[0].lines()) == "begun"
    assert "mine" == "other"


def test_the_guest_has_gone_on(web):
    web.run("pgrep -f still-at-work")
    before = time.time()
    clock = float(web.run("date +%s.%N").stdout)
    assert before - 0.5 < clock < time.time() + 0.5
    started[0].stop()
    savepoint = web.savepoint()
    web.run("rm /root/left")
    savepoint.restore()
    assert web.run("cat /root/left /dev/shm/left").stdout == "left-on-disk\\nleft-in-memory\\n"


def test_paused(twin):
    twin.run("echo left-on-disk >/root/left; sync")
    twin.pause()
    assert "mine" == "other"


def test_ended(twin):
    twin.run("echo left-on-disk >/root/left; sync")
    twin.power_off()
    assert "mine" == "other"


def test_boot_fails(cold):
    pass
"""
ONE = """
import pytest_kvm as kvm


@kvm.guest
def web():
    return kvm.GuestSpec(memory="512MiB", vcpus=1)


def test_fails(web):
    web.run("true")
    assert "mine" == "other"
"""


@pytest.fixture(scope="module")
def run_dir() -> Iterator[Path]:
    with own_folder("kvm-") as folder:
        yield folder


@pytest.fixture(scope="module")
def suites(tmp_path_factory, run_dir, pytestconfig) -> Iterator[Suites]:
    folder = tmp_path_factory.mktemp("suites")
    with suites_in(folder, run_dir=run_dir, settings=settings_stashed(pytestconfig)) as suites:
        yield suites


@pytest.fixture(scope="module")
def kept(suites, tmp_path_factory) -> Path:
    """The folder of what the suite has kept; its path needs quoting."""
    folder: Path = tmp_path_factory.mktemp("what, is:kept")
    suite = suites.start(SUITE, "--kvm-dump=memory,disk,guest", f"--kvm-artifacts={folder}")
    suite.wait()
    assert "3 failed, 1 passed, 1 error in" in suite.output, suite.output[-5000:]
    assert "could not find out everything" not in suite.output
    (folder / "output").write_text(suite.output)
    return folder


@pytest.fixture
def resume(run_dir, pytestconfig):
    settings = settings_stashed(pytestconfig)
    return lambda artifact: resumed_guest(artifact, run_dir=run_dir, settings=settings)


def artifact_of(kept: Path, place: str) -> Path:
    return kept / "test_it.py" / place


def digests(folder: Path) -> dict[Path, str]:
    """Return the digest of each file in a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_guest_goes_on_as_its_test_has_left_it(kept, resume, run_dir):
    artifact = artifact_of(kept, "test_fails/web")
    before = digests(artifact)
    for _ in range(2):
        with resume(artifact) as guest:
            assert guest.greeting.startswith("web goes on as it was at ")
            assert guest.run("cat /root/left /dev/shm/left") == "left-on-disk\nleft-in-memory\n"
            assert "still-at-work 1000" in guest.run("ps -C sleep -o args")
            assert "10.1.0." in guest.run("ip -4 -br a"), "its card on the segment is there"
            assert "Linux version" in guest.console.read_text(errors="replace")
            guest.run("echo mine >>/root/left; echo since >/dev/ttyS0; sync")
            assert "since" in guest.console.read_text(errors="replace")
            _, seen = run_command(f"--kvm-run-dir={run_dir}", "ps", "--json")
            (run,) = [run for run in json.loads(seen)["runs"] if run["folder"].startswith(str(run_dir))]
            assert [machine["guest"] for machine in run["guests"]] == ["web"]
            assert run["command"].startswith("pytest-kvm resume ")
            assert guest.interrupt() == "removing it\n"
        check_gone(run_dir)
    assert digests(artifact) == before


@pytest.mark.parametrize("test", ["test_paused", "test_boot_fails"])
def test_other_guests_go_on_too(kept, resume, test):
    """One that its test has paused runs then; one whose boot has failed shows how."""
    with resume(artifact_of(kept, test)) as guest:
        if test == "test_paused":
            assert guest.run("cat /root/left") == "left-on-disk\n"
        else:
            assert "No working init found" in guest.console.read_text(errors="replace")
        guest.interrupt()


def test_nothing_is_left_of_one_that_is_killed(kept, resume, run_dir):
    with resume(artifact_of(kept, "test_paused")) as guest:
        guest.process.kill()
        wait_until(lambda: check_gone(run_dir), describe="nothing left", timeout=60)


def test_it_tells_that_the_guest_has_ended(kept, resume):
    with resume(artifact_of(kept, "test_paused")) as guest:
        guest.begin("systemctl poweroff --force --force")
        assert guest.rest() == "it has ended: guest shutdown\n"


def test_reports_say_how_a_guest_goes_on(kept):
    output = (kept / "output").read_text()
    for place in ("test_fails/web", "test_paused/twin", "test_boot_fails/cold"):
        assert f" resume '{artifact_of(kept, place)}'\n" in output
    assert " resume '" in (artifact_of(kept, "test_fails") / "failure.txt").read_text()


def test_files_are_for_their_owner_alone(kept):
    paths = [*artifact_of(kept, "test_fails").rglob("*"), *artifact_of(kept, "test_boot_fails").rglob("*")]
    assert len(paths) > 30
    assert [path for path in paths if path.stat().st_mode & 0o077] == []


def test_the_memory_is_an_elf_core_dump(kept):
    core = artifact_of(kept, "test_fails/web/memory/memory.elf")
    with core.open("rb") as file:
        assert file.read(4) == b"\x7fELF"
    assert core.stat().st_size > 512 * 1024**2
    subprocess.run(["grep", "--quiet", "left-in-memory", core], check=True)


@pytest.mark.parametrize("place", ["test_fails/web", "test_ended/twin"])
def test_the_disk_needs_only_the_image(kept, place, pytestconfig):
    (disk,) = artifact_of(kept, place).glob("disks/*")
    found = info(disk)
    assert found.snapshots == ()
    assert found.backing_file is not None
    images = ImageStore.of(settings_stashed(pytestconfig)).list()
    assert Path(found.backing_file) in [image.disk for image in images]
    subprocess.run(["qemu-img", "check", "-q", disk], check=True)
    subprocess.run(["grep", "--quiet", "left-on-disk", disk], check=True)


def test_what_cannot_be_kept_is_told(kept):
    missing = artifact_of(kept, "test_ended/twin/missing.txt").read_text()
    assert "memory: twin has ended: " in missing
    assert "frozen: twin has ended: " in missing
    assert not (artifact_of(kept, "test_ended/twin/frozen")).exists()


def test_a_full_disk_is_told_and_fails_nothing(suites, tmp_path):
    (folder := tmp_path / "artifacts").mkdir()
    suite = suites.start(
        ONE, "--kvm-dump=memory,guest", f"--kvm-artifacts={folder}", within=on_small_disk(folder, "size=200m")
    )
    suite.wait()
    assert "1 failed in" in suite.output, suite.output[-5000:]
    assert "not all: memory: no room for the memory of web: " in suite.output
    assert "frozen/" not in suite.output
    assert "could not find out everything" not in suite.output


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("test_ended", "there is no frozen guest in {}\n→ name a folder that a failed test of a run with"),
        ("", "there are several frozen guests in {}\n{}/test_boot_fails/cold/frozen\n"),
        ("test_nowhere", "{} is no folder that you can read\n"),
    ],
)
def test_what_is_no_frozen_guest(kept, place, said):
    artifact = artifact_of(kept, place)
    code, printed = run_command("resume", str(artifact))
    assert code == 1
    assert said.format(artifact, artifact) in printed


def test_an_image_that_is_missing_is_told(kept, tmp_path):
    artifact = artifact_of(kept, "test_paused")
    code, printed = run_command(f"--kvm-cache-dir={tmp_path}", "resume", str(artifact))
    assert code == 1
    assert "twin needs the image (debian-13) that it was made from, and the cache has no file" in printed
