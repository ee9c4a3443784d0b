"""What passes the frames of a segment: the run's switch, or a network of libvirt's.

The rest of the plugin uses a segment by this protocol, and does not know which of
the two it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pytest_kvm.handles.capture import CaptureSource

if TYPE_CHECKING:
    from pytest_kvm.handles.condition import Condition
    from pytest_kvm.handles.segment import Counters
    from pytest_kvm.hypervisor.protocol import Domain
    from pytest_kvm.render.qemu_args import CardIds
    from pytest_kvm.switch.link import Direction


@dataclass(frozen=True, kw_only=True)
class MachineCard:
    """One machine's card on a segment."""

    domain: Domain
    port: Path
    """Its socket of the switch. A card on a libvirt network has none; its tap device is named by it."""
    ids: CardIds
    """QEMU's ids of the card and of its back end."""


class CaptureWriter(CaptureSource, Protocol):
    """What writes one capture's file, as far as the run is concerned."""

    def has_broken(self) -> bool:
        """Say whether what writes the file has ended."""
        ...


class SegmentBackend(Protocol):
    """One segment, as far as its frames are concerned.

    A *link* is a guest's cable: it stays when another machine takes the place of the one behind it.
    Every call may raise :class:`~pytest_kvm.errors.SwitchFailed`.
    """

    @property
    def network(self) -> str | None:
        """Libvirt's name of the network that cards are connected to; None: to ports of the switch."""
        ...

    def check(self) -> None:
        """Check that frames can pass."""
        ...

    def remove(self) -> None:
        """Remove the segment with its links."""
        ...

    # ------------------------------------------------------------ links

    def add_link(self, link: str) -> None:
        """Make a link, plugged in."""
        ...

    def remove_link(self, link: str) -> None:
        """Remove a link."""
        ...

    def set_link(self, link: str, *, up: bool) -> bool:
        """Plug a link in, or unplug it; say whether it was plugged in."""
        ...

    def attach(self, link: str, card: MachineCard | None) -> bool:
        """Attach a link to a machine's card in place of its former one; None only detaches it from that one.

        Frames that are on their way from or to the link are lost, and so are those that the card
        has sent before. A guest does not notice that its card is detached.

        Returns:
            Whether the link is plugged in.
        """
        ...

    def is_drained(self, card: MachineCard) -> bool:
        """Say whether QEMU has taken all frames for a card, whose back end's link is down."""
        ...

    def traffic(self, link: str) -> tuple[int, int]:
        """Return how many frames that can change a guest have come to a link, and from it to others."""
        ...

    def counters(self) -> Mapping[str, Counters]:
        """Return what passed each link in each direction, and what was dropped there, by reason."""
        ...

    # ------------------------------------------------------------ faults and captures

    def cut(self, groups: Sequence[Sequence[str]], *, joins_others: bool) -> int:
        """Let frames pass only between links of the same group; return the number to undo it by."""
        ...

    def fault(
        self,
        kind: str,
        *,
        link: str | None,
        direction: Direction | None,
        seed: str,
        settings: Mapping[str, float],
    ) -> int:
        """Apply a fault to frames from now on; return the number to undo it by."""
        ...

    def dropping(self, condition: Condition) -> Callable[[str | None, Direction | None], int]:
        """Return what has the frames dropped that a condition is true of; it gets link and direction.

        It returns the number to undo it by.
        """
        ...

    def undo(self, number: int) -> None:
        """Undo a fault or a cut; a second call does nothing."""
        ...

    def capture(self, path: Path, *, links: Sequence[str], comment: str, limit: int) -> CaptureWriter:
        """Write what crosses the segment, or passes links, into a new file."""
        ...
