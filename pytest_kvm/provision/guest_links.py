"""A guest's links to its segments: attached to the machine that runs, and detached between two tests.

Each machine of a guest has a port of the switch for each card on a segment. The
guest's links outlast its machines, and are attached to the ports of one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from pytest_kvm.errors import DomainFailed, GuestGone, SnapshotFailed, SwitchFailed
from pytest_kvm.handles.segment_backend import MachineCard
from pytest_kvm.hypervisor.protocol import DomainState
from pytest_kvm.provision.machine_plan import port_path
from pytest_kvm.provision.restorable_state import Traffic
from pytest_kvm.render.qemu_args import segment_card_ids
from pytest_kvm.waiting import NotYet, wait_until

if TYPE_CHECKING:
    from pytest_kvm.handles.segment import GuestNic
    from pytest_kvm.machine.machine import Machine
    from pytest_kvm.provision.run_resources import Lazy
    from pytest_kvm.render.plan import DomainPlan
    from pytest_kvm.render.qemu_args import CardIds
    from pytest_kvm.switch.client import Switch

_TAKEN_WITHIN = 10.0
"""Seconds for QEMU to read what the switch has sent it, which takes milliseconds."""
_LOOK_EVERY = 0.002


class GuestLinks:
    """All links of one guest.

    Args:
        nics: The guest's cards on segments.
    """

    def __init__(self, nics: Sequence[GuestNic]) -> None:
        self._nics = tuple(nics)

    def traffic(self) -> Traffic:
        """Return how many frames have passed by which guests can have changed each other.

        Raises:
            SwitchFailed: The switch has ended.
        """
        counted = [nic.segment.backend.traffic(nic.link) for nic in self._nics]
        return Traffic(sum(reached for reached, _ in counted), sum(told for _, told in counted))

    def detach(self) -> None:
        """Let no frame from or to the guest pass; those that are on their way are lost.

        Raises:
            SwitchFailed: The switch has ended.
        """
        for nic in self._nics:
            nic.segment.backend.attach(nic.link, None)

    def attach(self, machine: Machine) -> None:
        """Attach the links to a machine that is about to run; those of the guest's former machine are moved.

        The machine's cards have a carrier if the links are plugged in.

        Raises:
            DomainFailed: QEMU has ended.
            SwitchFailed: The switch has ended.
        """
        for nic in self._nics:
            is_plugged_in = nic.segment.backend.attach(nic.link, _card_of(machine, nic))
            set_carrier(machine, nic, on=is_plugged_in)

    def drop_frames(self, machine: Machine) -> None:
        """Drop the frames for a machine, whose links are detached; a savepoint will be loaded into it.

        The machine is paused afterwards if it has cards, also if this fails. QEMU keeps the frames
        for a paused guest, in a socket or in a queue of its own, and hands them to the guest when it
        goes on. So the guest runs while they are dropped: QEMU reads all frames then, and drops
        them because the card's link is down (``qemu_send_packet_async_with_flags()`` and
        ``qemu_deliver_packet_iov()`` in its ``net/net.c``). What its queue has left is dropped
        when the guest stops (``net_vm_change_state_handler()``). The guest does not notice,
        because the card's own link state is loaded with the savepoint.

        Raises:
            SnapshotFailed: QEMU cannot be made to drop the frames.
            SwitchFailed: The switch has ended.
        """
        if not self._nics:
            return
        domain = machine.domain
        try:
            is_paused = domain.state() is DomainState.PAUSED
            self._set_links(machine, up=False)
            if is_paused:
                domain.resume()  # each card of a paused guest holds back frames until it runs
            try:
                for nic in self._nics:
                    self._wait_drained(nic, machine)
            finally:
                domain.suspend()
            self._set_links(machine, up=True)
        except DomainFailed as failure:
            raise SnapshotFailed(
                f"the frames for {machine.name} cannot be dropped: {failure.brief}", details=failure.details
            ) from failure

    def _set_links(self, machine: Machine, *, up: bool) -> None:
        for nic in self._nics:
            machine.domain.qmp("set_link", {"name": _ids_of(nic).netdev, "up": up})

    def _wait_drained(self, nic: GuestNic, machine: Machine) -> None:
        card = _card_of(machine, nic)

        def look() -> None:
            if not nic.segment.backend.is_drained(card):
                raise NotYet("frames wait")

        wait_until(
            look,
            describe=f"QEMU of {machine.name} to drop the frames for its card on {nic.segment.name}",
            timeout=_TAKEN_WITHIN,
            every=_LOOK_EVERY,
            error=SnapshotFailed,
            clock=machine.domain.clock,
        )


def open_ports(switch: Lazy[Switch], plan: DomainPlan, *, stack: ExitStack) -> None:
    """Have the switch listen for the cards of a machine before it is started; the stack closes the ports.

    Raises:
        SwitchFailed: The switch did not start, or has ended.
    """
    stack.callback(close_ports, switch, plan)
    for planned in plan.segment_nics:
        if planned.network is None:
            switch.get().open_port(planned.port)


def close_ports(switch: Lazy[Switch], plan: DomainPlan) -> None:
    """Close the ports of a machine, whose links stay; a second call does nothing."""
    with suppress(SwitchFailed, GuestGone):  # the switch has ended, and its ports with it
        for planned in plan.segment_nics:
            if planned.network is None:
                switch.get().close_port(planned.port)


def set_carrier(machine: Machine, nic: GuestNic, *, on: bool) -> None:
    """Give a guest's card its carrier, or take it away.

    Raises:
        DomainFailed: QEMU has ended.
    """
    machine.carriers.set(machine.domain, _ids_of(nic).device, on=on)


def _card_of(machine: Machine, nic: GuestNic) -> MachineCard:
    port = port_path(machine.folder, nic.index)
    return MachineCard(domain=machine.domain, port=port, ids=_ids_of(nic))


def _ids_of(nic: GuestNic) -> CardIds:
    """Return QEMU's ids of a guest's card, which are those of its number among the cards on segments."""
    number = nic.guest.nics.index(nic) + 1
    return segment_card_ids(number, is_tap=nic.segment.backend.network is not None)
