"""A segment that is a libvirt network: made for the run, with a tap device on its bridge for each card.

Its frames pass the host's kernel, until a fault or a capture is asked for: from then on they
pass the run's switch, too (:mod:`~pytest_kvm.provision.redirected_segment`).

https://libvirt.org/formatnetwork.html
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING
from uuid import uuid4

from pytest_kvm.errors import NetworkFailed, SwitchFailed
from pytest_kvm.provision.redirected_segment import RedirectedSegment
from pytest_kvm.provision.subnet_claims import SubnetTaken, claim_subnets
from pytest_kvm.provision.tap_link import TapLink
from pytest_kvm.render.network_xml import NetworkPlan, network_xml
from pytest_kvm.spec.network import check_connection

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_kvm.handles.condition import Condition
    from pytest_kvm.handles.segment import Counters
    from pytest_kvm.handles.segment_backend import CaptureWriter, MachineCard
    from pytest_kvm.provision.run_resources import Lazy, RunResources
    from pytest_kvm.spec.network import Network, NetworkSpec
    from pytest_kvm.switch.client import Switch
    from pytest_kvm.switch.link import Direction

_log = logging.getLogger("pytest_kvm.provision")
_READ_AT_ONCE = 50
"""Frames that QEMU reads from a tap device before it looks at anything else (``tap_send()`` in net/tap.c)."""
_QUEUE = 1000
"""Frames that wait in a tap device at most: its ``txqueuelen`` (``drivers/net/tun.c`` in Linux)."""
_MOST_BRIDGES = 10_000
"""Bridges of one run that have names of their own: Linux allows 15 characters."""
_TAKEN = "already in use by interface"
"""libvirt's words for a subnet of IPv4 for which the host has a route (``networkCheckRouteCollision()``)."""


class LibvirtSegment:
    """Implements :class:`pytest_kvm.handles.segment_backend.SegmentBackend`; makes the network.

    The network is transient: libvirt forgets it when it is removed. If the run is killed,
    its watcher removes it.

    Args:
        resources: The connection, and what undoes things if the run dies.
        switch: The run's switch; its process is started when a fault or a capture is asked for.
        network: The segment's name, spec and subnets.
        tag: Its name in this run.
        number: Its number among the libvirt networks of this run.

    Raises:
        NetworkFailed: libvirt refused.
        SubnetTaken: The host, or another segment or run on the same bridge, has such addresses already.
        SpecError: The connection makes no networks.
    """

    def __init__(
        self, resources: RunResources, switch: Lazy[Switch], network: Network, *, tag: str, number: int
    ) -> None:
        uri = resources.hypervisor.facts().uri
        check_connection(network.name, network.spec, uri=uri, is_system=resources.is_system)
        session = resources.session
        plan = NetworkPlan(
            name=f"kvm-{session}-{tag}", uuid=str(uuid4()), bridge=f"kb{session}-{number % _MOST_BRIDGES}"
        )
        self.network = plan.name
        self._name = network.name
        self._spec = network.spec
        self._switch, self._tag = switch, tag
        self._through_switch: RedirectedSegment | None = None
        self._hypervisor, self._uuid = resources.hypervisor, plan.uuid
        self._lock = threading.Lock()
        self._links: dict[str, TapLink] = {}
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
        """Check that the switch runs, if frames pass it."""
        if self._through_switch is not None:
            self._through_switch.check()

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
                through_switch, self._through_switch = self._through_switch, None
            if through_switch is not None:
                stack.callback(through_switch.remove)
            for link in links:
                stack.callback(link.attach, None)

    def _remove(self) -> None:
        self._hypervisor.remove_network(self._uuid)
        self._forget()

    # ------------------------------------------------------------ links

    def add_link(self, link: str) -> None:
        """Make a link, plugged in."""
        with self._lock:
            made = TapLink(link)
            if self._through_switch is not None:
                made.redirect(self._through_switch)
            self._links[link] = made

    def remove_link(self, link: str) -> None:
        """Remove a link."""
        with self._lock:
            removed = self._links.pop(link, None)
            if removed is not None and self._through_switch is not None:
                self._through_switch.remove_link(link)

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
        if self._through_switch is not None and not self._through_switch.is_drained(card):
            return False
        for _ in range(_QUEUE // _READ_AT_ONCE + 1):
            card.domain.qmp("query-status")
        return True

    def traffic(self, link: str) -> tuple[int, int]:
        """Return how many frames have come to a link and from it, as the host's kernel counts them.

        Frames that pass the switch are counted as on any segment of the switch.
        """
        return self._find(link).traffic()

    def counters(self) -> Mapping[str, Counters]:
        """Return what passed each link; the kernel does not say why a frame was dropped."""
        with self._lock:
            links = dict(self._links)
        return {link: found.counters() for link, found in links.items()}

    # ------------------------------------------------------------ faults and captures

    def cut(self, groups: Sequence[Sequence[str]], *, joins_others: bool) -> int:
        """Let frames pass only between links of the same group; the host is in no group."""
        return self._redirect().cut(groups, joins_others=joins_others)

    def fault(
        self,
        kind: str,
        *,
        link: str | None,
        direction: Direction | None,
        seed: str,
        settings: Mapping[str, float],
    ) -> int:
        """Apply a fault to frames from now on."""
        return self._redirect().fault(kind, link=link, direction=direction, seed=seed, settings=settings)

    def dropping(self, condition: Condition) -> Callable[[str | None, Direction | None], int]:
        """Return what has the frames dropped that a condition is true of."""
        return self._redirect().dropping(condition)

    def undo(self, number: int) -> None:
        """Undo a fault or a cut."""
        if self._through_switch is not None:
            self._through_switch.undo(number)

    def capture(self, path: Path, *, links: Sequence[str], comment: str, limit: int) -> CaptureWriter:
        """Have the switch write what crosses the segment, or passes links, into a new file."""
        return self._redirect().capture(path, links=links, comment=comment, limit=limit)

    def _redirect(self) -> RedirectedSegment:
        """Have all frames pass the switch, from the first fault or capture on."""
        with self._lock:
            if self._through_switch is None:
                new = RedirectedSegment(self._switch, self._tag, rates=_rates(self._spec))
                with ExitStack() as undone:
                    undone.callback(new.end_redirection)
                    for link in self._links.values():
                        undone.callback(link.end_redirection)
                        link.redirect(new)
                    new.join_guests()
                    undone.pop_all()
                self._through_switch = new
                _log.info("%s: all frames pass the switch from now on", self._name)
            return self._through_switch

    def _find(self, link: str) -> TapLink:
        with self._lock:
            found = self._links.get(link)
        if found is None:
            raise SwitchFailed(
                f"{self._name} has no link {link} any more: the guest or the segment was removed"
            )
        return found


def _rates(spec: NetworkSpec) -> dict[Direction, int]:
    """Return the bits per second that a network allows each card, seen from the guest."""
    inbound, outbound = spec.kilobytes_per_second("inbound"), spec.kilobytes_per_second("outbound")
    rates: dict[Direction, int | None] = {"in": inbound, "out": outbound}
    return {way: 8000 * kilobytes for way, kilobytes in rates.items() if kilobytes is not None}
