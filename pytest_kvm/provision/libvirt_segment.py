"""A segment that is a libvirt network: made for the run, with a tap device on its bridge for each card.

https://libvirt.org/formatnetwork.html
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from uuid import uuid4

from pytest_kvm.errors import HypervisorError, NetworkFailed, SpecError, SwitchFailed
from pytest_kvm.hypervisor.protocol import CardFrames
from pytest_kvm.provision.subnet_claims import SubnetTaken, claim_subnets
from pytest_kvm.render.network_xml import NetworkPlan, network_xml
from pytest_kvm.render.qemu_args import barrier_path
from pytest_kvm.spec.network import check_connection

if TYPE_CHECKING:
    from pytest_kvm.handles.condition import Condition
    from pytest_kvm.handles.segment import Counters
    from pytest_kvm.handles.segment_backend import CaptureWriter, MachineCard
    from pytest_kvm.provision.run_resources import RunResources
    from pytest_kvm.spec.network import Network
    from pytest_kvm.switch.link import Direction

_READ_AT_ONCE = 50
"""Frames that QEMU reads from a tap device before it looks at anything else (``tap_send()`` in net/tap.c)."""
_QUEUE = 1000
"""Frames that wait in a tap device at most: its ``txqueuelen`` (``drivers/net/tun.c`` in Linux)."""
_MOST_BRIDGES = 10_000
"""Bridges of one run that have names of their own: Linux allows 15 characters."""
_END_IS_TOLD_WITHIN = 1.0
_TAKEN = "already in use by interface"
"""libvirt's words for a subnet of IPv4 for which the host has a route (``networkCheckRouteCollision()``)."""


def tap_name(port: Path) -> str:
    """Return the name of the tap device of a machine's card: unique, and short enough for Linux.

    Args:
        port: What would be the card's socket of the switch.
    """
    return "kv" + hashlib.sha256(bytes(port)).hexdigest()[:10]


