"""A guest's verbs that switch it off and on."""

from __future__ import annotations

import time

from pytest_kvm.handles.booted import Booted
from pytest_kvm.machine import power
from pytest_kvm.machine.savepoints import renew_if_due


class PowerVerbs(Booted):
    """Time-outs are seconds; None takes the run's."""

    def reboot(self, *, hard: bool = False, timeout: float | None = None) -> None:
        """Restart and log in again; a different boot id proves that it happened.

        Args:
            hard: Press the reset button: nothing is stopped or written back.
            timeout: Seconds until the login.

        Raises:
            BootFailed: It did not come back.
        """
        limits = self._parts.timeouts
        limit = limits.shutdown + limits.boot if timeout is None else timeout
        machine, begun = self.machine, time.monotonic()
        try:
            power.reboot(machine, hard=hard, timeout=limit)
        finally:
            self._on_reboot(time.monotonic() - begun)

    def shutdown(self, *, button: bool = False, timeout: float | None = None) -> None:
        """Switch off in good order; the guest is gone afterwards.

        Args:
            button: Press the power button (ACPI) instead of asking systemd.
            timeout: Seconds.

        Raises:
            WaitTimeout: It still runs.
        """
        limit = self._parts.timeouts.shutdown if timeout is None else timeout
        power.shutdown(self.machine, button=button, timeout=limit)

    def power_off(self) -> None:
        """Pull the cable; the guest is gone afterwards."""
        power.power_off(self.machine)

    def crash(self, *, nmi: bool = False) -> str:
        """Make the kernel panic and return the line in which it says so."""
        return power.crash(self.machine, nmi=nmi)

    def pause(self) -> None:
        """Stop its processors; commands hang until :meth:`resume`."""
        self.machine.domain.suspend()

    def resume(self) -> None:
        """Let its processors go on."""
        machine = self.machine
        machine.domain.resume()
        renew_if_due(machine)
