"""A failure names the guests that do not answer, and shows what is known of them: a suite of its own."""

from __future__ import annotations

import re

import pytest

SUITE = r"""
import os
import signal
import threading
import unittest

import pytest
import pytest_kvm as kvm

FREEZE = "truncate -s 32M disk; mkfs.ext4 -q disk; mount -o loop disk /mnt; fsfreeze -f /mnt"
STOP_ALL = "read line; pkill -STOP qemu-ga; pkill -STOP sshd; echo stopped >/dev/console"
# Writes 0 to IA32_APIC_BASE.
NO_INTERRUPTS = "import os; os.pwrite(os.open('/dev/cpu/0/msr', os.O_WRONLY), bytes(8), 0x1b)"


@kvm.guest(scope="module")
def vm():
    return kvm.GuestSpec(memory="512MiB", vcpus=1)


@kvm.guest(scope="module")
def other():
    return kvm.GuestSpec(memory="512MiB", vcpus=1)


def stop_qemu(vm):
    vm.run("true")
    os.kill(vm.machine.domain.pid, signal.SIGSTOP)


def stop_sshd_and_agent(vm):
    begin = vm.console.offset()
    vm.start(STOP_ALL).write("go\n")
    vm.wait_for_console("^stopped", since=begin)


def test_answers(vm):
    vm.run("sleep 1000", timeout=1)


def test_qemu_is_stopped(vm):
    stop_qemu(vm)
    vm.run("true", timeout=2)


def test_paused(vm):
    vm.run("true")
    vm.pause()
    vm.run("true", timeout=2)


def test_task_hangs(vm):
    vm.run(FREEZE)
    vm.run("echo >/mnt/file", timeout=2)


def test_no_sshd(vm):
    vm.run("true")
    vm.agent.exec(["systemctl", "stop", "ssh.socket", "ssh"])
    vm.run("sleep 1000", timeout=2)


def test_only_the_kernel(vm):
    vm.run("sysctl -w kernel.sysrq=1; dmesg -n 1")
    stop_sshd_and_agent(vm)
    vm.run("true", timeout=2)


def test_no_sysrq(vm):
    stop_sshd_and_agent(vm)
    vm.run("true", timeout=2)


def test_silent_kernel(vm):
    vm.run("modprobe msr")
    vm.run(["python3", "-c", NO_INTERRUPTS])
    vm.run("true", timeout=2)


def test_panic(vm):
    vm.crash()
    assert "mine" == "other"


@pytest.mark.kvm(gates=kvm.Gates(journal="notice"))
def test_gates_show_no_look_of_ours(vm):
    vm.run("echo loud | systemd-cat -p notice")
    assert "mine" == "other"


@pytest.mark.kvm(gates=kvm.Gates(journal="err"))
def test_gates_of_those_that_answer(vm, other):
    for each in (vm, other):
        each.run("echo 'disk on fire' | systemd-cat -p err")
    stop_qemu(vm)
    vm.run("true", timeout=2)


def test_own_failure(vm):
    vm.pause()
    assert "mine" == "other"


def test_qemu_was_killed(vm):
    os.kill(vm.machine.domain.pid, signal.SIGKILL)
    assert vm.machine.domain.wait_end(60)
    assert "mine" == "other"


@pytest.mark.timeout(5, method="signal", func_only=True)
def test_of_pytest_timeout(vm):
    vm.pause()
    threading.Event().wait()


@pytest.fixture
def hangs(vm):
    vm.pause()
    vm.wait_for_console("never", timeout=1)


def test_fixture(hangs):
    pass


@pytest.fixture
def hangs_late(vm):
    yield
    vm.pause()
    vm.wait_for_console("never", timeout=1)


def test_teardown(hangs_late):
    pass


class TestOfUnittest(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _guest(self, vm):
        self.vm = vm

    def test_of_unittest(self):
        self.vm.pause()
        self.assertEqual("mine", "other")


@pytest.mark.xfail(raises=(kvm.CommandTimeout, kvm.SshUnavailable), strict=True)
def test_expected(vm):
    vm.run("true")
    vm.pause()
    vm.run("true", timeout=2)


def test_skipped(vm):
    vm.pause()
    pytest.skip("no reason")


def test_last(vm, other):
    for each in (vm, other):
        each.run("true")
"""
PAUSED = "vm does not answer: it is paused"
STOPPED = r"vm does not answer: QEMU, process \d+, is stopped by a signal"
LATE = r"(?:CommandTimeout|SshUnavailable): .*; "
FAIL = {
    "test_answers": [r"CommandTimeout: vm: `sleep 1000`: still running after [0-9.]+ s$"],
    "test_qemu_is_stopped": [f"{LATE}{STOPPED}"],
    "test_paused": [f"{LATE}{PAUSED}"],
    "test_task_hangs": [
        rf"{LATE}vm has tasks that are blocked in its kernel: bash \(\d+\)",
        r"task bash \(\d+\): bash -c .*echo >/mnt/file",
        r"^\[<0>\] mnt_want_write\+",
    ],
    "test_no_sshd": [f"{LATE}vm runs, but its sshd is not there: connections are closed at once"],
    "test_only_the_kernel": [
        f"{LATE}vm does not answer: its kernel runs, but neither sshd nor guest agent does",
        "^QEMU runs, the guest agent does not answer, sshd does not answer$",
        "sysrq: Show Blocked State",
        "NMI backtrace for cpu 0",
        r"task:sshd +state:T ",
        "^RIP=",
    ],
    "test_no_sysrq": [
        f"{LATE}vm does not answer: its kernel runs, but neither sshd nor guest agent does",
        "sysrq_always_enabled",
    ],
    "test_silent_kernel": [f"{LATE}vm does not answer: its kernel is silent", "^RIP="],
    "test_panic": [
        "AssertionError: assert 'mine' == 'other'",
        "^vm does not answer: its kernel has panicked$",
    ],
    "test_gates_of_those_that_answer": [f"{LATE}{STOPPED}", "other: messages of priority err in its journal"],
    "test_gates_show_no_look_of_ours": ["AssertionError", "vm: messages of priority notice", "loud"],
    "test_own_failure": ["AssertionError: assert 'mine' == 'other'", f"^{PAUSED}$"],
    "test_qemu_was_killed": ["AssertionError: assert 'mine' == 'other'", "^vm has ended: .*signal 9"],
    "test_of_pytest_timeout": [r"Timeout \(>5.0s\) from pytest-timeout", f"^{PAUSED}$"],
    "test_of_unittest": ["AssertionError: 'mine' != 'other'", f"^{PAUSED}$"],
}
"""What the failures show, as regular expressions."""
ERROR = {name: [rf"WaitTimeout: .*; {PAUSED}$"] for name in ("test_fixture", "test_teardown")}


