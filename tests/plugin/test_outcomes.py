"""What is wrong with a guest is an error, what is wrong with the tested system a failure."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

BROKEN = """
import pytest_kvm as kvm

PANICS = kvm.GuestSpec(memory="256MiB", vcpus=1, cmdline_extra="rdinit=/nonexistent root=/dev/vda1")


@kvm.guest
def machine():
    return PANICS


def test_with_a_fixture(machine):
    raise AssertionError("never reached")


def test_by_hand(kvm_guests):
    kvm_guests.boot(PANICS, name="by-hand")
"""

FAILING = """
import pytest
import pytest_kvm as kvm


@kvm.guest(scope="module")
def machine():
    return kvm.GuestSpec(memory="512MiB", vcpus=1)


def test_command(machine):
    machine.run("echo out; echo err >&2; exit 3")


def test_assertion(machine):
    machine.run("echo last words > /dev/console")
    machine.wait_for_console("last words", since=0)
    assert machine.run(["id", "-un"]).stdout == "nobody\\n"


@pytest.fixture
def broken_set_up(machine):
    machine.run(["false"])


def test_set_up(broken_set_up):
    pass


def test_still_works(machine):
    assert machine.run(["true"]).ok
"""

REBUILT = """
import pytest_kvm as kvm


@kvm.guest(scope="module")
def machine():
    return kvm.GuestSpec(memory="512MiB", vcpus=1)


def latecomers(machine):
    devices = machine.machine.domain.qmp("query-pci")[0]["devices"]
    ports = [each["pci_bridge"] | {"id": each["qdev_id"]} for each in devices if "pci_bridge" in each]
    return ports, [each["qdev_id"] for port in ports for each in port.get("devices", [])]


def test_plugs_in(machine):
    ports, _ = latecomers(machine)
    free = next(port["id"] for port in ports if not port.get("devices"))
    machine.machine.domain.qmp("device_add", {"driver": "qemu-xhci", "id": "latecomer", "bus": free})
    assert "latecomer" in latecomers(machine)[1]
    machine.write_text("/root/mark", "here")


def test_has_another(machine):
    assert "latecomer" not in latecomers(machine)[1]
    assert not machine.run(["cat", "/root/mark"], check=False).ok
    assert machine.run(["true"]).ok


def test_uses_that_one(machine):
    assert machine.run(["true"]).ok
"""

HOSTILE = r"""
import pytest
import pytest_kvm as kvm

SAY = r"printf '\033]0;owned\007\033[2Jfine\302\233m\010'"


@kvm.guest(scope="module")
def machine():
    return kvm.GuestSpec(memory="512MiB", vcpus=1)


def test_command(machine):
    machine.run(f"{SAY}; {SAY} >&2; exit 3")


def test_time_out(machine):
    machine.run(f"{SAY}; sleep 600", timeout=3)


def test_condition(machine):
    machine.wait_until(f"{SAY}; false", timeout=1)


def test_unit(machine):
    machine.write_text("/run/say", f"{SAY}; exit 3")
    machine.run("systemd-run --no-block --property=Type=oneshot --unit=loud sh /run/say")
    machine.wait_for_unit("loud")


def test_journal(machine):
    machine.run(f"{SAY} | systemd-cat")
    machine.wait_for_log("will not be said", timeout=1)


def test_console(machine):
    machine.run(f"{SAY} >/dev/console")
    machine.wait_for_console("will not be said", timeout=1)


def test_process(machine):
    with machine.start(f"{SAY}; echo; sleep 600") as process:
        assert (process, next(process.lines())) is None


def test_file(machine):
    machine.read_text("/run/\033]0;owned\007/fine")


def test_folder(machine, tmp_path):
    machine.run('mkdir -p /run/d && cd /run/d && mkfifo "$(' + SAY + ')"')
    machine.get("/run/d", tmp_path)
    assert 0


def test_assertion(machine):
    result = machine.run(SAY)
    assert result == "nothing"
"""


def test_a_guest_that_cannot_boot_is_an_error(pytester):
    pytester.makepyfile(BROKEN)
    result = pytester.runpytest_subprocess("--junit-xml=junit.xml", timeout=600)
    assert "failed" not in result.parseoutcomes()
    assert result.parseoutcomes()["errors"] == 2
    result.stdout.fnmatch_lines(
        ["*ERROR at setup of test_with_a_fixture*", "*ERROR at setup of test_by_hand*"]
    )
    result.stdout.fnmatch_lines(["*KernelPanicked: *"])
    result.stdout.no_fnmatch_line("*pytest_kvm/*.py:*")
    suite = ET.parse(pytester.path / "junit.xml").getroot().find("testsuite")
    assert (suite.get("errors"), suite.get("failures")) == ("2", "0")


def test_failures_show_command_streams_and_console(pytester):
    pytester.makepyfile(FAILING)
    result = pytester.runpytest_subprocess(timeout=600)
    result.assert_outcomes(passed=1, failed=2, errors=1)
    result.stdout.fnmatch_lines(["*CommandFailed*exit code 3*", "*out*", "*err*"])
    result.stdout.fnmatch_lines(["*console of machine*", "*last words*"])
    result.stdout.no_fnmatch_line("*pytest_kvm/*.py:*")


@pytest.mark.parametrize("option", [["--collect-only", "-q"], ["--setup-plan"]])
def test_looking_starts_nothing(pytester, tmp_path, option):
    pytester.makepyfile(FAILING)
    result = pytester.runpytest_subprocess(*option, f"--kvm-run-dir={tmp_path / 'r'}")
    assert result.ret == 0
    assert not (tmp_path / "r").exists()
    result.stdout.fnmatch_lines(["*test_command*"])


def test_a_guest_that_cannot_be_put_back_is_begun_anew(pytester):
    """A booted guest is put back by a savepoint, which QEMU refuses with a device more than it had."""
    pytester.makepyfile(REBUILT)
    result = pytester.runpytest_subprocess("--kvm-cache=off", "--log-file=log", timeout=900)
    result.assert_outcomes(passed=3)
    told = (pytester.path / "log").read_text()
    assert told.count("begun anew, for it could not be put back") == 1
    assert "plugged in since: latecomer" in told


def test_progress_that_cannot_be_written_fails_nothing(pytester):
    pytester.makepyfile(
        """
        import pytest_kvm as kvm

        @kvm.guest
        def machine():
            return kvm.GuestSpec(memory="512MiB", vcpus=1)

        def test_command(machine):
            assert machine.run(["true"]).ok
        """
    )
    pytester.makeconftest(
        """
        from pytest_kvm.plugin import progress

        def pytest_collection(session):
            session.config.stash[progress._SCREEN]._output = open("/dev/full", "w")
        """
    )
    result = pytester.runpytest_subprocess("--log-file=log", timeout=600)
    result.assert_outcomes(passed=1)
    assert "progress is not shown any more: [Errno 28] No space" in (pytester.path / "log").read_text()


def test_no_guest_steers_a_terminal_by_what_it_prints(pytester):
    pytester.makepyfile(HOSTILE)
    options = ["-rA", "-v", "--color=no", "--log-level=DEBUG", "--log-file=log", "--junit-xml=junit.xml"]
    result = pytester.runpytest_subprocess(*options, timeout=600)
    assert result.parseoutcomes() == {"failed": 10}
    told = {
        "the terminal": result.stdout.str(),
        "the log": (pytester.path / "log").read_text(),
        "the report": (pytester.path / "junit.xml").read_text(),
    }
    for where, text in told.items():
        assert "fine" in text, where
        controls = re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f].{0,20}", text)
        assert controls == [], where
