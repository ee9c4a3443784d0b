"""The machines of one guest: its first, those that follow resets, and one that is switched on again."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from pytest_kvm.machine import power
from pytest_kvm.provision.events import Tier

if TYPE_CHECKING:
    from pytest_kvm.machine.machine import Machine
    from pytest_kvm.provision.run_resources import Lazy
    from pytest_kvm.provision.starter import GuestStarter, Started


class GuestMachines:
    """Knows which of a guest's machines the guest's handle leads to, and replaces it by another.

    Args:
        first: Gives the guest's first machine when it is ready.
        starter: Starts the machines that follow the first.
        lead_handle_to: Makes the handle lead to another machine.
    """

    def __init__(
        self,
        first: Future[Started],
        starter: Lazy[GuestStarter],
        *,
        lead_handle_to: Callable[[Future[Machine]], None],
    ) -> None:
        self._first = first
        self._starter = starter
        self._lead_handle_to = lead_handle_to
        self._numbers = itertools.count(2)
        self._current: Started | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the guest has become ready."""
        return self._first.done()

    @property
    def current(self) -> Started:
        """The machine that the handle leads to; waits until the guest is ready."""
        if self._current is None:
            self._current = self._first.result()
        return self._current

    def start_another(self) -> Tier:
        """Start a machine like the first one and remove the current one; return how it was started."""
        former = self.current
        request = former.request.successor(next(self._numbers))
        fresh = self._starter.get().start_like(former, request)
        self._replace_current(fresh)
        former.undo.close()
        return fresh.events[-1].tier or "cold"

    def power_on(self, timeout: float) -> None:
        """Switch on the guest's machine, which has ended, and log in.

        Args:
            timeout: Seconds until the login.

        Raises:
            BootFailed: The machine did not come up; its subclass says where it stuck.
            HypervisorError: libvirt refused the domain; the machine stays off.
        """
        former = self.current
        printed = former.machine.console.offset()
        fresh = self._starter.get().power_on_again(former)
        self._replace_current(fresh)
        power.log_in_after_power_on(fresh.machine, since=printed, timeout=timeout)

    def _replace_current(self, started: Started) -> None:
        self._current = started
        machine: Future[Machine] = Future()
        machine.set_result(started.machine)
        self._lead_handle_to(machine)
