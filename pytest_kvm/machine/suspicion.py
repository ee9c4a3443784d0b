"""Find out, when SSH stays silent for long, whether it is worth waiting."""

from __future__ import annotations

import time
from collections.abc import Callable

from pytest_kvm.errors import AgentError, CommandTimeout, DomainFailed, EmergencyMode, SshNeverAnswered
from pytest_kvm.machine.agent import GuestAgent
from pytest_kvm.machine.climb import Climb

_ASK_AFTER = 15.0
"""Seconds of silence after which the guest agent is asked what is going on."""
_ASK_EVERY = 5.0
_ASK_TIMEOUT = 5.0


class Suspicion:
    """What the wait for a banner asks itself, a few times per second.

    systemd says "running" or "degraded" when nothing is left to start
    (systemctl(1), ``is-system-running``). Said twice in a row with sshd still
    unreachable in between, SSH will not come.

    Args:
        climb: The boot.
        clock: Monotonic seconds.
    """

    def __init__(self, climb: Climb, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._climb = climb
        self._clock = clock
        self._agent = GuestAgent(climb.machine.domain, timeout=_ASK_TIMEOUT)
        self._next = clock() + _ASK_AFTER
        self._settled = False

    def __call__(self, seen: str) -> None:
        """Take what the wait for a banner has seen.

        Raises:
            SshNeverAnswered: The guest has finished booting without an sshd.
            EmergencyMode: systemd says so.
        """
        if self._clock() < self._next:
            return
        state = self._ask(["systemctl", "is-system-running"])
        self._next = self._clock() + _ASK_EVERY
        if state == "maintenance":
            raise self._climb.failure(
                EmergencyMode, "init is in rescue or emergency mode", details=self._failed()
            )
        settled = state in {"running", "degraded"}
        if settled and self._settled:
            raise self._climb.failure(
                SshNeverAnswered,
                f"the guest has finished booting ({state}) and SSH does not answer: {seen}",
                details=self._failed(),
                resolution="sshd must be enabled and able to start, and the first NIC be configured by DHCP",
            )
        self._settled = settled

    def _failed(self) -> str:
        units = self._ask(["systemctl", "list-units", "--failed", "--no-legend", "--plain", "--no-pager"])
        return f"failed units:\n{units}" if units else ""

    def _ask(self, argv: list[str]) -> str:
        try:
            return self._agent.exec(argv, check=False).stdout.strip()[:4000]
        except (AgentError, CommandTimeout, DomainFailed):  # if QEMU has ended, the next check says so
            return ""
