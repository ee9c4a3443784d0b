"""The scripts run on this machine's own shell, with a systemctl made up by the test."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from pytest_kvm.errors import CommandTimeout, GuestGone, UnitFailed, WaitTimeout
from pytest_kvm.machine import waits
from tests.fakes import FakeShell, LocalShell, fake_machine, output

SHOW = """
case "$1" in
    show) echo "Result=success"; echo "Job={job}"; echo "LoadState={load}"; {states} ;;
    list-jobs) {jobs} ;;
    status) echo "status of $*" ;;
esac
"""
JOURNALCTL = 'echo "journal $*"'


@pytest.fixture
def local(tmp_path, domain):
    def made(systemctl=""):
        programs = {"systemctl": systemctl, "journalctl": JOURNALCTL}
        shell = LocalShell(programs, folder=tmp_path / "bin")
        return fake_machine(tmp_path, domain=domain, shell=shell)

    return made


def systemctl(states, *, load="loaded", job="", jobs=""):
    return SHOW.format(states=states, load=load, job=job, jobs=jobs)


def in_turn(tmp_path, *states):
    """Return shell lines that say one state per call, the last for ever."""
    cases = " ".join(f"{turn}) s={state} ;;" for turn, state in enumerate(states[:-1]))
    count = tmp_path / "count"
    count.write_text("")
    return (
        f'n=$(wc -c <"{count}"); printf . >>"{count}"; case $((n)) in {cases} *) s={states[-1]} ;; esac; '
        'echo "ActiveState=$s"'
    )


def test_an_active_unit_ends_the_wait(local):
    waits.wait_for_unit(local(systemctl("echo ActiveState=active")), "nginx", timeout=5)


def test_a_unit_on_its_way_is_waited_for(local, tmp_path):
    states = in_turn(tmp_path, "inactive", "activating", "activating", "active")
    waits.wait_for_unit(local(systemctl(states)), "nginx", timeout=20)


def test_a_service_has_to_stay_active_for_a_second(local, tmp_path):
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    since = int(uptime * 1e6)
    states = f'echo "ActiveState=active"; echo "ActiveEnterTimestampMonotonic={since}"; echo "Type=simple"'
    waits.wait_for_unit(local(systemctl(states)), "app.service", timeout=30)
    assert float(Path("/proc/uptime").read_text().split()[0]) - uptime >= 0.98


def test_a_service_in_a_restart_loop_is_told_by_its_last_exit_status(local):
    ever = 10**12
    states = f'echo "ActiveState=active"; echo "ActiveEnterTimestampMonotonic={ever}"; '
    states += 'echo "NRestarts=12"; echo "ExecMainStatus=203"'
    with pytest.raises(
        WaitTimeout, match=r"unit app.service; last seen: restarted 12 times, last exit status 203"
    ):
        waits.wait_for_unit(local(systemctl(states)), "app.service", timeout=1)


def test_a_failed_unit_ends_the_wait_with_its_journal(local):
    with pytest.raises(UnitFailed, match=r"nginx will not become active: .*ActiveState=failed") as failed:
        waits.wait_for_unit(local(systemctl("echo ActiveState=failed")), "nginx", timeout=60)
    assert "status of status --no-pager --full --lines=0 -- nginx" in failed.value.details
    assert "--unit=nginx" in failed.value.details


def test_an_unknown_unit_ends_the_wait(local):
    with pytest.raises(UnitFailed, match="LoadState=not-found"):
        waits.wait_for_unit(local(systemctl("echo ActiveState=inactive", load="not-found")), "x", timeout=60)


def test_an_idle_unit_that_nothing_will_start_ends_the_wait(local):
    with pytest.raises(UnitFailed, match="ActiveState=inactive"):
        waits.wait_for_unit(local(systemctl("echo ActiveState=inactive")), "x", timeout=60)


def test_an_idle_unit_is_waited_for_while_the_system_still_starts(local):
    idle = systemctl("echo ActiveState=inactive", jobs="echo 12 cloud-final.service start running")
    with pytest.raises(WaitTimeout, match=r"timed out after 1 s waiting for unit x; last seen: .*inactive"):
        waits.wait_for_unit(local(idle), "x", timeout=1)


def test_a_unit_name_is_never_shell(local, tmp_path):
    with pytest.raises(UnitFailed):
        waits.wait_for_unit(local(systemctl("exit 1")), f"$(touch {tmp_path}/owned)", timeout=5)
    assert not (tmp_path / "owned").exists()


def test_a_port_is_waited_for_until_it_opens_and_until_it_closes(local):
    machine = local()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        timer = threading.Timer(0.5, server.listen)
        timer.start()
        waits.wait_for_port(machine, port, host="127.0.0.1", closed=False, timeout=10)
        timer.join()
    waits.wait_for_port(machine, port, host="127.0.0.1", closed=True, timeout=10)


def test_a_port_that_stays_closed_is_told(local):
    with pytest.raises(WaitTimeout, match="port 1 of localhost to be open; last seen: closed"):
        waits.wait_for_port(local(), 1, host="localhost", closed=False, timeout=1)


def test_a_file_is_waited_for_until_it_comes_and_goes(local, tmp_path):
    machine = local()
    flag = tmp_path / "a flag"
    timer = threading.Timer(0.3, flag.touch)
    timer.start()
    waits.wait_for_file(machine, str(flag), absent=False, timeout=10)
    timer.join()
    flag.unlink()
    waits.wait_for_file(machine, str(flag), absent=True, timeout=10)


def test_a_file_that_never_comes_is_told(local, tmp_path):
    with pytest.raises(WaitTimeout, match="to be there; last seen: absent"):
        waits.wait_for_file(local(), str(tmp_path / "never"), absent=False, timeout=1)


def test_a_command_is_repeated_until_it_succeeds(machine, shell):
    shell.expect("curl", output("", exit_code=7, stderr="refused"), output("hello"))
    assert waits.wait_until_succeeds(machine, "curl x", user=None, timeout=10, every=0.01).stdout == "hello"
    assert shell.ran == ["curl x"] * 2


def test_a_command_that_never_succeeds_tells_its_last_output(machine, shell):
    shell.expect("curl", output("half", exit_code=7, stderr="a\nConnection refused\n"))
    with pytest.raises(WaitTimeout, match="last seen: exit code 7: Connection refused") as late:
        waits.wait_until_succeeds(machine, "curl x", user=None, timeout=0.3, every=0.05)
    assert "half" in late.value.details


def test_a_command_that_hangs_has_what_is_left_of_the_waits_time_out(machine, shell, domain, monkeypatch):
    now, limits = [0.0], []
    monkeypatch.setattr(domain, "clock", lambda: now[0])

    def run(command, *, user, timeout, check):
        limits.append(timeout)
        now[0] += 3
        if now[0] > 5:
            raise CommandTimeout("late", details="--- stdout\nhalf", result=output("half"))
        return output("", exit_code=7)

    monkeypatch.setattr(shell, "run", run)
    with pytest.raises(
        WaitTimeout, match="after 5 s waiting for 'curl x' .*last seen: it had not ended"
    ) as late:
        waits.wait_until_succeeds(machine, "curl x", user=None, timeout=5, every=0.01)
    assert "half" in late.value.details
    assert limits == [5, 2]


def test_a_guest_that_dies_ends_the_wait(machine, shell, domain):
    shell.expect("up()", shell.hang)
    timer = threading.Timer(0.2, domain.end, ["QEMU died: killed by signal 9"])
    timer.start()
    with pytest.raises(GuestGone, match=r"killed by signal 9.* while waiting for /x to be there"):
        waits.wait_for_file(machine, "/x", absent=False, timeout=600)


def test_a_guest_that_hangs_ends_the_wait(machine):
    machine.shell.expect("up()", CommandTimeout("late", result=output("absent")))
    with pytest.raises(WaitTimeout, match="web: hangs"):
        waits.wait_for_file(machine, "/x", absent=False, timeout=1)


def test_the_fake_shell_is_strict():
    with pytest.raises(AssertionError, match="no test prepared"):
        FakeShell().run("true")
