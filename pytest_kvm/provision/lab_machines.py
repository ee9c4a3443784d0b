"""Other machines in the place of a lab's guests: all are started, then all go on together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from pytest_kvm.at_once import do_at_once
from pytest_kvm.host.disk_space import why_no_space
from pytest_kvm.provision.disk_room import CLONE_MIB

if TYPE_CHECKING:
    from pytest_kvm.boot_cache.template import Template
    from pytest_kvm.provision.clone import Clone
    from pytest_kvm.provision.guest_machines import GuestMachines
    from pytest_kvm.provision.start_request import StartRequest
    from pytest_kvm.provision.starter import Started


@dataclass(frozen=True, kw_only=True)
class Member:
    """A guest of a lab, and the key of its part of the lab template."""

    machines: GuestMachines
    key: str
    template: Template
    """The guest's own template."""

    @property
    def current(self) -> Started:
        """Its machine."""
        return self.machines.current


Start = Callable[[Member, "StartRequest", ExitStack], "Clone"]
"""Starts a machine of a guest, which stays paused; the stack gets the steps that remove it."""


@dataclass(frozen=True, kw_only=True)
class _Fresh:
    """A machine that is to take the place of a guest's current one."""

    member: Member
    request: StartRequest
    clone: Clone
    undo: ExitStack

    def attach(self) -> None:
        """Move the guest's links to it."""
        with self.request.teardown.adding():  # once the guest is removed, its links and its ports are gone
            self.clone.machine.links.attach(self.clone.machine)

    def wake(self, known_addresses: frozenset[str] | None) -> _Fresh:
        """Let it run; return it as it is then.

        Args:
            known_addresses: See :func:`replace_machines`.
        """
        lines = self.request.host_lines()
        if known_addresses is None:
            return replace(self, clone=self.clone.wake(host_lines=lines))
        clone = self.clone.wake()
        clone.machine.hosts_file.note([line for line in lines if line.partition("\t")[0] in known_addresses])
        return replace(self, clone=clone)

    def take_over(self) -> Started:
        """Have the guest's handle lead to it; return what it led to."""
        former = self.member.current
        phases = former.machine.phases
        return self.member.machines.replace_current(
            replace(
                former,
                machine=replace(self.clone.machine, phases=phases),
                request=self.request,
                plan=self.clone.plan,
                undo=self.undo,
                events=(),
            )
        )


def replace_machines(
    members: Sequence[Member], start: Start, *, known_addresses: frozenset[str] | None
) -> None:
    """Start a machine for each guest, have all of them go on together, and remove the former ones.

    If one cannot be started, all new ones are removed, and the handles lead to the former ones. Where there
    is no room on this host for both, the former ones are removed before.

    Args:
        members: The guests.
        start: Starts one machine.
        known_addresses: Addresses for which the machines' hosts files have names already; None: they have
            no other guest's name, and are told all.
    """

    def start_one(member: Member) -> _Fresh:
        request = member.machines.successor()
        with request.teardown.attempting() as undo:
            clone = start(member, request, undo)
        attempt.callback(undo.close)
        return _Fresh(member=member, request=request, clone=clone, undo=undo)

    with ExitStack() as rooms, ExitStack() as attempt:
        folder, needed = members[0].current.machine.folder, len(members) * CLONE_MIB
        has_room = all(rooms.enter_context(member.current.request.room.doubled()) for member in members)
        if not has_room or why_no_space(folder, mib=needed):
            do_at_once([member.current.undo.close for member in members])
        fresh = do_at_once([partial(start_one, member) for member in members])
        do_at_once([each.attach for each in fresh])
        awake = do_at_once([partial(each.wake, known_addresses) for each in fresh])
        attempt.pop_all()
        with ExitStack() as removals:
            for each in awake:
                removals.callback(each.take_over().undo.close)
