"""QEMU's filters by which the frames between a card and its tap device take the way through the switch.

``filter-redirector`` in QEMU's manual page: such a filter sends each frame to one
character device (``outdev``), and goes on with the frames that come from another
(``indev``). Each character device is a connection to a port of the switch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pytest_kvm.render.qemu_args import CardIds

Command = tuple[str, Mapping[str, Any]]
"""A QMP command with its arguments."""


class RedirectionPorts(NamedTuple):
    """The ports of the switch that frames of one card go to and come from."""

    from_card: Path
    to_card: Path
    from_tap: Path
    to_tap: Path

    @classmethod
    def of(cls, port: Path) -> RedirectionPorts:
        """Return the ports of a machine's card.

        Args:
            port: What would be the card's socket of the switch.
        """
        return cls(*(port.with_suffix(f".{name}") for name in ("fc", "tc", "ft", "tt")))


class Redirection(NamedTuple):
    """The QMP commands that begin a redirection, each with the command that undoes it."""

    devices: list[tuple[Command, Command]]
    """These connect to the switch, and change nothing yet."""
    filters: list[tuple[Command, Command]]
    """From the first of these on frames are redirected."""


def redirection(ids: CardIds, ports: RedirectionPorts) -> Redirection:
    """Return the commands that redirect what passes between a card and its tap device.

    The barrier between the two was there before, and is on the tap's side of the filters.

    Args:
        ids: QEMU's ids of the card and of its back end.
        ports: Where the frames go.
    """
    names = {name: f"{ids.device}-{name.replace('_', '-')}" for name in RedirectionPorts._fields}
    devices = [_character_device(names[name], path) for name, path in ports._asdict().items()]
    # QEMU's words are seen from the tap device: tx is what it sends to the card.
    ways = (("tx", "from_tap", "to_card"), ("rx", "from_card", "to_tap"))
    filters = [
        _filter(f"{ids.device}-{queue}", ids.netdev, queue=queue, outdev=names[outdev], indev=names[indev])
        for queue, outdev, indev in ways
    ]
    return Redirection(devices, filters)


def _character_device(name: str, path: Path) -> tuple[Command, Command]:
    address = {"type": "unix", "data": {"path": str(path)}}
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    return ("chardev-add", {"id": name, "backend": backend}), ("chardev-remove", {"id": name})


def _filter(name: str, netdev: str, *, queue: str, outdev: str, indev: str) -> tuple[Command, Command]:
    return (
        (
            "object-add",
            {
                "qom-type": "filter-redirector",
                "id": name,
                "netdev": netdev,
                "queue": queue,
                "outdev": outdev,
                "indev": indev,
                "vnet_hdr_support": True,  # also tell the length of the header in front of each frame
            },
        ),
        ("object-del", {"id": name}),
    )
