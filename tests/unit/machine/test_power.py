from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from pytest_kvm.errors import CommandFailed, CommandTimeout, KernelPanicked, SshUnavailable, WaitTimeout
from pytest_kvm.machine import power
from pytest_kvm.settings import Timeouts
from tests.fakes import output

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


@pytest.fixture
def booting(machine, sshd):
    return replace(
        machine, access=replace(machine.access, port=sshd), timeouts=Timeouts(boot=10, login=3, shutdown=2)
    )


def test_a_reboot_ends_with_another_boot_id(booting, shell):
    shell.expect("systemctl reboot", SshUnavailable("the session was ended"))
    shell.expect(BOOT_ID, "one\n", "one\n", "two\n")
    power.reboot(booting, hard=False, timeout=20)
    assert shell.ran == [BOOT_ID, "systemctl reboot && sleep 3600", BOOT_ID, BOOT_ID]
    assert shell.connected


def test_the_kernels_last_words_end_the_wait_for_the_old_system(booting, shell, printed):
    def last_words():
        printed("[  99.1] reboot: Restarting system\n")
        return shell.hang()

    shell.expect("systemctl reboot", last_words)
    shell.expect(BOOT_ID, "one\n", "two\n")
    power.reboot(booting, hard=False, timeout=20)


def test_a_panic_during_a_reboot_is_named(booting, shell, printed):
    def panics():
        printed("Kernel panic - not syncing: Fatal exception\n")
        return shell.hang()

    shell.expect("systemctl reboot", panics)
    shell.expect(BOOT_ID, "one\n")
    with pytest.raises(KernelPanicked, match="Fatal exception"):
        power.reboot(booting, hard=False, timeout=600)


def test_a_panic_of_an_earlier_boot_does_not_count(booting, shell, printed, domain):
    printed("Kernel panic - not syncing: sysrq triggered crash\n")
    shell.expect(BOOT_ID, "two\n")
    power.reboot(booting, hard=True, timeout=20)
    assert domain.done == ["suspend", "reset", "resume"]


def test_what_the_console_showed_before_the_guest_was_off_does_not_count(booting, shell, printed, domain):
    printed("Kernel panic - not syncing: sysrq triggered crash\n")
    domain.suspend()
    power.power_on(booting, timeout=20)
    assert domain.done == ["suspend", "resume"]
    assert shell.connected


def test_a_refused_reboot_is_told(booting, shell):
    shell.expect("systemctl reboot", output("", exit_code=1, stderr="Operation inhibited"))
    shell.expect(BOOT_ID, "one\n")
    with pytest.raises(CommandFailed, match="Operation inhibited"):
        power.reboot(booting, hard=False, timeout=20)


def test_a_system_that_never_goes_down_is_told(booting, shell):
    shell.expect("systemctl reboot", output("", exit_code=143))
    shell.expect(BOOT_ID, "one\n")
    with pytest.raises(WaitTimeout, match="web to restart; last seen: still the boot from before"):
        power.reboot(booting, hard=False, timeout=2)


def test_a_shutdown_waits_for_the_end_of_qemu(booting, shell, domain):
    shell.expect("systemctl poweroff", "")
    timer = threading.Timer(0.1, domain.end, ["guest shutdown"])
    timer.start()
    power.shutdown(booting, button=False, timeout=20)
    assert domain.done == []
    assert not shell.connected


@pytest.mark.parametrize("answer", [output("", exit_code=1), CommandTimeout("hangs", result=output(""))])
def test_the_power_button_helps_where_ssh_does_not(booting, shell, domain, answer):
    shell.expect("systemctl poweroff", answer)
    domain.on_shutdown = lambda: domain.end("guest shutdown")
    power.shutdown(booting, button=False, timeout=20)
    assert domain.done == ["shutdown"]


def test_a_guest_that_ignores_the_button_is_told(booting, printed):
    printed("A stop job is running for sleep.service\n")
    with pytest.raises(
        WaitTimeout, match="web did not shut down within 0 s(.|\n)*A stop job(.|\n)*power_off"
    ):
        power.shutdown(booting, button=True, timeout=0.1)


def test_a_crash_returns_the_panics_line(booting, shell, printed):
    def crashes():
        printed("[ 9.9] Kernel panic - not syncing: sysrq triggered crash\n")
        return output("")

    shell.expect("sysrq", crashes)
    assert power.crash(booting, nmi=False) == "[ 9.9] Kernel panic - not syncing: sysrq triggered crash"


def test_an_nmi_that_the_kernel_ignores_is_told(booting, domain):
    with pytest.raises(WaitTimeout, match="Kernel panic"):
        power.crash(booting, nmi=True, timeout=0.1)
    assert domain.done == ["nmi"]
