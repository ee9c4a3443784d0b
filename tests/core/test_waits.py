from __future__ import annotations

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import UnitFailed, WaitTimeout


def test_a_unit_that_runs_is_there_at_once(guest):
    guest.wait_for_unit("ssh")


def test_a_unit_on_its_way_is_waited_for(guest):
    try:
        guest.run("systemd-run --unit=late --property=Type=oneshot --remain-after-exit --no-block sleep 2")
        guest.wait_for_unit("late")
        assert guest.run("systemctl is-active late").stdout == "active\n"
    finally:
        guest.run("systemctl stop late", check=False)


def test_a_unit_that_fails_is_told_with_its_status_and_journal(guest):
    try:
        # A oneshot unit is not active before it has ended, however busy the machine is.
        unit = "systemd-run --unit=broken --no-block --property=Type=oneshot"
        guest.run(f"{unit} sh -c 'echo no such table >&2; exit 3'")
        with pytest.raises(UnitFailed, match=r"broken will not become active: .*failed") as failed:
            guest.wait_for_unit("broken")
        assert "status=3" in failed.value.details
        assert "no such table" in failed.value.details
    finally:
        guest.run("systemctl reset-failed broken", check=False)


LOOP = """
[Unit]
StartLimitIntervalSec=0
[Service]
ExecStart=/usr/bin/tail -f /run/%i
Restart=always
RestartSec=0.5
"""


def test_a_unit_that_is_restarted_is_not_active_before_it_stays(guest):
    guest.write_text("/run/systemd/system/loop@.service", LOOP)
    try:
        guest.run("systemctl daemon-reload; systemctl start --no-block loop@it")
        guest.wait_until("systemctl show --property=NRestarts loop@it | grep =[1-9]")
        with pytest.raises(WaitTimeout, match=r"loop@it.service; .*restarted \d+ times, last exit status 1:"):
            guest.wait_for_unit("loop@it.service", timeout=5)
        guest.run("touch /run/it")
        guest.wait_for_unit("loop@it.service")
        assert guest.run("systemctl is-active loop@it").stdout == "active\n"
    finally:
        guest.run("systemctl stop loop@it; rm -f /run/systemd/system/loop@.service /run/it")


def test_a_unit_that_does_not_exist_is_told(guest):
    with pytest.raises(UnitFailed, match="not-found"):
        guest.wait_for_unit("no-such-thing.service")


def test_a_unit_that_nothing_will_start_is_told(guest):
    with pytest.raises(UnitFailed, match="inactive"):
        guest.wait_for_unit("systemd-networkd-wait-online@nosuch.service")


def test_a_port_is_waited_for_until_it_opens_and_closes(guest):
    with guest.start("exec python3 -m http.server 8123"):
        guest.wait_for_port(8123)
        guest.wait_for_port(8123, host="10.0.2.15")
    guest.wait_for_port(8123, closed=True)


def test_a_file_is_waited_for_until_it_comes_and_goes(guest):
    with guest.start("sleep 1; touch '/run/a flag'; sleep 1; rm '/run/a flag'") as later:
        guest.wait_for_file("/run/a flag")
        guest.wait_for_file("/run/a flag", absent=True)
        later.wait()


def test_a_command_is_repeated_until_it_succeeds(guest):
    try:
        result = guest.wait_until("echo . >>/run/count; [ $(wc -l </run/count) -ge 3 ] && cat /run/count")
        assert result.stdout == ".\n.\n.\n"
    finally:
        guest.run("rm -f /run/count")


def test_a_line_of_the_journal_is_waited_for(guest):
    with guest.start(
        ["systemd-run", "--unit=talker", "--wait", "sh", "-c", "sleep 1; echo result: 42"]
    ) as talker:
        assert guest.wait_for_log(r"^result: \d+", unit="talker") == "result: 42"
        talker.wait()


def test_a_wait_without_time_looks_once(guest):
    guest.wait_for_file("/etc/hostname", timeout=0)
    with pytest.raises(WaitTimeout, match=r"/nonexistent to be there; last seen: absent"):
        guest.wait_for_file("/nonexistent", timeout=0)
    with pytest.raises(WaitTimeout, match=r"/never logged/ in the journal"):
        guest.wait_for_log("never logged", timeout=0)


def test_waits_in_vain_tell_what_was_seen_last(guest):
    with pytest.raises(WaitTimeout, match=r"port 9 of localhost to be open; last seen: closed"):
        guest.wait_for_port(9, timeout=1)
    with pytest.raises(WaitTimeout, match=r"/nonexistent to be there; last seen: absent"):
        guest.wait_for_file("/nonexistent", timeout=1)
    with pytest.raises(WaitTimeout, match=r"last seen: exit code 4: sorry"):
        guest.wait_until("echo sorry >&2; exit 4", timeout=1)
    with pytest.raises(WaitTimeout, match=r"last seen: it had not ended") as hung:
        guest.wait_until("echo half; sleep 600", timeout=2)
    assert "half" in hung.value.details
    with pytest.raises(WaitTimeout, match=r"/never logged/ in the journal"):
        guest.wait_for_log("never logged", timeout=2)
    # Nothing of those waits is left running in the guest.
    assert guest.run("pgrep -f 'tcp|nonexistent|sleep 600|never[ ]logged'", check=False).stdout == ""


def test_polling_sees_a_unit_end(guest):
    def is_active():
        return guest.run(["systemctl", "is-active", "watched"], check=False).ok

    guest.run("systemd-run --unit=watched sleep infinity")
    try:
        with kvm.polling(is_active, every=0.1):
            guest.run("sleep 0.5")
        with (
            pytest.raises(AssertionError, match="is_active is false: it returned False") as breach,
            kvm.polling(is_active, every=0.1),
        ):
            guest.run("systemctl stop watched")
        assert "; the look before saw True" in breach.value.__notes__[0]
    finally:
        guest.run("systemctl stop watched", check=False)
