"""Frames that a network of the host hands back to a segment that has sent them there."""

from __future__ import annotations

import time
from collections import deque

_WINDOW = 5.0
"""Seconds after which no echo comes any more: the host's kernel takes microseconds, QEMU may be held up."""
_MOST = 8192
"""Frames, and times that one of them was sent, that are remembered."""


class Echoes:
    """The echoes that are still to come from one uplink.

    A frame is known by its bytes and not by its sender: an address may be behind
    a guest now, and beyond the host a moment later.
    """

    def __init__(self) -> None:
        self._expected: dict[int, deque[float]] = {}
        """By the hash of a frame, when it was sent."""

    def expect(self, frame: bytes) -> None:
        """Expect a frame to be handed back once."""
        now = time.monotonic()
        if len(self._expected) >= _MOST:
            self._expected = {key: each for key, each in self._expected.items() if each[-1] > now - _WINDOW}
        if len(self._expected) < _MOST:
            self._expected.setdefault(hash(frame), deque(maxlen=_MOST)).append(now)

    def take(self, frame: bytes) -> bool:
        """Say whether a frame that has come is an echo; each is expected once."""
        key = hash(frame)
        sent = self._expected.get(key)
        if sent is None:
            return False
        while sent and sent[0] <= time.monotonic() - _WINDOW:
            sent.popleft()
        is_echo = bool(sent)
        if sent:
            sent.popleft()
        if not sent:
            del self._expected[key]
        return is_echo
