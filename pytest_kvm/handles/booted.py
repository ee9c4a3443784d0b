"""What every group of a guest's verbs stands on: a boot that becomes a machine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pytest_kvm.machine.machine import Machine

State = Literal["booting", "running", "ended", "failed"]


def _nothing() -> None:
    """Stand in for nobody who wants to know."""


def _no_reboot(seconds: float) -> None:
    """Stand in for nobody who wants to know."""
    del seconds


class Booted:
    """A guest that boots in the background.

    Every verb waits until it is ready, and raises the boot's own
    :class:`~pytest_kvm.errors.BootFailed` if it never was.

    Args:
        name: How logs and messages call it.
        boot: Becomes the guest's parts when it is ready.
        summary: What it is made of, for ``repr()``.
        before_use: Called before each verb that may change the guest.
        on_reboot: Called with the seconds of each reboot, also of one that failed.
    """

    def __init__(
        self,
        name: str,
        boot: Future[Machine],
        *,
        summary: str = "",
        before_use: Callable[[], None] = _nothing,
        on_reboot: Callable[[float], None] = _no_reboot,
    ) -> None:
        self.name = name
        self._boot = boot
        self._summary = summary
        self._before_use = before_use
        self._on_reboot = on_reboot

    def __repr__(self) -> str:
        return f"<Guest {self.name}: {', '.join(filter(None, [self._summary, self.state]))}>"

    @property
    def state(self) -> State:
        """What it is at; asks nobody and waits for nothing."""
        if not self._boot.done():
            return "booting"
        if self._boot.cancelled() or self._boot.exception() is not None:
            return "failed"
        return "running" if self._boot.result().domain.alive() else "ended"

    @property
    def machine(self) -> Machine:
        """Its parts, for what no verb covers; waits until it is ready.

        Whoever has them may change the guest, so this counts as a use of it.
        """
        self._before_use()
        return self._boot.result()

    @property
    def _parts(self) -> Machine:
        """Its parts, for views that leave the guest as it is."""
        return self._boot.result()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the guest is ready.

        Raises:
            BootFailed: It did not become ready; the subclass says why.
            TimeoutError: It still boots after ``timeout`` seconds, and goes on.
        """
        self._boot.result(timeout)

    def _seconds(self, timeout: float | None) -> float:
        return self._parts.timeouts.command if timeout is None else timeout


def hand_over(guest: Booted, boot: Future[Machine]) -> None:
    """Let a handle go on as another machine: a clone that stands where this one was put back to.

    No verb, because it is not for tests: the machine that was there is not removed.
    """
    guest._boot = boot  # noqa: SLF001 - the same module's, and no verb: see above
