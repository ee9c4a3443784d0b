"""The segments of a run: makes and removes them, gives guests their cards on them, and names the guests.

A guest's card has a *link* on its segment, which the guest keeps;
:mod:`~pytest_kvm.provision.guest_links` attaches it to the machine that runs.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_kvm.errors import SpecError, SwitchFailed
from pytest_kvm.handles.guest import running_machine
from pytest_kvm.handles.segment import GuestNic, Segment, add_nic, discard_nic
from pytest_kvm.hypervisor.protocol import DomainState
from pytest_kvm.provision.addresses import (
    choose_interface4,
    choose_interface6,
    choose_mac,
    choose_subnet4,
    choose_subnet6,
)
from pytest_kvm.provision.libvirt_segment import LibvirtSegment
from pytest_kvm.provision.subnet_claims import SubnetTaken
from pytest_kvm.provision.switch_segment import SwitchSegment
from pytest_kvm.spec.neighbours import hostname_from, names_of
from pytest_kvm.spec.network import Network

if TYPE_CHECKING:
    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.handles.segment_backend import SegmentBackend
    from pytest_kvm.provision.run_resources import Lazy, RunResources
    from pytest_kvm.provision.segment_captures import SegmentCaptures
    from pytest_kvm.provision.segment_faults import SegmentFaults
    from pytest_kvm.spec.guest import GuestSpec
    from pytest_kvm.spec.network import NetworkSpec
    from pytest_kvm.switch.client import Switch

_MOST_ATTEMPTS = 8
"""How many subnets are tried for a libvirt network: the host or another run may have some of them."""


class Segments:
    """The segments of one run.

    Args:
        switch: The run's switch; its process is started for the first segment that it makes, or for the first
            fault or capture on a libvirt network.
        resources: What the run has opened; opened for the first segment that libvirt makes.
        faults: The faults of all segments.
        captures: The captures of all segments.
        before_removal: Called with libvirt's name of a network that is about to be removed.
    """

    def __init__(
        self,
        switch: Lazy[Switch],
        resources: Lazy[RunResources],
        *,
        faults: SegmentFaults,
        captures: SegmentCaptures,
        before_removal: Callable[[str], None],
    ) -> None:
        self._switch = switch
        self._resources = resources
        self._faults = faults
        self._captures = captures
        self._before_removal = before_removal
        self._lock = threading.Lock()
        self._segments: dict[Segment, frozenset[str]] = {}
        """Each with the addresses that guests on it have only if their specs name them."""
        self._numbers = itertools.count(1)
        self._network_numbers = itertools.count(1)
        """Of those that are libvirt networks."""

    def make(self, name: str, spec: NetworkSpec, *, reserved: Collection[str] = ()) -> Segment:
        """Make a segment.

        Args:
            name: Its name in messages and in the names of its guests.
            spec: What it is made of.
            reserved: Addresses that specs name, and that no other guest is to be given.

        Raises:
            SpecError: No automatic subnet is free, or the connection makes no networks.
            NetworkFailed: libvirt refused to make the network.
            SwitchFailed: The switch did not start.
        """
        with self._lock:
            network, backend = self._make_backend(name, spec)
            segment = Segment(
                name,
                spec,
                subnet=network.subnet,
                subnet6=network.subnet6,
                backend=backend,
                faults=self._faults,
                captures=self._captures,
            )
            self._segments[segment] = frozenset(reserved)
        self._captures.record([segment])
        return segment

    def _make_backend(self, name: str, spec: NetworkSpec) -> tuple[Network, SegmentBackend]:
        """Make what passes a segment's frames; try other subnets if the host has those that were chosen."""
        refused: list[Network] = []
        while True:
            others = [*self._segments, *refused]
            network = Network(
                name,
                spec,
                subnet=choose_subnet4(name, spec, others=others, run=self._run_on_bridge(spec)),
                subnet6=choose_subnet6(name, spec, others=others, run=self._run_of_subnet6(spec)),
            )
            tag = f"{name}-{next(self._numbers)}"
            if not spec.is_libvirt:
                return network, SwitchSegment(self._switch, tag)
            number = next(self._network_numbers)
            try:
                return network, LibvirtSegment(
                    self._resources.get(), self._switch, network, tag=tag, number=number
                )
            except SubnetTaken as failure:
                is_given = getattr(spec, failure.field) != "auto"
                if is_given or len(refused) == _MOST_ATTEMPTS - 1:
                    raise
                refused.append(network)

    def _run_of_subnet6(self, spec: NetworkSpec) -> str:
        """Return the run's id for an IPv6 subnet that no other run on this host may have; else ""."""
        return self._resources.get().session if spec.has_addresses_of_its_run else ""

    def _run_on_bridge(self, spec: NetworkSpec) -> str:
        """Return the run's id for addresses that no other run on the same bridge may have; else ""."""
        return "" if spec.bridge is None else self._resources.get().session

    def all(self) -> list[Segment]:
        """Return the segments that are not removed."""
        with self._lock:
            return list(self._segments)

    def remove(self, segment: Segment) -> None:
        """Remove a segment; guests that are still on it are cut off.

        Raises:
            Exception: Whatever the function of a fault raised; the segment is removed.
            NetworkFailed: libvirt could not remove the network.
            SwitchFailed: The switch has ended.
        """
        segment.is_removed = True
        try:
            self._faults.forget(segment)
            if segment.backend.network is not None:
                self._before_removal(segment.backend.network)
        finally:
            with self._lock:
                if self._segments.pop(segment, None) is not None:
                    segment.backend.remove()

    def join(self, guest: Guest, spec: GuestSpec, *, declared_name: str) -> tuple[GuestNic, ...]:
        """Give a guest its cards on the segments that its spec names.

        Args:
            guest: The guest; its own name may end with a number, because another guest has the name.
            spec: What the guest is made of.
            declared_name: The guest's name without that number. Other guests on its segments find it
                by this name, too, unless another guest there has it.

        Raises:
            SpecError: An address or a name is another guest's, no address is free, or a segment is removed.
            SwitchFailed: The switch has ended.
        """
        newcomer = _Newcomer(guest=guest, spec=spec, declared_name=declared_name)
        try:
            for index, nic in enumerate(spec.nics):
                if isinstance(nic.network, Segment):
                    self._join(newcomer, index, segment=nic.network)
        except BaseException:
            self.leave(newcomer.joined)
            raise
        return tuple(newcomer.joined)

    def leave(self, nics: Sequence[GuestNic]) -> None:
        """Take a guest's cards off their segments; a second call does nothing."""
        for nic in nics:
            with self._lock, suppress(SwitchFailed):  # the removal of the segment will raise it
                if discard_nic(nic.segment, nic) and nic.segment in self._segments:
                    nic.segment.backend.remove_link(nic.link)

    def tell_names(self, guest: Guest) -> None:
        """Have the guests on a guest's segments know each other's names, also of those that joined late.

        Guests that boot are told when they are ready, and those that are paused when they run again.

        Raises:
            GuestError: The guest itself cannot be told.
            SwitchFailed: The switch has ended, so the guests do not reach each other.
        """
        for nic in guest.nics:
            nic.segment.backend.check()
        for each in dict.fromkeys(other.guest for nic in guest.nics for other in nic.segment.nics):
            machine, lines = running_machine(each), self.host_lines(each.nics)
            if machine is None or machine.hosts_file.has(lines):
                continue
            if machine.domain.state() is not DomainState.RUNNING:
                continue
            if each is guest:
                machine.hosts_file.update(machine, lines)
            else:
                machine.hosts_file.offer(machine, lines)

    def host_lines(self, nics: Sequence[GuestNic]) -> list[str]:
        """Return lines of hosts(5) for a guest with these cards: the names of all guests on its segments.

        Of several cards of a guest on one segment the first counts: a name leads to one of them.
        """
        with self._lock:
            met = [other for segment in dict.fromkeys(nic.segment for nic in nics) for other in segment.nics]
        lines: dict[tuple[Segment, Guest, int], str] = {}
        for other in met:
            for version, address in ((4, other.address), (6, other.address6)):
                if address is not None:
                    line = "\t".join([str(address), *other.names])
                    lines.setdefault((other.segment, other.guest, version), line)
        return list(lines.values())

    def _join(self, newcomer: _Newcomer, index: int, *, segment: Segment) -> None:
        nic = newcomer.spec.nics[index]
        with self._lock:
            if segment.is_removed:
                raise SpecError(
                    f"Nic.network: the segment {segment.name} was removed",
                    resolution=f"ask for its fixture: def {newcomer.declared_name}({segment.name})",
                )
            link, run = newcomer.link_name(segment), self._run_on_bridge(segment.spec)
            reserved = self._segments[segment] | newcomer.addresses()
            joined = GuestNic(
                guest=newcomer.guest,
                segment=segment,
                index=index,
                link=link,
                names=newcomer.names(segment),
                mac=choose_mac(nic, segment, link=link, reserved=newcomer.macs(index), run=run),
                interface4=choose_interface4(nic, segment, reserved=reserved),
                interface6=choose_interface6(nic, segment, reserved=reserved),
            )
            segment.backend.add_link(link)
            if nic.link == "down":
                segment.backend.set_link(link, up=False)
            add_nic(segment, joined)
            newcomer.joined.append(joined)


