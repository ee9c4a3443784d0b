"""The segments of a run: makes and removes them, gives guests their cards on them, and names the guests.

A guest's card has a *link* on its segment, which the guest keeps. Each machine
of the guest has a *port* for the card, which QEMU connects to. The link is
attached to the port of the machine that runs.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvm.errors import GuestError, GuestGone, SpecError, SwitchFailed
from pytest_kvm.handles.guest import running_machine
from pytest_kvm.handles.segment import GuestNic, Segment
from pytest_kvm.hypervisor.protocol import DomainState
from pytest_kvm.provision.addresses import (
    choose_interface4,
    choose_interface6,
    choose_mac,
    choose_subnet4,
    choose_subnet6,
)
from pytest_kvm.provision.machine_plan import port_path
from pytest_kvm.spec.neighbours import hostname_from, names_of

if TYPE_CHECKING:
    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.machine.machine import Machine
    from pytest_kvm.provision.run_resources import Lazy
    from pytest_kvm.render.plan import DomainPlan
    from pytest_kvm.spec.guest import GuestSpec
    from pytest_kvm.spec.network import NetworkSpec
    from pytest_kvm.switch.client import Switch


class Segments:
    """The segments of one run.

    Args:
        switch: The run's switch; its process is started for the first segment.
    """

    def __init__(self, switch: Lazy[Switch]) -> None:
        self._switch = switch
        self._lock = threading.Lock()
        self._segments: dict[str, Segment] = {}
        """By the segment's name in the switch."""
        self._numbers = itertools.count(1)
        self._telling = threading.Lock()

    def make(self, name: str, spec: NetworkSpec) -> Segment:
        """Make a segment.

        Raises:
            SpecError: No automatic subnet is free.
            SwitchFailed: The switch did not start.
        """
        switch = self._switch.get()
        with self._lock:
            others = self._segments.values()
            tag = f"{name}-{next(self._numbers)}"
            segment = Segment(
                name,
                spec,
                subnet=choose_subnet4(name, spec, others=others),
                subnet6=choose_subnet6(name, spec, others=others),
                tag=tag,
                counters=partial(switch.counters, tag),
            )
            switch.add_segment(tag)
            self._segments[tag] = segment
        return segment

    def remove(self, segment: Segment) -> None:
        """Remove a segment; guests that are still on it are cut off."""
        with self._lock:
            if self._segments.pop(segment.tag, None) is not None:
                self._switch.get().remove_segment(segment.tag)

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
        joined: list[GuestNic] = []
        try:
            for index, nic in enumerate(spec.nics):
                if isinstance(nic.network, Segment):
                    joined.append(
                        self._join(guest, spec, index, segment=nic.network, declared_name=declared_name)
                    )
        except BaseException:
            self.leave(joined)
            raise
        return tuple(joined)

    def leave(self, nics: Sequence[GuestNic]) -> None:
        """Take a guest's cards off their segments; a second call does nothing."""
        for nic in nics:
            with self._lock, suppress(SwitchFailed):  # the removal of the segment will raise it
                if nic in nic.segment.nics:
                    nic.segment.nics.remove(nic)
                    if nic.segment.tag in self._segments:
                        self._switch.get().remove_link(nic.segment.tag, nic.link)

    def tell_names(self, nics: Sequence[GuestNic]) -> None:
        """Have the guests on a guest's segments know each other's names, also of those that joined late.

        Guests that boot are told when they are ready, and those that are paused when they run again.

        Raises:
            SwitchFailed: The switch has ended, so the guests do not reach each other.
        """
        self._switch.get().check()
        with self._telling:
            for guest in dict.fromkeys(other.guest for nic in nics for other in nic.segment.nics):
                machine, lines = running_machine(guest), self.host_lines(guest.nics)
                if machine is None or machine.hosts_file.has(lines):
                    continue
                if machine.domain.state() is not DomainState.RUNNING:
                    continue
                try:
                    machine.hosts_file.update(machine, lines)
                except GuestError as failure:
                    machine.log.warning("%s", failure)

    def host_lines(self, nics: Sequence[GuestNic]) -> list[str]:
        """Return lines of hosts(5) for a guest with these cards: the names of all guests on its segments."""
        with self._lock:
            met = [other for nic in nics for other in nic.segment.nics]
        lines = [
            "\t".join([str(address), *other.names])
            for other in met
            for address in (other.address, other.address6)
            if address is not None
        ]
        return list(dict.fromkeys(lines))

    def _join(
        self, guest: Guest, spec: GuestSpec, index: int, *, segment: Segment, declared_name: str
    ) -> GuestNic:
        nic = spec.nics[index]
        with self._lock:
            if segment.tag not in self._segments:
                raise SpecError(
                    f"Nic.network: the segment {segment.name} was removed",
                    resolution=f"ask for its fixture: def {declared_name}({segment.name})",
                )
            link = _link_name(segment, guest, declared_name)
            joined = GuestNic(
                guest=guest,
                segment=segment,
                index=index,
                link=link,
                names=_names(guest, spec, segment, declared_name),
                mac=choose_mac(nic, segment, link=link),
                interface4=choose_interface4(nic, segment),
                interface6=choose_interface6(nic, segment),
            )
            self._switch.get().add_link(segment.tag, link)
            segment.nics.append(joined)
        return joined


def open_ports(switch: Lazy[Switch], plan: DomainPlan, *, stack: ExitStack) -> None:
    """Have the switch listen for the cards of a machine before it is started; the stack closes the ports.

    Raises:
        SwitchFailed: The switch did not start, or has ended.
    """
    for planned in plan.segment_nics:
        switch.get().open_port(planned.port)
        stack.callback(_close_port, switch, planned.port)


def _close_port(switch: Lazy[Switch], port: Path) -> None:
    with suppress(SwitchFailed, GuestGone):  # the switch has ended, and its ports with it
        switch.get().close_port(port)


def attach_links(switch: Lazy[Switch], nics: Sequence[GuestNic], *, machine: Machine) -> None:
    """Attach a guest's links to a machine that is about to run; the links of its former machine are moved.

    Raises:
        SwitchFailed: The switch has ended.
    """
    for nic in nics:
        port = port_path(machine.folder, nic.index)
        switch.get().attach(nic.segment.tag, nic.link, port=port)


def _link_name(segment: Segment, guest: Guest, declared_name: str) -> str:
    """Return a name that no other link on the segment has; a guest's second card there gets a number."""
    base = guest.name if _is_taken(segment, guest, declared_name) else declared_name
    same = sum(nic.guest is guest for nic in segment.nics)
    return f"{base}.{same + 1}" if same else base


def _names(guest: Guest, spec: GuestSpec, segment: Segment, declared_name: str) -> tuple[str, ...]:
    """Return the names by which other guests on a segment find a guest.

    Raises:
        SpecError: Another guest on the segment has one of them.
    """
    names = dict.fromkeys(names_of(guest.name, spec))
    if not _is_taken(segment, guest, declared_name):
        names |= dict.fromkeys(names_of(declared_name, spec))
    for nic in segment.nics:
        alike = [name for name in names if name in nic.names and nic.guest is not guest]
        if alike:
            raise SpecError(
                f"{guest.name} and {nic.guest.name} are both called {alike[0]!r} on {segment.name}",
                resolution="give each its own hostname=, or its fixture another name",
            )
    domain = hostname_from(segment.name)
    return *names, *(f"{name}.{domain}" for name in names if "." not in name)


def _is_taken(segment: Segment, guest: Guest, name: str) -> bool:
    return any(
        nic.guest is not guest and (nic.link == name or hostname_from(name) in nic.names)
        for nic in segment.nics
    )
