"""The frames of a libvirt network, on their way through the run's switch.

A bridge of the host knows no faults and no captures. So when the first is asked
for, each guest's QEMU is told to redirect the frames between the card and its tap
device. They become frames of a segment of the switch, on which each guest's link
has an uplink: the tap device. This needs no rights on the host and nothing of
its kernel, and the guests do not notice.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_kvm.errors import HypervisorError, SwitchFailed
from pytest_kvm.provision.switch_segment import SwitchSegment
from pytest_kvm.render.redirection import Command, RedirectionPorts, redirection

if TYPE_CHECKING:
    from pytest_kvm.handles.segment_backend import MachineCard
    from pytest_kvm.provision.run_resources import Lazy
    from pytest_kvm.switch.client import Switch
    from pytest_kvm.switch.link import Direction

_log = logging.getLogger("pytest_kvm.provision")
_END_IS_TOLD_WITHIN = 1.0
_VIRTIO_HEADER = 12
"""Bytes of ``struct virtio_net_hdr`` (virtio specification, version 1)."""
_QUEUE = 1 << 18
"""Bytes that wait for a guest whose network has a bandwidth."""


class RedirectedSegment(SwitchSegment):
    """A segment of the switch for the cards on a libvirt network.

    At first guests still reach each other by the host's bridge only, also those whose
    frames pass the switch. So no frame is lost while one card after the other is redirected.

    Args:
        switch: The run's switch.
        tag: The segment's name in the switch.
        rates: Bits per second that the network allows each card, by direction. The tap devices have
            these limits, too, but frames between guests pass none any more.

    Raises:
        SwitchFailed: The switch did not start.
    """

    def __init__(self, switch: Lazy[Switch], tag: str, *, rates: Mapping[Direction, int]) -> None:
        super().__init__(switch, tag)
        switch.get().set_direct(tag, direct=False)
        self._rates = rates
        self._cards: dict[str, list[_RedirectedCard]] = {}
        """By link: a guest may go back to a former machine."""

    def join_guests(self) -> None:
        """Have guests reach each other within the segment from now on: all are redirected."""
        self._switch.get().set_direct(self._tag, direct=True)

    def remove(self) -> None:
        """Remove the segment with its links, and close the ports of their cards."""
        super().remove()
        for link in list(self._cards):
            self._close_ports(self._cards.pop(link))

    def add_link(self, link: str) -> None:
        """Make a link, plugged in, with its uplink."""
        super().add_link(link)
        self._switch.get().add_uplink(self._tag, _uplink(link), guest=link)
        self._cards[link] = []
        for direction, bits in self._rates.items():
            settings = {"bits_per_second": bits, "queue": _QUEUE}
            self.fault("rate", link=link, direction=direction, seed="", settings=settings)

    def remove_link(self, link: str) -> None:
        """Remove a link with its uplink."""
        super().remove_link(link)
        self._close_ports(self._cards.pop(link, []))

    def attach(self, link: str, card: MachineCard | None) -> bool:
        """Attach a link to a machine's card, whose frames are redirected from then on."""
        if card is None:
            return super().attach(link, None)
        ended = [each for each in self._cards[link] if not each.card.domain.alive()]
        self._close_ports(ended)
        self._cards[link] = [each for each in self._cards[link] if each not in ended]
        known = next((each for each in self._cards[link] if each.card.domain is card.domain), None)
        if known is not None:
            return self._attach_ports(link, known.ports)
        is_plugged_in = super().attach(link, None)
        with unless_ended(card):
            is_plugged_in = self._redirect(link, card)
        return is_plugged_in  # noqa: RET504 - the block may be left by an exception that is ignored

    def is_drained(self, card: MachineCard) -> bool:
        """Say whether QEMU has taken all that was sent to a card; one that never was redirected has."""
        ports = RedirectionPorts.of(card.port)
        cards = [each for of_link in list(self._cards.values()) for each in of_link]
        is_redirected = any(each.ports == ports for each in cards)
        return not is_redirected or self._switch.get().is_drained(ports.to_card)

    def end_redirection(self) -> None:
        """Let all frames take their former way again, and remove the segment."""
        for of_link in list(self._cards.values()):
            for each in of_link:
                devices, filters = redirection(each.card.ids, each.ports)
                for _, end in reversed(devices + filters):
                    _undo(each.card, end)
        self.remove()

    def _redirect(self, link: str, card: MachineCard) -> bool:
        """Have QEMU redirect a card's frames; say whether its link is plugged in.

        The filters come last: when they get the first frame, it can go on.
        """
        path, ports = f"/machine/peripheral/{card.ids.device}", RedirectionPorts.of(card.port)
        model = card.domain.qmp("qom-get", {"path": path, "property": "type"})
        new = _RedirectedCard(card, ports)
        with ExitStack() as undone:
            undone.callback(self._close_ports, [new])
            header = _VIRTIO_HEADER if model.startswith("virtio") else 0
            self._switch.get().open_redirected_ports(ports, header=header)
            devices, filters = redirection(card.ids, ports)
            for begin, end in devices:
                card.domain.qmp(*begin)
                undone.callback(_undo, card, end)
            is_plugged_in = self._attach_ports(link, ports)
            for begin, end in filters:
                card.domain.qmp(*begin)
                undone.callback(_undo, card, end)
            undone.pop_all()
        self._cards[link].append(new)
        return is_plugged_in

    def _attach_ports(self, link: str, ports: RedirectionPorts) -> bool:
        switch = self._switch.get()
        switch.attach(self._tag, _uplink(link), port=ports.to_tap, source=ports.from_tap)
        return switch.attach(self._tag, link, port=ports.to_card, source=ports.from_card)

    def _close_ports(self, cards: Sequence[_RedirectedCard]) -> None:
        for each in cards:
            for port in each.ports:
                self._switch.get().close_port(port)


@dataclass(frozen=True)
class _RedirectedCard:
    card: MachineCard
    ports: RedirectionPorts


def _uplink(link: str) -> str:
    """Return the name of a link's uplink, which is no other link's: their names have numbers behind a dot."""
    return f"{link}.uplink"


def _undo(card: MachineCard, end: Command) -> None:
    if card.domain.alive():
        try:
            card.domain.qmp(*end)
        except HypervisorError as failure:
            _log.warning("a card on a libvirt network: %s", failure.brief)


@contextmanager
def unless_ended(card: MachineCard) -> Generator[None]:
    """Ignore that a machine has ended, of which libvirt tells a moment later than it fails.

    Raises:
        SwitchFailed: The block has failed for another reason.
    """
    try:
        yield
    except HypervisorError as failure:
        if not card.domain.wait_end(_END_IS_TOLD_WITHIN):
            raise SwitchFailed(
                f"a card on a libvirt network: {failure.brief}",
                details=failure.details,
                resolution=failure.resolution,
            ) from failure
