"""One guest, switched off and on in every way that it survives; the tests build on one another."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import DomainFailed, GuestError, GuestGone, SavepointGone, WaitTimeout
from tests.guest_specs import SMALL


@kvm.guest(scope="module")
def victim():
    return replace(SMALL, reset="never", boot_timeout=1234)


BOOT_ID = ["cat", "/proc/sys/kernel/random/boot_id"]


def test_a_reboot_is_another_boot_of_the_same_system(victim):
    resets = []
    before = victim.run(BOOT_ID).stdout
    victim.run("echo kept >/root/kept; sync; touch /run/lost")
    victim.machine.domain.on_reset(lambda: resets.append(1))
    victim.reboot()
    assert resets, "libvirt tells of each attempt, and a kernel makes several"
    assert victim.run(BOOT_ID).stdout != before
    assert victim.read_text("/root/kept") == "kept\n"
    assert not victim.run("test -e /run/lost", check=False).ok
    assert victim.journal("systemd-journald", lines=1)


def test_a_guest_that_is_paused_goes_on_where_it_was(victim):
    with victim.start("while echo tick; do sleep 0.2; done") as clock:
        ticks = clock.lines()
        next(ticks)
        victim.pause()
        assert victim.machine.domain.state().value == "paused"
        before = clock.so_far().stdout
        victim.resume()
        next(ticks)
        assert clock.so_far().stdout.startswith(before)
    assert victim.run("echo awake").stdout == "awake\n"


def test_a_crash_is_noticed_and_a_hard_reboot_brings_the_guest_back(victim):
    before = victim.run(BOOT_ID).stdout
    assert "sysrq triggered crash" in victim.crash()
    assert victim.state == "running"  # QEMU does; that is what the next line is about
    resets = []
    victim.machine.domain.on_reset(lambda: resets.append(1))
    victim.reboot(hard=True)
    assert resets
    assert victim.run(BOOT_ID).stdout != before


@pytest.mark.parametrize("identity", ["auto", "unique"])
def test_a_power_cut_first_thing_takes_nothing_of_what_the_guest_is(boot, identity):
    guest = boot(replace(SMALL, identity=identity), name="cut")
    machine_id = guest.read_text("/etc/machine-id")
    guest.reboot(hard=True)  # and its host key is the one that is pinned
    assert guest.hostname == "cut"
    assert guest.read_text("/etc/machine-id") == machine_id


def test_only_a_guest_that_is_off_can_be_switched_on(victim):
    with pytest.raises(GuestError, match="victim is on already") as raised:
        victim.power_on()
    assert "reboot() restarts it" in raised.value.resolution


def test_a_guest_that_was_off_is_the_same_machine(victim):
    victim.run("echo kept >/root/kept; sync; echo before it was off >/dev/console", user="root")
    victim.console.wait("before it was off", since=0, timeout=60)
    was, printed = victim.machine, victim.console.offset()
    savepoint, forward = victim.savepoint(), victim.forward(22)
    assert len(savepoints_in(was.folder / "root.qcow2")) == 1
    victim.power_off()
    refuse_once(victim)
    victim.power_on()
    assert victim.machine.domain.uuid == was.domain.uuid
    assert victim.machine.domain.pid != was.domain.pid
    assert victim.machine.timeouts.boot == 1234
    assert victim.read_text("/root/kept") == "kept\n"
    assert "before it was off" in victim.console.text()
    assert "Linux version" in victim.console.text(since=printed)
    with pytest.raises(SavepointGone, match="was reset, or switched off, meanwhile"):
        savepoint.restore()
    forward.close()
    savepoint.drop()
    assert savepoints_in(victim.machine.folder / "root.qcow2") == []
    with victim.savepoint():
        victim.run(["touch", "/root/lost"])
    assert not victim.run(["test", "-e", "/root/lost"], check=False).ok


def savepoints_in(disk):
    command = ["qemu-img", "info", "--force-share", "--output=json", disk]
    told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return [each["name"] for each in told.get("snapshots", [])]


def refuse_once(guest):
    """A machine that QEMU refuses stays off, and can be switched on when the cause is gone."""
    disk = guest.machine.folder / "root.qcow2"
    aside = disk.rename(disk.with_name("aside"))
    with pytest.raises(DomainFailed, match=r"root\.qcow2"):
        guest.power_on()
    assert guest.state == "ended"
    aside.rename(disk)


def test_a_guest_that_switched_itself_off_can_be_switched_on(victim):
    victim.start(["systemctl", "poweroff"], user="root")
    assert victim.machine.domain.wait_end(600)
    victim.power_on()
    assert victim.read_text("/root/kept") == "kept\n"


@pytest.mark.kvm(allow_kernel_errors=["sysrq triggered crash"])
def test_a_panic_ends_a_wait_at_once(victim):
    victim.start("sleep 3; echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger")
    with pytest.raises(GuestGone, match=r"panicked while waiting for /never to be there: .*sysrq"):
        victim.wait_for_file("/never", timeout=600)


def test_a_guest_that_does_not_shut_down_is_told(victim):
    with pytest.raises(WaitTimeout, match="did not shut down within 2 s"):
        victim.shutdown(button=True, timeout=2)  # its kernel has panicked
