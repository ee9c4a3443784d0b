"""What is left of tests that fail in every way: a suite of its own on real guests."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_kvm.plugin.session import settings_stashed
from pytest_kvm.switch.pcapng import CaptureReader
from scripts.folders import own_folder
from tests.own_disk import on_small_disk
from tests.suite_process import Suites, suites_in

SUITE = r"""
import os
import signal

import pytest
import pytest_kvm as kvm

SPEC = kvm.GuestSpec(memory="512MiB", vcpus=1)
DUMPS = "sysctl -qw kernel.core_pattern=/var/crash/core.%p; mkdir -p /var/crash; ulimit -c unlimited;"


@kvm.network(scope="module")
def lan():
    return kvm.NetworkSpec(subnet="10.1.0.0/24")


@kvm.guest(scope="module")
def web():
    return SPEC


@kvm.guest
def twin():
    return SPEC


@kvm.guest(scope="module")
def on_lan(lan):
    return kvm.GuestSpec(memory="512MiB", vcpus=1, nics=[kvm.Nic(lan)])


@pytest.fixture
def app(web):
    web.run("logger app-has-started")
    yield web
    if web.run("test -e /tmp/ruined", check=False).ok:
        raise RuntimeError("the app is ruined")


@pytest.fixture
def own_app(twin):
    yield twin
    twin.run("logger about-to-fail")
    pytest.fail("its teardown fails")


@pytest.fixture
def set_up_fails(twin):
    twin.run("logger set-up-was-here")
    raise RuntimeError("set-up fails")


def test_passes(web):
    web.run("logger of-another-test; echo on-another-console >/dev/ttyS0")


def test_call(app, twin):
    print("on two guests")
    app.run("echo on-the-console >/dev/ttyS0; logger in-the-test")
    app.run("systemd-run --unit=dies --wait false", check=False)
    app.run(DUMPS + "sh -c 'kill -SEGV $$'; ln -s /etc/shadow /var/crash/core.1", check=False)
    twin.run("uname")
    twin.savepoint("clean").restore()
    next(twin.start("echo in-the-background; exec sleep 600").lines())
    assert "mine" == "other"


@pytest.mark.kvm(reset="never")
def test_unreset(web):
    web.run("logger of-the-first; echo of-the-first >/dev/ttyS0; sleep 2")


@pytest.mark.kvm(reset="never")
def test_after_unreset(web):
    web.run("logger of-the-second; echo of-the-second >/dev/ttyS0")
    assert "mine" == "other"


def test_set_up(set_up_fails):
    pass


def test_teardown(own_app):
    pass


def test_both(own_app):
    own_app.run("logger in-the-call")
    assert "mine" == "other"


def test_wider_teardown(app):
    app.run("touch /tmp/ruined; logger in-the-test")


def test_network_is_dead(web):
    cut = "logger last-words; for card in /sys/class/net/e*; do ip link set ${card##*/} down; done"
    web.agent.exec(["sh", "-c", cut])
    assert "mine" == "other"


def test_no_agent(web):
    web.run("systemctl stop qemu-guest-agent; logger without-agent")
    assert "mine" == "other"


def test_kernel_is_dead(web):
    web.crash()
    assert "mine" == "other"


def test_qemu_is_dead(twin):
    twin.run("true")
    os.kill(twin.machine.domain.pid, signal.SIGKILL)
    assert twin.machine.domain.wait_end(60)
    assert "mine" == "other"


def test_qemu_is_stopped(twin):
    twin.run("true")
    os.kill(twin.machine.domain.pid, signal.SIGSTOP)
    assert "mine" == "other"


def test_capture(lan, on_lan):
    on_lan.nics[0].capture()
    on_lan.run("ping -c 1 -w 1 10.1.0.99", check=False)
    assert "mine" == "other"


@pytest.mark.xfail
def test_expected(web):
    assert "mine" == "other"
"""
ONE = """
import pytest
import pytest_kvm as kvm

@kvm.guest(scope="module")
def web():
    return kvm.GuestSpec(memory="512MiB", vcpus=1)

def test_passes(web):
    web.run("logger in-the-test")