@dataclass(frozen=True, kw_only=True)
class _Newcomer:
    """A guest that joins the segments of its spec."""

    guest: Guest
    spec: GuestSpec
    declared_name: str
    joined: list[GuestNic] = field(default_factory=list)

    def addresses(self) -> set[str]:
        """Return the IP addresses that the spec gives its cards."""
        given = {address for nic in self.spec.nics for address in (nic.address, nic.address6)}
        return {address for address in given if address is not None}

    def macs(self, index: int) -> set[str]:
        """Return the MAC addresses of the guest's cards but that at an index of the spec's ``nics``."""
        given = {nic.mac for other, nic in enumerate(self.spec.nics) if other != index}
        return {mac for mac in given if mac is not None} | {nic.mac for nic in self.joined}

    def link_name(self, segment: Segment) -> str:
        """Return a name that no other link on the segment has; a guest's second card there gets a number."""
        base = self.guest.name if self._is_taken(segment) else self.declared_name
        number = 1 + sum(nic.segment is segment for nic in self.joined)
        taken = {nic.link for nic in segment.nics}
        numbers = itertools.count(number)
        names = (base if each == 1 else f"{base}.{each}" for each in numbers)
        return next(name for name in names if name not in taken)

    def names(self, segment: Segment) -> tuple[str, ...]:
        """Return the names by which other guests on a segment find the guest.

        Raises:
            SpecError: Another guest on the segment has one of them.
        """
        names = dict.fromkeys(names_of(self.guest.name, self.spec))
        if not self._is_taken(segment):
            names |= dict.fromkeys(names_of(self.declared_name, self.spec))
        for nic in segment.nics:
            alike = [name for name in names if name.lower() in map(str.lower, nic.names)]
            if alike and nic.guest is not self.guest:
                raise SpecError(
                    f"{self.guest.name} and {nic.guest.name} are both called {alike[0]!r} on {segment.name}",
                    resolution="give each its own hostname=, or its fixture another name",
                )
        domain = hostname_from(segment.name)
        return *names, *(f"{name}.{domain}" for name in names if "." not in name)

    def _is_taken(self, segment: Segment) -> bool:
        """Say whether another guest on a segment has the guest's declared name."""
        hostname = hostname_from(self.declared_name)
        return any(
            nic.guest is not self.guest and (nic.link == self.declared_name or hostname in nic.names)
            for nic in segment.nics
        )
