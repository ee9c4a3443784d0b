"""What a guest's handle asks and tells the run that the guest belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_kvm.errors import GuestError
from pytest_kvm.handles.transcript import Transcript

if TYPE_CHECKING:
    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.machine.machine import Machine


def untold(guest: Guest, error: BaseException | None) -> None:
    """Do nothing."""
    del guest, error


def _ignore_use(guest: Guest) -> None:
    """Do nothing."""
    del guest


def _ignore_reboot(seconds: float) -> None:
    """Do nothing."""
    del seconds


def _refuse_start() -> Machine:
    raise GuestError("this guest belongs to no run that could start its machine again")


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Functions of the run; by default those of no run."""

    on_booted: Callable[[Guest, BaseException | None], None] = untold
    """Called each time that a caller waits for the guest, with the guest and its boot's error
    (None: it is ready); what it raises is raised to that caller."""
    before_use: Callable[[Guest], None] = _ignore_use
    """Called with the guest before each verb that may change it."""
    start_again: Callable[[], Machine] = _refuse_start
    """Starts the guest's machine, which has ended, and returns it paused."""
    on_reboot: Callable[[float], None] = _ignore_reboot
    """Called with the seconds of each reboot or power-on, also of one that failed."""
    transcript: Transcript = field(default_factory=Transcript)
    """Notes what is done with the guest."""
