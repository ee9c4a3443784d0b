"""A guest's verbs that wait for something inside it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_kvm.handles.booted import Booted
from pytest_kvm.machine import waits

if TYPE_CHECKING:
    from pytest_kvm.results import CommandResult
    from pytest_kvm.ssh.command_line import Command


class WaitVerbs(Booted):
    """Waits name what they wait for, log changes and end early when the guest dies.

    Time-outs are seconds; None takes the run's.
    """

    def wait_for_unit(self, unit: str, *, timeout: float | None = None) -> None:
        """Wait until a systemd unit is active.

        A service that counts as active once its process is there must have been
        active for a second, one that has been restarted for three.

        Raises:
            UnitFailed: It failed, does not exist, or nothing will start it;
                with its status and journal.
            WaitTimeout: With the last observation.
            GuestGone: The guest ended or panicked.
        """
        waits.wait_for_unit(self.machine, unit, timeout=self._seconds(timeout))

    def wait_for_port(
        self, port: int, *, host: str = "localhost", closed: bool = False, timeout: float | None = None
    ) -> None:
        """Wait until a TCP port takes connections from inside the guest.

        Args:
            port: TCP port.
            host: Name or address as the guest sees it.
            closed: Wait until it takes none.
            timeout: Seconds.

        Raises:
            WaitTimeout: With the last observation.
            GuestGone: The guest ended or panicked.
        """
        seconds = self._seconds(timeout)
        waits.wait_for_port(self.machine, port, host=host, closed=closed, timeout=seconds)

    def wait_for_file(self, path: str, *, absent: bool = False, timeout: float | None = None) -> None:
        """Wait until a path exists, or with ``absent`` until it does not.

        Raises:
            WaitTimeout: With the last observation.
            GuestGone: The guest ended or panicked.
        """
        waits.wait_for_file(self.machine, path, absent=absent, timeout=self._seconds(timeout))

    def wait_until(
        self, command: Command, *, user: str | None = None, timeout: float | None = None
    ) -> CommandResult:
        """Repeat a command until it exits with 0, and return that result.

        Raises:
            WaitTimeout: With the last exit code and output.
            GuestGone: The guest ended or panicked.
        """
        seconds = self._seconds(timeout)
        return waits.wait_until_succeeds(self.machine, command, user=user, timeout=seconds)

    def wait_for_console(
        self, pattern: str | re.Pattern[str], *, since: int | None = None, timeout: float | None = None
    ) -> re.Match[str]:
        """Wait until the guest prints something on its console that matches.

        Args:
            pattern: Regular expression, searched with ``re.MULTILINE``.
            since: An earlier ``console.offset()``; None: from now on.
            timeout: Seconds.

        Raises:
            WaitTimeout: With the console's tail.
            GuestGone: The guest ended first.
        """
        return self.machine.console.wait(pattern, since=since, timeout=self._seconds(timeout))

    def wait_for_log(
        self, pattern: str | re.Pattern[str], *, unit: str | None = None, timeout: float | None = None
    ) -> str:
        """Wait until a journal line of this boot matches, and return it.

        Raises:
            WaitTimeout: With the last line.
            GuestGone: The guest ended or panicked.
        """
        return waits.wait_for_log(self.machine, pattern, unit=unit, timeout=self._seconds(timeout))
