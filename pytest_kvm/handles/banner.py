"""Find the moment at which sshd answers, as early as it can be seen.

The host's side of a forwarded port always accepts: QEMU's user-mode network
(libslirp) completes the connection itself and only then dials the guest. A
guest without a running network card loses that packet, and libslirp repeats it
after 3, 6, 12… seconds. So one patient connection notices sshd seconds late:
here a new one starts every fraction of a second until one hears a banner.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Self

from pytest_kvm.errors import SshNeverAnswered
from pytest_kvm.handles.climb import Climb
from pytest_kvm.handles.machine import Access

_SILENT_PAUSE = 0.3
"""Seconds between two attempts while nothing in the guest answers."""
_REFUSED_PAUSE = 0.1
"""Seconds from a refusal to the next attempt: the network is up, sshd is due."""
_ACCEPTED_PAUSE = 3.0
"""Seconds an attempt is left alone when others before it were refused: it was
accepted, sshd is starting a process for it, and more would slow that down."""
_MOST_OPEN = 4
"""Every attempt that reaches sshd and logs nobody in counts against us: from
OpenSSH 9.8 on it punishes a source that does so (PerSourcePenalties in
sshd_config(5)), and refuses the next login."""
_LOOK_EVERY = 0.25


def wait_for_banner(
    climb: Climb, *, timeout: float, suspect: Callable[[str], None] = lambda _seen: None
) -> socket.socket:
    """Return a connection on which sshd has sent its banner, still unread.

    Args:
        climb: The boot; its checks end the wait early.
        timeout: Seconds.
        suspect: Called a few times per second with what was seen so far;
            raises when SSH cannot be expected to answer any more.

    Raises:
        SshNeverAnswered: No banner came in time.
        BootFailed: The guest died on the way.
    """
    deadline = time.monotonic() + timeout
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        hunt = stack.enter_context(_Hunt(climb.machine.access, selector))
        wake = stack.enter_context(_Wake())
        selector.register(wake.reader, selectors.EVENT_READ)
        climb.machine.domain.on_end(wake)
        while True:
            if climb.machine.console.offset():
                climb.phases.reached("console")
            hunt.dial_when_due()
            for key, _ in selector.select(hunt.pause()):
                if line := hunt.answered(key.fileobj):
                    return line
            climb.check()
            suspect(hunt.seen)
            if time.monotonic() > deadline:
                raise climb.failure(
                    SshNeverAnswered,
                    f"no SSH banner within {timeout:.0f} s: {hunt.seen}",
                    resolution="raise boot_timeout if the guest was still making progress",
                )


class _Wake:
    """Turns the end of a domain, which another thread reports, into a readable socket."""

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self._lock = threading.Lock()

    def __call__(self, _reason: str) -> None:
        with self._lock:  # it may report long after this wait is over
            if self._writer.fileno() >= 0:
                self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self("over")
        self.reader.close()


class _Hunt:
    """The attempts that are open, oldest first."""

    def __init__(self, access: Access, selector: selectors.BaseSelector) -> None:
        self._address = (access.host, access.port)
        self._selector = selector
        self._open: list[socket.socket] = []
        self._refused = 0
        self._next = time.monotonic()
        self._strange = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._drop(self._open[0])

    @property
    def seen(self) -> str:
        """What happened to the attempts so far."""
        if self._strange:
            return f"port 22 answered with {self._strange!r} instead of a banner"
        if self._refused:
            return "the guest's network is up but nothing listens on port 22"
        return "the guest's network never answered"

    def pause(self) -> float:
        """Return how long there is nothing to do but to listen."""
        return max(0.0, min(_LOOK_EVERY, self._next - time.monotonic()))

    def dial_when_due(self) -> None:
        """Start another attempt if it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        if len(self._open) >= _MOST_OPEN:
            self._drop(self._open[0])
        line = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        # Readable means: enough to tell a banner by, or closed.
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(b"SSH-"))
        line.connect_ex(self._address)  # its outcome shows as readable, like everything else
        self._selector.register(line, selectors.EVENT_READ)
        self._open.append(line)
        self._next = now + (_ACCEPTED_PAUSE if self._refused else _SILENT_PAUSE)

    def answered(self, line: object) -> socket.socket | None:
        """Return a readable attempt that has a banner; forget it if it has not."""
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
            self._drop(attempt)
        else:
            self._note_refusal()
        return None

    def _claim(self, attempt: socket.socket) -> socket.socket:
        self._open.remove(attempt)
        self._selector.unregister(attempt)
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        attempt.setblocking(True)  # noqa: FBT003 - socket's own signature
        return attempt

    def _note_refusal(self) -> None:
        """The guest answers: what was sent to it before that is lost, so start afresh."""
        self._refused += 1
        while self._open:
            self._drop(self._open[0])
        self._next = time.monotonic() + _REFUSED_PAUSE

    def _drop(self, attempt: socket.socket) -> None:
        self._open.remove(attempt)
        self._selector.unregister(attempt)
        attempt.close()
