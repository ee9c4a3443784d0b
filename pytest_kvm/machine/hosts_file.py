"""Writes the names of other guests into a guest's hosts file (hosts(5))."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_kvm.errors import AgentError, GuestError
from pytest_kvm.machine.agent import GuestAgent

if TYPE_CHECKING:
    from pytest_kvm.machine.machine import Machine

_BEGIN = "# pytest-kvm: guests on the same segments"
_END = "# pytest-kvm: end of these guests"
_SCRIPT = """\
umask 022
{ sed -e "/^$1\\$/,/^$2\\$/d" -e '$a\\' /etc/hosts; cat; } >/etc/hosts.pytest-kvm &&
mv -f /etc/hosts.pytest-kvm /etc/hosts
"""
"""Replaces the block between two lines; whoever reads the file meanwhile sees it whole, old or new."""


class HostsFile:
    """Knows which names were written into one machine's hosts file."""

    def __init__(self) -> None:
        self._written: list[str] | None = []
        """The lines; None: not known."""

    def has(self, lines: Sequence[str]) -> bool:
        """Say whether all these lines were written; lines of guests that are gone may be there, too."""
        return self._written is not None and set(lines) <= set(self._written)

    def append(self, lines: Sequence[str]) -> str:
        """Return the text to append to the hosts file of a guest that was told no names yet, and note it."""
        self._written = list(lines)
        return _block(lines)

    def forget(self) -> None:
        """Note that the guest was taken back to a state with other lines."""
        self._written = None

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
        if self.has(lines):
            return
        # Noted first: a guest that cannot be told is not asked again for the same lines.
        self._written = list(lines)
        argv, text = ["sh", "-c", _SCRIPT, "sh", _BEGIN, _END], _block(lines)
        try:
            agent = GuestAgent(machine.domain, timeout=machine.timeouts.agent)
            result = agent.exec(argv, input=text, check=False)
        except AgentError as absent:
            machine.log.info("%s: names are written over SSH: %s", machine.name, absent.brief)
            result = machine.shell.run(argv, input=text, user="root", check=False)
        if not result.ok:
            raise GuestError(
                f"{machine.name}: /etc/hosts cannot be written, so names of other guests do not resolve",
                details=result.stderr,
            )


def _block(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in [_BEGIN, *lines, _END]) if lines else ""
