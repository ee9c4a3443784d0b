"""``Segment``: the handle by which a test uses a segment, and ``GuestNic``, a guest's card on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import TYPE_CHECKING, Any

from pytest_kvm.errors import GuestGone, SpecError
from pytest_kvm.handles.fault_verbs import FaultableSegment, Member
from pytest_kvm.sizes import parse_kib
from pytest_kvm.spec.network import Network, NetworkSpec
from pytest_kvm.spec.subnets import IpVersion
from pytest_kvm.spec.value import check_choice

if TYPE_CHECKING:
    from pytest_kvm.handles.capture import Capture, CaptureControl
    from pytest_kvm.handles.fault import FaultControl
    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.handles.segment_backend import SegmentBackend
    from pytest_kvm.spec.subnets import Address
    from pytest_kvm.switch.link import Direction

_FIND_DEVICE = """\
for device in /sys/class/net/*/device; do
    grep -lixF "$1" "${device%/device}/address" && exit
done
exit 1
"""
"""Prints the file with the address of a card; bridges and VLANs, which have it too, are no devices."""
Counters = Mapping["Direction", Mapping[str, Any]]


class Segment(FaultableSegment, Network):
    """An Ethernet segment that guests are joined by; what a ``@kvm.network`` fixture returns.

    Args:
        name: The fixture's name.
        spec: What the segment is made of.
        subnet: Its IPv4 subnet; None if its cards get no IPv4 address.
        subnet6: Its IPv6 subnet, likewise.
        backend: What passes its frames.
        faults: Sets faults.
        captures: Begins captures.
    """

    def __init__(
        self,
        name: str,
        spec: NetworkSpec,
        *,
        subnet: IPv4Network | None,
        subnet6: IPv6Network | None,
        backend: SegmentBackend,
        faults: FaultControl,
        captures: CaptureControl,
    ) -> None:
        super().__init__(name, spec, subnet=subnet, subnet6=subnet6)
        self.backend = backend
        self._nics: list[GuestNic] = []
        self._faults = faults
        self._captures = captures

    def __repr__(self) -> str:
        subnets = [str(subnet) for subnet in (self.subnet, self.subnet6) if subnet is not None]
        return f"<Segment {self.name}: {', '.join(subnets) or 'no addresses'}>"

    @property
    def nics(self) -> tuple[GuestNic, ...]:
        """The cards on the segment, in the order in which their guests were started."""
        return tuple(self._nics)

    def address_of(self, guest: Guest, *, version: IpVersion = 4) -> str:
        """Return the fixed address of a guest on this segment.

        Args:
            guest: A guest that has a card here; of several cards the first with such an address counts.
            version: Version of IP.

        Raises:
            SpecError: The guest has no card here, or no fixed address.
        """
        check_choice(version, IpVersion, field="version")
        own = [nic for nic in guest.nics if nic.segment is self] or self._nics_of(guest)
        addresses = (nic.address if version == 4 else nic.address6 for nic in own)
        address = next((each for each in addresses if each is not None), None)
        if address is None:
            raise SpecError(f"{guest.name} has no fixed IPv{version} address on the segment {self.name}")
        return str(address)

    @property
    def counters(self) -> Mapping[str, Counters]:
        """Frames and bytes that passed each link, and frames that were dropped there, by reason.

        A link is named after its guest. ``out`` is what came from the guest, ``in`` what went to it.

        Raises:
            SpecError: The segment was removed.
        """
        if self.is_removed:
            raise SpecError(f"the segment {self.name} was removed, and its counters with it")
        return self.backend.counters()

    def capture(self, *, link: Member | None = None, limit: str = "256MiB") -> Capture:
        """Begin to capture the frames that cross the segment, each once, to whatever guests it goes.

        On a link, those from the guest are captured before all faults, and those to
        the guest after all.

        Args:
            link: The guest or card whose cable is captured instead.
            limit: The size of its file at which the capture breaks off.

        Raises:
            SpecError: The guest has no card on this segment; the limit is no size; the segment was removed.
            SwitchFailed: The file cannot be written, or the switch has ended.
        """
        nics = [] if link is None else self._nics_of(link)
        size = parse_kib(limit, field=f"{self.name}.capture: limit") * 1024
        return self._captures.begin(self, nics, limit=size)


def add_nic(segment: Segment, nic: GuestNic) -> None:
    """Put a card onto a segment; this is no method, because tests must not call it."""
    segment._nics.append(nic)  # noqa: SLF001 - of the same module


def discard_nic(segment: Segment, nic: GuestNic) -> bool:
    """Take a card off a segment; say whether it was there."""
    if nic not in segment._nics:  # noqa: SLF001 - as above
        return False
    segment._nics.remove(nic)  # noqa: SLF001 - as above
    return True


@dataclass(frozen=True, kw_only=True, eq=False)
class GuestNic:
    """A guest's card on a segment, with the link that leads from it; both outlast resets and reboots."""

    guest: Guest
    """The guest that has the card."""
    segment: Segment
    """The segment that the card is on."""
    index: int
    """Index of the card in the spec's ``nics``."""
    link: str
    """Name of the link on the segment."""
    names: tuple[str, ...]
    """Names by which other guests on the segment find this guest."""
    mac: str
    """MAC address, in lower case."""
    interface4: IPv4Interface | None
    """IPv4 address with its prefix length; None if the card has no fixed one."""
    interface6: IPv6Interface | None
    """IPv6 address, likewise."""

    def __repr__(self) -> str:
        words = [self.mac, *self.addresses]
        return f"<GuestNic {self.link} on {self.segment.name}: {' '.join(words)}>"

    @property
    def address(self) -> Address | None:
        """The fixed IPv4 address."""
        return None if self.interface4 is None else self.interface4.ip

    @property
    def address6(self) -> Address | None:
        """The fixed IPv6 address."""
        return None if self.interface6 is None else self.interface6.ip

    @property
    def addresses(self) -> tuple[str, ...]:
        """The fixed addresses with their prefix lengths."""
        return tuple(str(each) for each in (self.interface4, self.interface6) if each is not None)

    @property
    def gateways(self) -> tuple[Address, ...]:
        """The host's addresses on the segment that the guest's default routes by this card lead to."""
        own = {address.version for address in (self.address, self.address6) if address is not None}
        return tuple(each for each in self.segment.gateways if each.version in own)

    @property
    def device(self) -> str:
        """The guest's own name of the card, such as ``enp4s0``; asking runs a command in the guest.

        Raises:
            CommandFailed: The guest has no card with this MAC address.
        """
        found = self.guest.run(["sh", "-c", _FIND_DEVICE, "sh", self.mac]).stdout
        return found.split("/")[-2]

    def capture(self, *, limit: str = "256MiB") -> Capture:
        """Begin to capture the frames that pass the link, as :meth:`Segment.capture` does with ``link=``.

        Args:
            limit: The size of its file at which the capture breaks off.

        Raises:
            SpecError: The limit is no size, or the segment was removed.
            SwitchFailed: The file cannot be written, or the switch has ended.
        """
        return self.segment.capture(link=self, limit=limit)

    @property
    def counters(self) -> Counters:
        """Frames and bytes that passed the link, and frames that were dropped there, by reason.

        Raises:
            GuestGone: The guest was removed.
        """
        if self not in self.segment.nics:
            raise GuestGone(f"{self.guest.name} was removed, and its card on {self.segment.name} with it")
        return self.segment.counters[self.link]
