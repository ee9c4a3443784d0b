from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest

from pytest_kvm.switch.client import Switch
from pytest_kvm.switch.link import Direction


class Card:
    """What QEMU is to the switch: connects, sends and receives frames behind their lengths."""

    def __init__(self, path: Path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))
        self.socket.settimeout(5)
        self._buffer = b""

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(struct.pack(">I", len(frame)) + frame for frame in frames))

    def receive(self, *, timeout: float = 5) -> bytes | None:
        """Return the next frame, or None if there is none in time."""
        while True:
            if len(self._buffer) >= 4:
                (length,) = struct.unpack_from(">I", self._buffer)
                if len(self._buffer) >= 4 + length:
                    frame = self._buffer[4 : 4 + length]
                    self._buffer = self._buffer[4 + length :]
                    return frame
            self.socket.settimeout(timeout)
            try:
                data = self.socket.recv(1 << 18)
            except TimeoutError:
                return None
            if not data:
                raise EOFError
            self._buffer += data

    def drain(self, *, timeout: float = 0.2) -> list[bytes]:
        """Return all frames until none comes for a while."""
        frames = []
        while (frame := self.receive(timeout=timeout)) is not None:
            frames.append(frame)
        return frames

    def close(self) -> None:
        self.socket.close()


class Lab:
    """A switch with one segment and some cards on it, each behind a link of its name."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.switch = Switch()
        self.switch.add_segment("lan")
        self.cards: list[Card] = []

    def port(self, name: str) -> Path:
        path = self.folder / f"{name}.sock"
        self.switch.open_port(path)
        return path

    def plug(self, name: str, *, port: str = "") -> Card:
        """Put another card on a link, which is made if there is none."""
        path = self.port(port or name)
        card = Card(path)
        self.cards.append(card)
        if name not in self.switch.counters("lan"):
            self.switch.add_link("lan", name)
        self.switch.attach("lan", name, port=path)
        return card

    def dropped(self, link: str, direction: Direction) -> dict[str, int]:
        return dict(self.switch.counters("lan")[link][direction]["dropped"])

    def close(self) -> None:
        for card in self.cards:
            card.close()
        self.switch.close()


def mac(number: int) -> bytes:
    return b"\x52\x54\x00\x00\x00" + bytes([number])


EVERYBODY = b"\xff" * 6


def frame(to: bytes, sender: bytes, payload: bytes = b"hello", *, vlan: int | None = None) -> bytes:
    tag = b"" if vlan is None else b"\x81\x00" + struct.pack(">H", vlan)
    return to + sender + tag + b"\x88\xb5" + payload


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    yield lab
    lab.close()
