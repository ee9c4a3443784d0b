"""Writes the names of other guests into a guest's hosts file (hosts(5))."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_kvm.errors import AgentError, GuestError
from pytest_kvm.machine.agent import GuestAgent

if TYPE_CHECKING:
    from pytest_kvm.machine.machine import Machine
    from pytest_kvm.results import CommandResult

_BEGIN = "# pytest-kvm: guests on the same segments"
_END = "# pytest-kvm: end of these guests"
_OFFER_SHARE = 0.25
"""Part of the agent's time-out that a guest gets which nobody uses at the moment."""
_SCRIPT = """\
set -e
block=$(cat)
others=$(sed "/^$1\\$/,/^$2\\$/d" /etc/hosts)
printf '%s\\n' "$others" ${block:+"$block"} >/etc/hosts
sync /etc/hosts
"""
"""Replaces the block between two lines, in place: the file may be a link or a mount point."""
_ARGV = ("sh", "-c", _SCRIPT, "sh", _BEGIN, _END)


class HostsFile:
    """Knows which names were written into one machine's hosts file."""

    def __init__(self) -> None:
        self._written: list[str] | None = []
        """The lines; None: not known."""
        self._offered: list[str] = []
        self._lock = threading.Lock()

    def has(self, lines: Sequence[str]) -> bool:
        """Say whether all these lines were written; lines of guests that are gone may be there, too."""
        return self._written is not None and set(lines) <= set(self._written)

    def append(self, lines: Sequence[str]) -> str:
        """Return the text to append to the hosts file of a guest that was told no names yet, and note it."""
        self._written = list(lines)
        return _block(lines)

    def note(self, lines: Sequence[str]) -> None:
        """Note that the file has these lines already."""
        self._written = list(lines)

    def forget(self) -> None:
        """Note that the file may have changed: the guest was taken back, or rebooted."""
        self._written = None
        self._offered = []

    def update(self, machine: Machine, lines: Sequence[str]) -> None:
        """Write lines in place of those written before; do nothing if the file has them all.

        Args:
            machine: The guest.
            lines: Each an address and its names.

        Raises:
            GuestError: The file cannot be written.
            GuestGone: The guest has ended.
            SshUnavailable: The guest has no agent, and SSH did not answer either.
        """
        with self._lock:
            if self.has(lines):
                return
            # Noted first: a guest that cannot be told is not asked again for the same lines.
            self._written = list(lines)
            try:
                result = _write_by_agent(machine, lines, timeout=machine.timeouts.agent)
            except AgentError as absent:
                machine.log.info("%s: names are written over SSH: %s", machine.name, absent.brief)
                timeout = machine.timeouts.agent
                result = machine.shell.run(
                    _ARGV, input=_block(lines), user="root", timeout=timeout, check=False
                )
            if not result.ok:
                raise GuestError(
                    f"{machine.name}: /etc/hosts cannot be written, so names of other guests do not resolve",
                    details=result.stderr,
                )

    def offer(self, machine: Machine, lines: Sequence[str]) -> None:
        """Write lines as :meth:`update` does, if the guest's agent does it soon; each list is offered once.

        For a guest that nobody uses at the moment, which may have panicked: whoever
        uses it next calls :meth:`update`.
        """
        with self._lock:
            if self.has(lines) or self._offered == list(lines):
                return
            self._offered = list(lines)
            try:
                if _write_by_agent(machine, lines, timeout=machine.timeouts.agent * _OFFER_SHARE).ok:
                    self._written = list(lines)
            except GuestError as failure:
                machine.log.info("%s: new names are written when it is used: %s", machine.name, failure.brief)


def _write_by_agent(machine: Machine, lines: Sequence[str], *, timeout: float) -> CommandResult:
    return GuestAgent(machine.domain, timeout=timeout).exec(_ARGV, input=_block(lines), check=False)


def _block(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in [_BEGIN, *lines, _END]) if lines else ""