class LibvirtSegment:
    """Implements :class:`pytest_kvm.handles.segment_backend.SegmentBackend`; makes the network.

    The network is transient: libvirt forgets it when it is removed. If the run is killed,
    its watcher removes it.

    Args:
        resources: The connection, and what undoes things if the run dies.
        network: The segment's name, spec and subnets.
        tag: Its name in this run.
        number: Its number among the libvirt networks of this run.

    Raises:
        NetworkFailed: libvirt refused.
        SubnetTaken: The host, or another segment or run on the same bridge, has such addresses already.
        SpecError: The connection makes no networks.
    """

    def __init__(self, resources: RunResources, network: Network, *, tag: str, number: int) -> None:
        uri = resources.hypervisor.facts().uri
        check_connection(network.name, network.spec, uri=uri, is_system=resources.is_system)
        session = resources.session
        plan = NetworkPlan(
            name=f"kvm-{session}-{tag}", uuid=str(uuid4()), bridge=f"kb{session}-{number % _MOST_BRIDGES}"
        )
        self.network = plan.name
        self._name = network.name
        self._because = " and ".join(f"{field}=" for field in network.spec.libvirt_fields or ["backend"])
        self._hypervisor, self._uuid = resources.hypervisor, plan.uuid
        self._lock = threading.Lock()
        self._links: dict[str, _Link] = {}
        with claim_subnets(network) as claims:
            self._forget = resources.undo_notes.add("network", uri, plan.uuid)
            self._make(network_xml(network, plan))
            self._claims = claims.pop_all()

    def _make(self, xml: str) -> None:
        try:
            self._hypervisor.create_network(xml)
        except NetworkFailed as failure:  # after any other failure there may be one
            self._forget()
            if _TAKEN in failure.brief:
                raise SubnetTaken(
                    failure.brief, details=failure.details, resolution=failure.resolution, field="subnet"
                ) from None
            raise

    def check(self) -> None:
        """Do nothing: the host's kernel passes the frames."""

    def remove(self) -> None:
        """Remove the network; guests that are still on it are cut off, also on a bridge of the host.

        Raises:
            NetworkFailed: libvirt refused; it is tried again when the run ends.
            SwitchFailed: A guest could not be cut off; likewise.
        """
        with self._claims, ExitStack() as stack:
            stack.callback(self._remove)
            with self._lock:
                links, self._links = list(self._links.values()), {}
            for link in links:
                stack.callback(link.attach, None)

    def _remove(self) -> None:
        self._hypervisor.remove_network(self._uuid)
        self._forget()

    # ------------------------------------------------------------ links

    def add_link(self, link: str) -> None:
        """Make a link, plugged in."""
        with self._lock:
            self._links[link] = _Link()

    def remove_link(self, link: str) -> None:
        """Remove a link."""
        with self._lock:
            self._links.pop(link, None)

    def set_link(self, link: str, *, up: bool) -> bool:
        """Plug a link in, or unplug it, so that no frames pass; say whether it was plugged in."""
        return self._find(link).plug(up=up)

    def attach(self, link: str, card: MachineCard | None) -> bool:
        """Open the barrier of a machine's card, and close that of the link's former card."""
        return self._find(link).attach(card)

    def is_drained(self, card: MachineCard) -> bool:
        """Have QEMU read all frames that wait, and say that it has.

        QEMU answers in the loop in which it reads from its tap devices.
        """
        for _ in range(_QUEUE // _READ_AT_ONCE + 1):
            card.domain.qmp("query-status")
        return True

    def traffic(self, link: str) -> tuple[int, int]:
        """Return how many frames have come to a link and from it, as the host's kernel counts them."""
        passed = self._find(link).count()
        return passed.received, passed.sent

    def counters(self) -> Mapping[str, Counters]:
        """Return what passed each link; the kernel does not say why a frame was dropped."""
        with self._lock:
            links = dict(self._links)
        passed = {link: found.count() for link, found in links.items()}
        return {
            link: {
                "out": {"frames": each.sent, "bytes": each.sent_bytes, "dropped": {}},
                "in": {"frames": each.received, "bytes": each.received_bytes, "dropped": {}},
            }
            for link, each in passed.items()
        }

    # ------------------------------------------------------------ faults and captures

    def cut(self, groups: Sequence[Sequence[str]], *, joins_others: bool) -> int:
        """Refuse."""
        del groups, joins_others
        self._refuse("a partition")

    def fault(
        self,
        kind: str,
        *,
        link: str | None,
        direction: Direction | None,
        seed: str,
        settings: Mapping[str, float],
    ) -> int:
        """Refuse."""
        del link, direction, seed, settings
        self._refuse(kind)

    def dropping(self, condition: Condition) -> Callable[[str | None, Direction | None], int]:
        """Refuse."""
        del condition
        self._refuse("drop")

    def undo(self, number: int) -> None:
        """Do nothing: there is no fault to undo."""

    def capture(self, path: Path, *, links: Sequence[str], comment: str, limit: int) -> CaptureWriter:
        """Refuse."""
        del path, links, comment, limit
        self._refuse("a capture")

    def _find(self, link: str) -> _Link:
        with self._lock:
            found = self._links.get(link)
        if found is None:
            raise SwitchFailed(
                f"{self._name} has no link {link} any more: the guest or the segment was removed"
            )
        return found

    def _refuse(self, what: str) -> NoReturn:
        raise SpecError(
            f"{self._name}: {what} needs the run's switch, and this segment is a libvirt network",
            resolution=f"unplug() and plug() work there; for all else leave out {self._because}",
        )


class _Link:
    """A guest's cable: the tap devices of the guest's machines in turn.

    The barrier of a card is open while its machine is attached and the cable plugged in.
    """

    def __init__(self) -> None:
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
            return self._is_up

    def count(self) -> CardFrames:
        """Return what has passed the cable."""
        with self._lock:
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
        if card is not None and card.domain.alive():
            with _unless_ended(card):
                self._seen = card.domain.card_frames(tap_name(card.port))
        return self._seen

    def _move_barrier(self) -> None:
        card = self._card
        if card is None or not card.domain.alive():
            return
        status = "off" if self._is_attached and self._is_up else "on"
        with _unless_ended(card):
            card.domain.qmp(
                "qom-set", {"path": barrier_path(card.ids), "property": "status", "value": status}
            )


@contextmanager
def _unless_ended(card: MachineCard) -> Generator[None]:
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
