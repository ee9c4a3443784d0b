"""Runs a blocking call, and stops it early when the guest dies.

A command over SSH cannot notice that the guest's kernel has panicked, because
its connection only falls silent. The console shows the panic at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from pytest_kvm.errors import GuestGone, SshUnavailable
from pytest_kvm.machine.console_errors import ConsoleWatch
from pytest_kvm.machine.machine import Machine

T = TypeVar("T")
_LOOK_EVERY = 0.25


def run_watched(call: Callable[[], T], *, check: Callable[[], None], abandon: Callable[[], None]) -> T:
    """Return what ``call`` returns, unless the guest dies first.

    Args:
        call: Blocks; runs in a thread of its own.
        check: Called a few times per second; raises when waiting on makes no
            sense. Called once more when ``call`` lost the guest, because
            ``check`` may know a better reason.
        abandon: Makes ``call`` return soon; called when ``check`` raised or the
            user pressed Ctrl-C.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="kvm-watched") as pool:
        future = pool.submit(call)
        try:
            while not wait([future], timeout=_LOOK_EVERY).done:
                check()
        except BaseException:
            abandon()
            raise
    try:
        return future.result()
    except (GuestGone, SshUnavailable):
        check()
        raise


def run_while_alive(machine: Machine, call: Callable[[], T], *, what: str) -> T:
    """Return what ``call`` returns, unless the guest dies first; ``call`` waits for something in the guest.

    Args:
        machine: The guest.
        call: Blocks over the guest's SSH connection.
        what: What ``call`` waits for, for the message.

    Raises:
        GuestGone: The guest ended, panicked or fell into emergency mode; with
            the console's tail.
    """
    watch = ConsoleWatch(machine.console, since=machine.console.offset(), clock=machine.domain.clock)

    def check() -> None:
        if not machine.domain.alive():
            raise GuestGone(
                f"{machine.name} ended ({machine.domain.end_reason()}) while waiting for {what}",
                details=machine.console.tail(),
            )
        if found := watch.look():
            raise GuestGone(
                f"{machine.name}: {found.symptom.says} while waiting for {what}: {found.line}",
                details=machine.console.tail(),
            )

    return run_watched(call, check=check, abandon=machine.shell.close)
