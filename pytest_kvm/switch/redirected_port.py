"""Ports for what QEMU's ``filter-redirector`` leads through the switch, between a card and its tap device.

Each frame comes behind its length, the length of a header, and that header, which
counts as a part of the frame (``filter_send()`` in QEMU's ``net/filter-mirror.c``).
The header is virtio's, for cards of this model. Its length depends on
what the guest's driver has negotiated, and is another one before there is a driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvm.switch.frames import PREFIX, frames_in, redirected_frames_in, to_wire
from pytest_kvm.switch.link import Port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_kvm.switch.link import Batch


class Header:
    """What is in front of each frame of one card.

    Args:
        length: Its bytes, as long as no frame has come.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def put_before(self, frame: bytes | memoryview) -> bytes:
        """Return a frame as it is sent; the header is all zeros, as these cards have no offloads."""
        length = self.length + len(frame)
        return b"".join([PREFIX.pack(length), PREFIX.pack(self.length), bytes(self.length), frame])


class RedirectedPort(Port):
    """A port of a card whose frames are redirected.

    Args:
        path: Where to listen.
        header: Of all ports of the card.
    """

    prefix = 2 * PREFIX.size

    def __init__(self, path: Path, *, header: Header) -> None:
        super().__init__(path)
        self._header = header

    def read(self) -> bytes | None:
        """Return the whole frames that have come, as :meth:`Port.read` does; keep the rest."""
        data = super().read()
        if not data:
            return data
        end, frames = 0, list[bytes]()
        for header, begin, end in redirected_frames_in(data):
            self._header.length = header
            frames.append(to_wire(data[begin:end]))
        super().keep(data[end:])
        return b"".join(frames) or None

    def keep(self, rest: bytes) -> None:
        """Do nothing: :meth:`read` returns no beginning of a frame."""

    def offer(self, batch: Batch) -> bool:
        """Queue whole frames for the card; say whether they fit."""
        data, sender = batch
        frames = b"".join(self._header.put_before(data[begin:end]) for begin, end in frames_in(data))
        return super().offer((memoryview(frames), sender))

    def frames(self, queued: memoryview) -> Iterator[tuple[int, int]]:
        """Yield the begin and the end of each queued frame, without what is in front of it."""
        for _, begin, end in redirected_frames_in(queued):
            yield begin, end
