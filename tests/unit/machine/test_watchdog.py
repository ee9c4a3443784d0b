from __future__ import annotations

import threading

import pytest

from pytest_kvm.errors import CommandFailed, GuestGone, SshUnavailable
from pytest_kvm.machine.watchdog import run_watched, run_while_alive
from tests.fakes import output


def test_the_result_of_the_call_comes_back(machine, shell):
    assert run_while_alive(machine, lambda: 5, what="nothing") == 5
    assert not shell.closed.is_set()


def test_an_error_of_the_call_comes_back(machine):
    def fails():
        return output("", exit_code=1).check()

    with pytest.raises(CommandFailed):
        run_while_alive(machine, fails, what="nothing")


def test_a_panic_ends_a_call_that_hangs(machine, shell, printed):
    timer = threading.Timer(0.1, printed, ["Kernel panic - not syncing: Fatal exception\n"])
    timer.start()
    with pytest.raises(GuestGone, match=r"panicked while waiting for port 80: Kernel panic.*Fatal exception"):
        run_while_alive(machine, shell.hang, what="port 80")
    assert shell.closed.is_set()


def test_the_end_of_the_domain_ends_a_call_that_hangs(machine, shell, domain):
    domain.end("guest shutdown")
    with pytest.raises(GuestGone, match=r"web ended \(guest shutdown\) while waiting for port 80"):
        run_while_alive(machine, shell.hang, what="port 80")


def test_a_lost_connection_is_told_by_its_better_known_reason(machine, domain):
    def lost():
        domain.end("QEMU died")
        raise SshUnavailable("connection reset")

    with pytest.raises(GuestGone, match="QEMU died"):
        run_while_alive(machine, lost, what="port 80")


def test_ctrl_c_leaves_no_thread_behind(shell):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_watched(shell.hang, check=interrupted, abandon=shell.close)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kvm-watched")]
