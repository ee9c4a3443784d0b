"""Wait for what happens in a guest."""

from __future__ import annotations

import pytest

import pytest_kvm as kvm


def test_a_service_comes_up(web: kvm.Guest) -> None:
    web.run(["systemctl", "restart", "--no-block", "nginx"])
    web.wait_for_unit("nginx.service")
    web.wait_for_port(80)


def test_a_port_closes(web: kvm.Guest) -> None:
    web.run(["systemctl", "stop", "nginx"])
    web.wait_for_port(80, closed=True)
    web.run(["systemctl", "start", "nginx"])


def test_a_unit_that_failed_ends_the_wait(machine: kvm.Guest) -> None:
    start = "systemd-run --unit=doomed --no-block --property=Type=oneshot"
    machine.run(f"{start} sh -c 'echo no config >&2; exit 7'")
    with pytest.raises(kvm.UnitFailed, match=r"doomed\.service"):
        machine.wait_for_unit("doomed.service", timeout=600)
    machine.run(["systemctl", "reset-failed", "doomed.service"])


def test_a_file_appears_and_goes(machine: kvm.Guest) -> None:
    machine.run("systemd-run --collect sh -c 'sleep 1; touch /run/flag; sleep 1; rm /run/flag'")
    machine.wait_for_file("/run/flag")
    machine.wait_for_file("/run/flag", absent=True)


def test_a_command_succeeds_in_the_end(machine: kvm.Guest) -> None:
    machine.run("systemd-run --collect sh -c 'sleep 1; echo 3 >/run/answer'")
    result = machine.wait_until("grep 3 /run/answer")
    assert result.stdout == "3\n"


def test_a_journal_line(machine: kvm.Guest) -> None:
    machine.run(["systemd-run", "--collect", "--unit=speaker", "echo", "order 66 executed"])
    assert "order 66" in machine.wait_for_log(r"order \d+ executed", unit="speaker.service")


def test_a_console_line(machine: kvm.Guest) -> None:
    here = machine.console.offset()
    machine.run("echo '<2>the sky is falling' >/dev/kmsg")
    match = machine.wait_for_console(r"the sky is (\w+)", since=here)
    assert match[1] == "falling"
