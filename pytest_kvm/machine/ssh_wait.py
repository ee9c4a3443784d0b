"""Waits for sshd's banner, and notices as early as possible that sshd answers.

The host's side of a forwarded port always accepts: QEMU's user-mode network
(libslirp) completes the connection itself and only then connects to the guest.
While the guest's network card does not work yet, that packet is lost, and
libslirp repeats it after 3, 6, 12… seconds. A single connection would notice
sshd seconds late, so from time to time a new one is started until one of them
gets a banner.

Each attempt that reaches sshd costs the guest a process, even if the host has
given the attempt up, because libslirp repeats its packets all the same. Fifty
attempts made before the guest had a network lengthened the boot of a guest under
TCG by ten seconds, and more than ten at a time make sshd turn all connections
away (``MaxStartups``). So only one attempt is made until the guest uses its
card, which QEMU knows, and the pauses between attempts grow.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Self

from pytest_kvm.errors import (
    AgentError,
    CommandTimeout,
    DomainFailed,
    EmergencyMode,
    KvmError,
    SshNeverAnswered,
)
from pytest_kvm.machine.agent import GuestAgent
from pytest_kvm.machine.boot import Boot
from pytest_kvm.machine.machine import Machine
from pytest_kvm.render.qemu_args import card_id
from pytest_kvm.spec.nic import CONTROL_NETDEV

_CARD_PAUSE = 0.1
"""Seconds between two looks at the card."""
_REFUSED_PAUSE = 0.1
"""Seconds from a refusal to the next attempt: the network is up, so sshd will start soon."""
_SILENT_PAUSE, _HEARD_PAUSE = 0.3, 3.0
"""Seconds from one attempt to the next at the beginning; pauses grow from there. The
first holds while the guest has never answered. The second holds once it has answered
in any way: silence then means that sshd is starting a process for us, and an answer
that is no banner means that sshd has too many connections."""
_LONGEST_PAUSE = 10.0
_GROWTH = 1.4
_MOST_OPEN = 4
_LOOK_EVERY = 0.25
_TURNED_AWAY = (b"Not allowed at this time", b"Exceeded MaxStartups")
"""What sshd sends instead of a banner to turn a connection away (``drop_connection`` in its ``sshd.c``)."""
_ASK_AFTER = 15.0
"""Seconds of silence after which the guest agent is asked what is going on."""
_ASK_EVERY = 5.0
_ASK_TIMEOUT = 5.0


def wait_for_banner(
    boot: Boot,
    *,
    timeout: float,
    check_stuck: Callable[[str], None] = lambda _seen: None,
    known: bool = False,
) -> socket.socket:
    """Return a connection on which sshd has sent its banner, still unread.

    Args:
        boot: The boot; its checks end the wait early.
        timeout: Seconds.
        check_stuck: Called a few times per second with what was seen so far;
            raises when sshd is not going to answer any more.
        known: sshd has answered before, so attempts start with the longer pauses.

    Raises:
        SshNeverAnswered: No banner came in time.
        BootFailed: The guest died on the way.
    """
    clock = boot.machine.domain.clock
    deadline = clock() + timeout
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        attempts = stack.enter_context(_BannerAttempts(boot.machine, selector, known=known))
        wake = stack.enter_context(_Wake())
        selector.register(wake.reader, selectors.EVENT_READ)
        boot.machine.domain.on_end(wake)
        while True:
            if boot.machine.console.offset():
                boot.phases.reached("console")
            attempts.dial_when_due()
            for key, _ in selector.select(attempts.pause()):
                if line := attempts.take_answered(key.fileobj):
                    return line
            boot.check()
            check_stuck(attempts.seen)
            if clock() > deadline:
                raise boot.failure(
                    SshNeverAnswered,
                    f"no SSH banner within {timeout:.0f} s: {attempts.seen}",
                    resolution="raise boot_timeout if the guest was still making progress",
                )


class SshStuckDetector:
    """Ends the wait for a banner when the guest has finished booting without an sshd.

    It asks systemd through the guest agent. systemd says "running" or
    "degraded" when nothing is left to start (systemctl(1),
    ``is-system-running``). If it says so twice in a row, and sshd is still
    unreachable in between, sshd will not start.

    Args:
        boot: The boot.
        clock: Monotonic seconds.
    """

    def __init__(self, boot: Boot, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._boot = boot
        self._clock = clock
        self._agent = GuestAgent(boot.machine.domain, timeout=_ASK_TIMEOUT)
        self._next = clock() + _ASK_AFTER
        self._settled = False

    def __call__(self, seen: str) -> None:
        """Check whether sshd can still start; ``seen``: what the wait for a banner has seen so far.

        Raises:
            SshNeverAnswered: The guest has finished booting without an sshd.
            EmergencyMode: systemd says that it is in rescue or emergency mode.
        """
        if self._clock() < self._next:
            return
        state = self._ask(["systemctl", "is-system-running"])
        self._next = self._clock() + _ASK_EVERY
        if state == "maintenance":
            raise self._boot.failure(
                EmergencyMode, "init is in rescue or emergency mode", details=self._failed_units()
            )
        settled = state in {"running", "degraded"}
        if settled and self._settled:
            raise self._boot.failure(
                SshNeverAnswered,
                f"the guest has finished booting ({state}) and SSH does not answer: {seen}",
                details=self._failed_units(),
                resolution="sshd must be enabled and able to start, and the first NIC be configured by DHCP",
            )
        self._settled = settled

    def _failed_units(self) -> str:
        units = self._ask(["systemctl", "list-units", "--failed", "--no-legend", "--plain", "--no-pager"])
        return f"failed units:\n{units}" if units else ""

    def _ask(self, argv: list[str]) -> str:
        try:
            return self._agent.exec(argv, check=False).stdout.strip()[:4000]
        except (AgentError, CommandTimeout, DomainFailed):  # if QEMU has ended, the next check says so
            return ""


class _Wake:
    """Turns the end of a domain, which another thread reports, into a readable socket."""

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self._lock = threading.Lock()

    def __call__(self, _reason: str) -> None:
        with self._lock:  # the domain may end long after this wait is over
            if self._writer.fileno() >= 0:
                self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self("over")
        self.reader.close()


class _BannerAttempts:
    """The open connections to the guest's sshd, oldest first."""

    def __init__(self, machine: Machine, selector: selectors.BaseSelector, *, known: bool) -> None:
        self._address = (machine.access.host, machine.access.port)
        self._domain = machine.domain
        self._card_is_up = known
        self._selector = selector
        self._open: list[socket.socket] = []
        self._refused = False
        self._next = time.monotonic()
        self._pause = _HEARD_PAUSE if known else _SILENT_PAUSE
        self._strange = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._drop(self._open[0])

    @property
    def seen(self) -> str:
        """What happened to the attempts so far."""
        if self._strange.startswith(_TURNED_AWAY):
            return (
                f"sshd turns connections away with {self._strange.strip().decode()!r} "
                "(MaxStartups and PerSourcePenalties in sshd_config(5))"
            )
        if self._strange:
            return f"port 22 answered with {self._strange!r} instead of a banner"
        if self._refused:
            return "the guest's network is up but nothing listens on port 22"
        return "the guest's network never answered"

    def pause(self) -> float:
        """Return for how many seconds to listen before the next look."""
        return max(0.0, min(_LOOK_EVERY, self._next - time.monotonic()))

    def dial_when_due(self) -> None:
        """Start another attempt if it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        if self._open and not self._guest_has_network():
            self._next = now + _CARD_PAUSE
            return
        if len(self._open) >= _MOST_OPEN:
            self._drop(self._open[0])
        line = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        # Readable means: enough to tell a banner by, or closed.
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(b"SSH-"))
        line.connect_ex(self._address)  # its outcome shows as readable, like everything else
        self._selector.register(line, selectors.EVENT_READ)
        self._open.append(line)
        self._next = now + self._pause
        self._pause = min(self._pause * _GROWTH, _LONGEST_PAUSE)

    def _guest_has_network(self) -> bool:
        """Say whether the guest uses its network card; True if QEMU does not tell.

        QEMU's card receives all frames until the guest's driver sets its
        receive filter, which the driver does when it brings the card up
        (QMP ``query-rx-filter``; ``virtio_net_reset`` in ``hw/net/virtio-net.c``).
        """
        if not self._card_is_up:
            try:
                (card,) = self._domain.qmp("query-rx-filter", {"name": card_id(CONTROL_NETDEV)})
                self._card_is_up = not card["promiscuous"]
            except KvmError:
                self._card_is_up = True
        return self._card_is_up

    def take_answered(self, line: object) -> socket.socket | None:
        """Return a readable attempt if it has a banner; start afresh if it has anything else."""
        attempt = next((each for each in self._open if each is line), None)
        if attempt is None:  # dropped while its event was on the way
            return None
        try:
            data = attempt.recv(64, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if data.startswith(b"SSH-"):
            return self._claim(attempt)
        if data:
            self._strange = data
            self._start_afresh(pause=max(self._pause, _HEARD_PAUSE))
        else:
            self._refused = True
            self._start_afresh(pause=_REFUSED_PAUSE)
        return None

    def _claim(self, attempt: socket.socket) -> socket.socket:
        self._open.remove(attempt)
        self._selector.unregister(attempt)
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        attempt.setblocking(True)  # noqa: FBT003 - socket's own signature
        return attempt

    def _start_afresh(self, *, pause: float) -> None:
        """Drop all open attempts: the guest answers now, so earlier packets were lost or are too many."""
        while self._open:
            self._drop(self._open[0])
        self._card_is_up = True
        self._pause = max(self._pause, _HEARD_PAUSE)
        self._next = time.monotonic() + pause

    def _drop(self, attempt: socket.socket) -> None:
        self._open.remove(attempt)
        self._selector.unregister(attempt)
        attempt.close()