@pytest.mark.parametrize("number", [1, 2])
def test_fails(web, number):
    web.run(f"logger number-{number}")
    assert number == 3
"""
BOOTS = """
import pytest
import pytest_kvm as kvm

@kvm.guest(scope="module")
def dies():
    return kvm.GuestSpec(memory="512MiB", vcpus=1, cmdline_extra="init=/nonexistent")

@kvm.guest
def mistyped():
    cloud_init = kvm.CloudInit(run_commands=["logger in-the-boot", "no-such-program"])
    return kvm.GuestSpec(memory="512MiB", vcpus=1, cloud_init=cloud_init)

def test_dies(dies):
    pass

def test_dies_again(dies):
    pass

def test_mistyped(mistyped):
    pass
"""
USUAL = {"console.log", "console-before.log", "domain.xml", "qemu.log", "transcript.txt"}
INSIDE = {"journal.txt", "dmesg.txt", "cloud-init.log", "cloud-init-output.log", "cloud-init-status.json"}


@pytest.fixture(scope="module")
def suites(tmp_path_factory, pytestconfig) -> Iterator[Suites]:
    with (
        own_folder("kvm-") as run_dir,
        suites_in(
            tmp_path_factory.mktemp("suites"), run_dir=run_dir, settings=settings_stashed(pytestconfig)
        ) as suites,
    ):
        yield suites


class Kept:
    """What a suite has kept.

    Args:
        folder: The folder of all artifacts.
        output: What the suite has written.
    """

    def __init__(self, folder: Path, output: str) -> None:
        self.folder = folder
        self.output = output

    def tests(self) -> set[str]:
        """Return the names of the tests of which something is kept."""
        return {path.parent.name for path in self.folder.glob("*/*/about.json")}

    def names(self, place: str) -> set[str]:
        """Return the names of the files in a folder below that of the suite."""
        return {path.name for path in (self.folder / "test_it.py" / place).iterdir()}

    def text(self, place: str) -> str:
        """Return the text of a file."""
        return (self.folder / "test_it.py" / place).read_text(errors="replace")

    def about(self, test: str) -> dict[str, Any]:
        """Return what is said of a test."""
        about: dict[str, Any] = json.loads(self.text(f"{test}/about.json"))
        return about


@pytest.fixture(scope="module")
def kept(suites: Suites, tmp_path_factory) -> Kept:
    """What all of the suite has kept."""
    folder = tmp_path_factory.mktemp("artifacts")
    suite = suites.start(SUITE, f"--kvm-artifacts={folder}", f"--junit-xml={folder}/junit.xml")
    suite.wait()
    assert "9 failed, 4 passed, 1 xfailed, 4 errors in" in suite.output, suite.output[-5000:]
    return Kept(folder, suite.output)


def test_each_failed_test_has_a_folder_and_no_other(kept):
    names = """call after_unreset set_up teardown both wider_teardown network_is_dead no_agent kernel_is_dead
        qemu_is_dead qemu_is_stopped capture"""
    assert kept.tests() == {f"test_{name}" for name in names.split()}
    assert (kept.folder / "last").resolve() == kept.folder / "test_it.py/test_capture"
    assert "could not find out everything" not in kept.output


def test_everything_of_a_guest_that_answers(kept):
    assert kept.names("test_call/web") == USUAL | INSIDE | {
        "screenshot.png",
        "failed-units.txt",
        "core-dumps.txt",
        "core-1",
    }
    assert kept.names("test_call/twin") == USUAL | INSIDE | {"screenshot.png"}
    journal = kept.text("test_call/web/journal.txt")
    assert "in-the-test" in journal
    assert "app-has-started" in journal
    assert "of-another-test" not in journal
    assert "guest-exec" not in journal
    assert "dies.service" in kept.text("test_call/web/failed-units.txt")
    core = (kept.folder / "test_it.py/test_call/web/core-1").read_bytes()
    assert core.startswith(b"\x7fELF")
    (line,) = kept.text("test_call/web/core-dumps.txt").splitlines()
    assert line.startswith(f"core-1\t{len(core)} bytes\t/var/crash/core.")
    assert "on-the-console" in kept.text("test_call/web/console.log")
    assert "Linux version" not in kept.text("test_call/web/console.log")
    assert "Linux version" in kept.text("test_call/web/console-before.log")
    assert "Linux version" in kept.text("test_call/web/dmesg.txt")
    assert ET.fromstring(kept.text("test_call/web/domain.xml")).tag == "domain"
    assert "qemu-system" in kept.text("test_call/web/qemu.log")
    assert "on two guests" in kept.text("test_call/failure.txt")
    guests = kept.about("test_call")["guests"]
    assert {name: each["missing"] for name, each in guests.items()} == {"web": [], "twin": []}


def test_the_transcript_tells_what_the_test_has_done(kept):
    text = kept.text("test_call/web/transcript.txt")
    assert "  $ logger app-has-started\n" in text
    assert "  $ echo on-the-console >/dev/ttyS0; logger in-the-test\n" in text
    assert ": exit code 0 after " in text
    assert "of-another-test" not in text
    assert text.count("Z run(") == 4
    assert re.search(
        r"Z run\(\): exit code 0 after [\d.]+ s\n  \$ uname\n  out: Linux\n",
        kept.text("test_call/twin/transcript.txt"),
    )
    text = kept.text("test_call/twin/transcript.txt")
    assert "Z savepoint(name='clean'): after " in text
    assert "Z restore() of 'clean': after " in text
    assert re.search(r"Z start\(\): has not ended\n  \$ echo.*\n  out: in-the-background\n", text)
    assert "Z crash(): returned " in kept.text("test_kernel_is_dead/web/transcript.txt")
    assert "Z agent.exec(): exit code 0 after " in kept.text("test_network_is_dead/web/transcript.txt")


def test_a_guest_that_is_not_reset_shows_the_time_of_the_test(kept):
    for name in ("console.log", "journal.txt"):
        text = kept.text(f"test_after_unreset/web/{name}")
        assert "of-the-second" in text
        assert "of-the-first" not in text
    assert "of-the-first" in kept.text("test_after_unreset/web/console-before.log")


def test_set_up_and_teardown(kept):
    assert "set-up-was-here" in kept.text("test_set_up/twin/journal.txt")
    assert "about-to-fail" in kept.text("test_teardown/twin/journal.txt")
    assert "its teardown fails" in kept.text("test_teardown/failure.txt")
    assert "in-the-test" in kept.text("test_wider_teardown/web/journal.txt")
    assert "in-the-call" in kept.text("test_both/twin/journal.txt")
    assert "about-to-fail" not in kept.text("test_both/twin/journal.txt")
    assert "about-to-fail" in kept.text("test_both/in-teardown/twin/journal.txt")
    assert [each["phase"] for each in kept.about("test_both")["failures"]] == ["call", "teardown"]


def test_dead_networks_and_agents(kept):
    assert kept.names("test_network_is_dead/web") == USUAL | INSIDE | {"screenshot.png", "trouble.txt"}
    assert "last-words" in kept.text("test_network_is_dead/web/journal.txt")
    assert "runs, but its sshd" in kept.text("test_network_is_dead/web/trouble.txt")
    assert kept.names("test_no_agent/web") == USUAL | INSIDE | {"screenshot.png"}
    assert "without-agent" in kept.text("test_no_agent/web/journal.txt")


@pytest.mark.parametrize(
    ("test", "files"),
    [
        ("test_kernel_is_dead/web", {"screenshot.png"}),
        ("test_qemu_is_dead/twin", set()),
        ("test_qemu_is_stopped/twin", set()),
    ],
)
def test_dead_guests(kept, test, files):
    assert kept.names(test) == USUAL | files | {"trouble.txt", "missing.txt"}
    assert ET.fromstring(kept.text(f"{test}/domain.xml")).tag == "domain"
    assert "what only the guest itself can tell: " in kept.text(f"{test}/missing.txt")


def test_a_panic_is_on_the_console(kept):
    assert "Kernel panic" in kept.text("test_kernel_is_dead/web/console.log")


def test_captures_that_a_test_has_made(kept):
    assert kept.names("test_capture") == {
        "about.json", "failure.txt", "lan-on_lan.pcapng", "made-by-pytest-kvm.json", "on_lan"
    }  # fmt: skip
    with (kept.folder / "test_it.py/test_capture/lan-on_lan.pcapng").open("rb") as file:
        assert list(CaptureReader(file))


def test_files_are_for_their_owner_alone(kept):
    paths = [
        path for path in (kept.folder / "test_it.py").rglob("*") if path.parent != kept.folder / "test_it.py"
    ]
    assert len(paths) > 100
    assert [path for path in paths if path.stat().st_mode & 0o077] == []


def test_reports_say_where_it_is(kept):
    for test in kept.tests():
        assert str(kept.folder / "test_it.py" / test) in kept.output
    found = {
        case.get("name"): each.get("value")
        for case in ET.parse(kept.folder / "junit.xml").iter("testcase")
        for each in case.iter("property")
        if each.get("name") == "kvm_artifacts"
    }
    assert found == {test: str(kept.folder / "test_it.py" / test) for test in kept.tests()}


def test_workers_share_a_folder(suites, tmp_path):
    options = ["-n2", "--reruns=1", f"--kvm-artifacts={tmp_path}", f"--junit-xml={tmp_path}/junit.xml"]
    suite = suites.start(ONE, *options)
    suite.wait()
    assert "2 failed, 1 passed, 2 rerun in" in suite.output, suite.output[-5000:]
    kept = Kept(tmp_path, suite.output)
    assert kept.tests() == {"test_fails[1]", "test_fails[1]~2", "test_fails[2]", "test_fails[2]~2"}
    for number in (1, 2):
        assert f"number-{number}" in kept.text(f"test_fails[{number}]~2/web/journal.txt")
        assert f"{tmp_path}/test_it.py/test_fails[{number}]~2/web: " in suite.output


def test_always_and_never(suites, tmp_path):
    for policy in ("always", "never"):
        folder = tmp_path / policy
        suite = suites.start(ONE, f"--kvm-keep-artifacts={policy}", f"--kvm-artifacts={folder}")
        suite.wait()
        assert "2 failed, 1 passed in" in suite.output, suite.output[-5000:]
    assert not folder.exists()
    kept = Kept(tmp_path / "always", "")
    assert kept.tests() == {"test_passes", "test_fails[1]", "test_fails[2]"}
    assert "in-the-test" in kept.text("test_passes/web/journal.txt")


def test_boots_that_fail(suites, tmp_path):
    """What the machines could tell is kept although they are gone when the tests fail."""
    suite = suites.start(BOOTS, f"--kvm-artifacts={tmp_path}")
    suite.wait()
    assert "3 errors in" in suite.output, suite.output[-5000:]
    assert "could not find out everything" not in suite.output
    kept = Kept(tmp_path, suite.output)
    assert kept.names("test_dies/dies") == {
        "console.log", "domain.xml", "qemu.log", "screenshot.png", "trouble.txt", "missing.txt"
    }  # fmt: skip
    assert "No working init found" in kept.text("test_dies/dies/console.log")
    assert kept.about("test_dies_again")["guests"]["dies"]["kept_in"] == "../test_dies/dies"
    assert suite.output.count(f"{tmp_path}/test_it.py/test_dies/dies: ") == 2
    assert kept.names("test_mistyped/mistyped") == {
        "console.log", "domain.xml", "qemu.log", "screenshot.png", "failed-units.txt", *INSIDE
    }  # fmt: skip
    assert "no-such-program: not found" in kept.text("test_mistyped/mistyped/cloud-init-output.log")
    assert "in-the-boot" in kept.text("test_mistyped/mistyped/journal.txt")
    assert "cloud-final.service" in kept.text("test_mistyped/mistyped/failed-units.txt")


def test_a_full_disk_is_told_and_fails_nothing(suites, tmp_path):
    (folder := tmp_path / "artifacts").mkdir()
    suite = suites.start(ONE, f"--kvm-artifacts={folder}", within=on_small_disk(folder, "size=64k"))
    suite.wait()
    assert "2 failed, 1 passed in" in suite.output, suite.output[-5000:]
    assert "No space left on device" in suite.output
    assert "could not find out everything" not in suite.output
