"""A guest's cable to a segment that is a libvirt network: tap devices, each behind a barrier in QEMU."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING, Any

from pytest_kvm.hypervisor.protocol import CardFrames
from pytest_kvm.provision.redirected_segment import unless_ended
from pytest_kvm.render.qemu_args import barrier_path

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_kvm.handles.segment import Counters
    from pytest_kvm.handles.segment_backend import MachineCard
    from pytest_kvm.provision.redirected_segment import RedirectedSegment
    from pytest_kvm.switch.link import Direction


def tap_name(port: Path) -> str:
    """Return the name of the tap device of a machine's card: unique, and short enough for Linux.

    Args:
        port: What would be the card's socket of the switch.
    """
    return "kv" + hashlib.sha256(bytes(port)).hexdigest()[:10]


class TapLink:
    """A guest's cable: the tap devices of the guest's machines in turn.

    The barrier of a card is open while its machine is attached and the cable plugged in.

    Args:
        name: The link's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._through_switch: RedirectedSegment | None = None
        """The segment of the switch that the frames pass, and which counts them then."""
        self._lock = threading.Lock()
        self._is_up = True
        self._is_attached = False
        self._card: MachineCard | None = None
        """The card that the cable is, or was last, attached to."""
        self._before = CardFrames()
        """What had passed the cables of former machines."""
        self._at_attach = CardFrames()
        """What had passed the card's tap device until then: on its other side was the barrier."""
        self._seen = CardFrames()
        """What had passed the tap device at the last look."""

    def plug(self, *, up: bool) -> bool:
        """Plug the cable in, or unplug it; say whether it was plugged in."""
        with self._lock:
            was_up, self._is_up = self._is_up, up
            self._move_barrier()
            if self._through_switch is not None:
                self._through_switch.set_link(self._name, up=up)
            return was_up

    def attach(self, card: MachineCard | None) -> bool:
        """Attach the cable to a card, and to no other; None: to none. Say whether it is plugged in."""
        with self._lock:
            if card is not None and (self._card is None or card.domain is not self._card.domain):
                self._detach()
                self._before += self._count_own()
                self._card, self._seen = card, CardFrames()
                self._at_attach = self._look()
            self._is_attached = card is not None
            self._move_barrier()
            if self._through_switch is not None:
                self._through_switch.attach(self._name, card)
            return self._is_up

    def redirect(self, segment: RedirectedSegment) -> None:
        """Have all frames pass a segment of the switch, too, from now on."""
        with self._lock:
            segment.add_link(self._name)
            segment.set_link(self._name, up=self._is_up)
            if self._is_attached:
                segment.attach(self._name, self._card)
            self._before = self._count()
            self._through_switch, self._seen, self._at_attach = segment, CardFrames(), CardFrames()

    def end_redirection(self) -> None:
        """Have the frames pass the host's kernel only, as before."""
        with self._lock:
            if self._through_switch is not None:
                counted = self._through_switch.counters()[self._name]
                self._before += CardFrames(
                    received=counted["in"]["frames"],
                    received_bytes=counted["in"]["bytes"],
                    sent=counted["out"]["frames"],
                    sent_bytes=counted["out"]["bytes"],
                )
                self._through_switch = None
                self._at_attach = self._look()

    def traffic(self) -> tuple[int, int]:
        """Return how many frames have come to the guest and from it, as the switch counts what passes it."""
        with self._lock:
            passed = self._count()
            reached, told = (
                (0, 0) if self._through_switch is None else self._through_switch.traffic(self._name)
            )
            return passed.received + reached, passed.sent + told

    def counters(self) -> Counters:
        """Return what has passed, and what the switch has dropped."""
        with self._lock:
            passed = self._count()
            later = None if self._through_switch is None else self._through_switch.counters()[self._name]
        counters: dict[Direction, dict[str, Any]] = {
            "out": {"frames": passed.sent, "bytes": passed.sent_bytes, "dropped": {}},
            "in": {"frames": passed.received, "bytes": passed.received_bytes, "dropped": {}},
        }
        if later is not None:
            for way, counted in counters.items():
                for unit in ("frames", "bytes"):
                    counted[unit] += later[way][unit]
                counted["dropped"] = later[way]["dropped"]
        return counters

    def _count(self) -> CardFrames:
        """Return what has passed the host's kernel only."""
        self._look()
        return self._before + self._count_own()

    def _detach(self) -> None:
        self._is_attached = False
        self._move_barrier()
        self._look()

    def _count_own(self) -> CardFrames:
        return self._seen - self._at_attach

    def _look(self) -> CardFrames:
        """Return what has passed the tap device; of a machine that has ended, what was seen last."""
        card = self._card
        if card is not None and card.domain.alive() and self._through_switch is None:
            with unless_ended(card):
                self._seen = card.domain.card_frames(tap_name(card.port))
        return self._seen

    def _move_barrier(self) -> None:
        card = self._card
        if card is None or not card.domain.alive():
            return
        status = "off" if self._is_attached and self._is_up else "on"
        with unless_ended(card):
            card.domain.qmp(
                "qom-set", {"path": barrier_path(card.ids), "property": "status", "value": status}
            )
