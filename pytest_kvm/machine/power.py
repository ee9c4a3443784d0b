"""Reboots, shuts down, switches off or crashes a guest, and logs in to one that was switched on again."""

from __future__ import annotations

import contextlib
import re

from pytest_kvm.errors import (
    CommandTimeout,
    GuestGone,
    HypervisorError,
    SshUnavailable,
    WaitTimeout,
)
from pytest_kvm.machine.boot import Boot, Phases
from pytest_kvm.machine.console_errors import ConsoleWatch
from pytest_kvm.machine.machine import Machine
from pytest_kvm.machine.readiness import log_in
from pytest_kvm.machine.watchdog import run_watched
from pytest_kvm.waiting import NotYet, time_left, wait_until

_ASK_TIMEOUT = 30.0
_RESTARTED = r"reboot: (?:Restarting system|machine restart)|SeaBIOS \(version|Linux version \d"
_PANIC_TIMEOUT = 30.0


def boot_id(machine: Machine) -> str:
    """Return the kernel's random name for this boot (random(4), ``boot_id``)."""
    return machine.shell.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout.strip()


def reboot(machine: Machine, *, hard: bool, timeout: float) -> None:
    """Restart the guest and log in again.

    Args:
        machine: The guest.
        hard: Press the reset button instead of asking systemd: nothing is
            stopped or written back first.
        timeout: Seconds until the login.

    Raises:
        BootFailed: The guest did not come back; its subclass says where it stuck.
        WaitTimeout: The guest still runs the same boot as before.
    """
    begun = machine.domain.clock()
    # Nothing of the old system survives a hard reset, so any sshd that answers after it is new.
    before = "" if hard else boot_id(machine)
    if hard:
        # Otherwise a panic that the old system is still printing would count as the new system's.
        machine.domain.suspend()
    offset = machine.console.offset()
    boot = _new_boot(machine)
    if hard:
        machine.domain.reset()
        machine.domain.resume()
    else:
        _ask_and_wait_until_down(boot, offset, timeout=timeout)
    machine.shell.close()

    def another_boot() -> None:
        _log_in(boot, until=begun + timeout)
        if boot_id(machine) == before:
            machine.shell.close()  # the old system was still shutting down
            raise NotYet("still the boot from before")

    wait_until(
        another_boot,
        describe=f"{machine.name} to restart",
        timeout=timeout,
        every=1.0,
        log=machine.log,
        clock=machine.domain.clock,
    )
    machine.hosts_file.forget()  # cloud-init may have written it anew, or the disk lost the last writes


def _ask_and_wait_until_down(boot: Boot, offset: int, *, timeout: float) -> None:
    """Ask systemd for a restart and return when the old system is down.

    The command in the guest runs until the shutdown kills it. If the host does
    not notice that, the kernel's last lines on the console tell it.
    """
    machine = boot.machine
    reader = machine.console.follow(since=offset)

    def check() -> None:
        boot.check()
        if any(re.search(_RESTARTED, window) for window in reader.windows()):
            raise _Down

    def ask() -> None:
        command = "systemctl reboot && sleep 3600"
        result = machine.shell.run(command, user="root", timeout=timeout, check=False)
        # 1: systemctl refused. The code of a signal or of sleep means that the guest goes down.
        if result.exit_code == 1:
            result.check()

    with contextlib.suppress(_Down, SshUnavailable, GuestGone):
        run_watched(ask, check=check, abandon=machine.shell.close)


class _Down(Exception):  # noqa: N818 - it is the wanted outcome
    """The old system is gone."""


def shutdown(machine: Machine, *, button: bool, timeout: float) -> None:
    """Shut the guest down in good order and return when QEMU has ended.

    Args:
        machine: The guest.
        button: Press the power button (ACPI) instead of asking systemd by SSH.
        timeout: Seconds.

    Raises:
        WaitTimeout: The guest still runs; with the console's tail.
    """
    if button or not _asked_to_power_off(machine):
        machine.domain.shutdown()
    ended = any(map(machine.domain.wait_end, time_left(timeout, clock=machine.domain.clock)))
    machine.shell.close()
    if not ended:
        raise WaitTimeout(
            f"{machine.name} did not shut down within {timeout:.0f} s",
            details=machine.console.tail(),
            resolution="power_off() pulls the cable",
        )


def _asked_to_power_off(machine: Machine) -> bool:
    """Ask systemd over SSH to power off; say whether it will. A connection that breaks off means yes."""
    try:
        return machine.shell.run(["systemctl", "poweroff"], user="root", timeout=_ASK_TIMEOUT, check=False).ok
    except (SshUnavailable, GuestGone):
        return True
    except CommandTimeout:
        return False


def power_off(machine: Machine) -> None:
    """Pull the power cable: the guest stops and writes back nothing; QEMU has ended on return."""
    machine.domain.destroy()
    machine.shell.close()


def power_on(machine: Machine, *, timeout: float) -> None:
    """Let a guest boot that was started again and is paused, and log in.

    Args:
        machine: The guest; the system that ran before prints nothing more on its console.
        timeout: Seconds until the login.

    Raises:
        BootFailed: The guest did not come up; its subclass says where it stuck.
    """
    begun = machine.domain.clock()
    boot = _new_boot(machine)
    machine.domain.resume()
    _log_in(boot, until=begun + timeout)


def _new_boot(machine: Machine) -> Boot:
    """Return a boot that begins now: what the console shows already is not part of it."""
    watch = ConsoleWatch(machine.console, since=machine.console.offset(), clock=machine.domain.clock)
    return Boot(machine=machine, phases=Phases(machine.log), watch=watch)


def _log_in(boot: Boot, *, until: float) -> None:
    """Log in by a time of the domain's clock, or within a second if that is over."""
    clock = boot.machine.domain.clock

    def left() -> float:
        return max(1.0, until - clock())

    log_in(boot, banner=left(), login=lambda: min(left(), boot.machine.timeouts.login))


def crash(machine: Machine, *, nmi: bool, timeout: float = _PANIC_TIMEOUT) -> str:
    """Make the guest's kernel panic, and return the console line that says so.

    Args:
        machine: The guest.
        nmi: Inject a non-maskable interrupt; the kernel panics on it only with
            ``kernel.unknown_nmi_panic=1``. Else use SysRq c
            (https://docs.kernel.org/admin-guide/sysrq.html).
        timeout: Seconds.

    Raises:
        WaitTimeout: The kernel did not panic.
    """
    offset = machine.console.offset()
    if nmi:
        machine.domain.inject_nmi()
    else:
        # In the background, and late enough for sshd to report first that the command was started.
        trigger = "(sleep 0.5; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &"
        machine.shell.run(f"echo 1 >/proc/sys/kernel/sysrq; {trigger}", user="root", timeout=_ASK_TIMEOUT)
    panic = machine.console.wait(r"^.*Kernel panic - not syncing.*$", timeout=timeout, since=offset)
    machine.kernel.expect_panic(since=offset)
    with contextlib.suppress(HypervisorError):
        machine.shell.close()
    return panic[0].strip()