def test_nothing_takes_the_place_of_a_failure(outcome):
    assert outcome.names("failure") == set(FAIL), outcome.shown
    assert outcome.names("error") == set(ERROR), outcome.shown
    assert outcome.names("skipped") == {"test_expected", "test_skipped"}
    assert set(outcome.cases) == {*FAIL, *ERROR, "test_expected", "test_skipped", "test_last"}
    assert "INTERNALERROR" not in outcome.shown


@pytest.mark.parametrize("name", [*FAIL, *ERROR])
def test_a_failure_says_who_does_not_answer(outcome, name):
    kind, patterns = ("failure", FAIL[name]) if name in FAIL else ("error", ERROR[name])
    text = outcome.text(name, kind)
    for pattern in patterns:
        assert re.search(pattern, text, re.MULTILINE), text
    assert "could not find out everything" not in outcome.shown


def test_a_look_at_a_guest_is_nothing_that_gates_forbid(outcome):
    text = outcome.text("test_gates_show_no_look_of_ours", "failure")
    assert "loud" in text
    assert "sshd" not in text


def test_a_dump_of_tasks_is_not_shown_as_the_end_of_the_console(outcome):
    _, _, shown = outcome.shown.partition(" test_only_the_kernel ____")
    _, found, console = shown.partition("console of vm")
    console, _, _ = console.partition("\n____")
    assert found
    assert "stopped" in console
    assert "sysrq" not in console
