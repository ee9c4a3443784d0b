"""The verbs by which a test cuts a segment, unplugs cables, and makes lines bad."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias, Union, get_args

from pytest_kvm.errors import SpecError
from pytest_kvm.handles.condition import Condition, check_condition
from pytest_kvm.handles.fault import Stretch
from pytest_kvm.sizes import parse_bits_per_second, parse_kib
from pytest_kvm.spec.value import check_choice, check_seconds, is_number
from pytest_kvm.switch.link import Direction

if TYPE_CHECKING:
    from pytest_kvm.handles.fault import Fault, FaultControl
    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.handles.segment import GuestNic
    from pytest_kvm.handles.segment_backend import SegmentBackend

Member: TypeAlias = Union["Guest", "GuestNic"]
"""Whom a fault is for: a guest, which means all of its cards on the segment, or one card."""


class FaultableSegment(ABC):
    """A segment, as far as its faults are concerned."""

    name: str
    """The fixture's name."""
    backend: SegmentBackend
    """What passes its frames; not for tests."""
    is_removed = False
    """Whether the segment was removed, after which it has no faults, captures and counters."""
    _faults: FaultControl

    @property
    @abstractmethod
    def nics(self) -> tuple[GuestNic, ...]:
        """The cards on the segment."""

    @property
    def guests(self) -> list[Guest]:
        """The guests on the segment, in the order in which they were started."""
        return list(dict.fromkeys(nic.guest for nic in self.nics))

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults that are not undone, the oldest first."""
        return tuple(self._faults.active(self))

    # ------------------------------------------------------------ cuts and cables

    def partition(self, *groups: Member | Iterable[Member]) -> Fault:
        """Let frames pass only between guests of the same group; a guest in no group reaches nobody.

        Of several partitions all are in force.
        Once this has returned, no frame crosses between two groups, not even one that was on its way.

        Args:
            groups: Each a guest, a card, or several of them.

        Raises:
            SpecError: A guest is in two groups, or has no card on this segment; or there is no group.
        """
        if not groups:
            raise SpecError(f"{self.name}.partition: no group", resolution="name one group at least")
        cut = [self._nics_in(group) for group in groups]
        names = [nic.link for nic in chain.from_iterable(cut)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise SpecError(f"{self.name}.partition: {twice} is named twice")
        words = "partition " + " | ".join(_names(group) for group in cut)
        return self._faults.cut(self, words, groups=cut, joins_others=False)

    def isolate(self, *members: Member | Iterable[Member]) -> Fault:
        """Cut guests off from all others, also from each other; their cables stay plugged in.

        Args:
            members: Each a guest, a card, or several of them.

        Raises:
            SpecError: A guest has no card on this segment; or none is named.
        """
        alone = self._nics_for(members, verb="isolate")
        return self._faults.cut(
            self, f"isolate {_names(alone)}", groups=[[nic] for nic in alone], joins_others=True
        )

    def heal(self) -> None:
        """Undo all partitions and isolations; after a test, those that wider-scoped fixtures made are back.

        Raises:
            SpecError: The segment was removed.
        """
        self._faults.heal(self)

    def unplug(self, *members: Member | Iterable[Member]) -> Fault:
        """Pull the cables of guests out, so that no frame passes and the guests see their carriers go.

        This waits until the guests are ready.

        Args:
            members: Each a guest, a card, or several of them.

        Raises:
            BootFailed: A guest did not become ready.
            SpecError: A guest has no card on this segment; or none is named.
        """
        return self._faults.set_cables(self, self._nics_for(members, verb="unplug"), plugged_in=False)

    def plug(self, *members: Member | Iterable[Member]) -> Fault:
        """Plug the cables of guests in; when this is undone, they are as they were.

        Args:
            members: As in :meth:`unplug`.

        Raises:
            BootFailed: A guest did not become ready.
            SpecError: A guest has no card on this segment; or none is named.
        """
        return self._faults.set_cables(self, self._nics_for(members, verb="plug"), plugged_in=True)

    # ------------------------------------------------------------ bad lines

    def delay(
        self,
        seconds: float,
        *,
        jitter: float = 0.0,
        link: Member | None = None,
        direction: Direction | None = None,
    ) -> Fault:
        """Have frames arrive later, in the order in which they were sent.

        Args:
            seconds: By how much.
            jitter: By how much more or less, at random, in seconds.
            link: The guest or card whose cable it is; None: the segment, which each frame crosses once.
            direction: ``out`` of the guest or ``in``; None: both.

        Raises:
            SpecError: An argument is wrong.
        """
        settings = {
            "seconds": check_seconds(seconds, field=f"{self.name}.delay"),
            "jitter": check_seconds(jitter, field=f"{self.name}.delay: jitter"),
        }
        words = f"delay({seconds:g}, jitter={jitter:g})" if jitter else f"delay({seconds:g})"
        return self._disturb("delay", settings, words=words, link=link, direction=direction)

    def jitter(
        self, seconds: float, *, link: Member | None = None, direction: Direction | None = None
    ) -> Fault:
        """Have each frame arrive later by a random time up to ``seconds``; the frames keep their order.

        The other arguments are those of :meth:`delay`.

        Raises:
            SpecError: An argument is wrong.
        """
        half = check_seconds(seconds, field=f"{self.name}.jitter") / 2
        settings = {"seconds": half, "jitter": half}
        return self._disturb("delay", settings, words=f"jitter({seconds:g})", link=link, direction=direction)

    def loss(
        self, probability: float, *, link: Member | None = None, direction: Direction | None = None
    ) -> Fault:
        """Lose frames, each with a probability from 0 to 1; the other arguments are those of :meth:`delay`.

        Raises:
            SpecError: An argument is wrong.
        """
        return self._chance("loss", probability, link=link, direction=direction)

    def duplicate(
        self, probability: float, *, link: Member | None = None, direction: Direction | None = None
    ) -> Fault:
        """Have frames arrive twice; arguments as in :meth:`loss`.

        Raises:
            SpecError: An argument is wrong.
        """
        return self._chance("duplicate", probability, link=link, direction=direction)

    def corrupt(
        self, probability: float, *, link: Member | None = None, direction: Direction | None = None
    ) -> Fault:
        """Flip one bit of frames, at random behind the Ethernet header; arguments as in :meth:`loss`.

        Raises:
            SpecError: An argument is wrong.
        """
        return self._chance("corrupt", probability, link=link, direction=direction)

    def reorder(
        self,
        probability: float,
        *,
        hold: float = 0.01,
        link: Member | None = None,
        direction: Direction | None = None,
    ) -> Fault:
        """Hold frames back for ``hold`` seconds, so that later ones overtake; else as :meth:`loss`.

        Raises:
            SpecError: An argument is wrong.
        """
        seconds = check_seconds(hold, field=f"{self.name}.reorder: hold")
        return self._chance("reorder", probability, link=link, direction=direction, hold=seconds)

    def rate(
        self,
        bandwidth: str | float,
        *,
        queue: str = "64KiB",
        link: Member | None = None,
        direction: Direction | None = None,
    ) -> Fault:
        """Let so many bits pass in a second; frames wait their turn in a queue.

        Args:
            bandwidth: ``"10Mbit"``, ``"500kbit"``, or bits per second; Ethernet headers count.
            queue: What may wait; a frame that comes while more waits is lost.
            link: As in :meth:`delay`.
            direction: As in :meth:`delay`.

        Raises:
            SpecError: An argument is wrong.
        """
        settings = {
            "bits_per_second": parse_bits_per_second(bandwidth, field=f"{self.name}.rate"),
            "queue": parse_kib(queue, field=f"{self.name}.rate: queue") * 1024,
        }
        words = f"rate({bandwidth!r}, queue={queue!r})"
        return self._disturb("rate", settings, words=words, link=link, direction=direction)

    def drop(
        self,
        condition: Condition,
        *,
        link: Member | None = None,
        direction: Direction | None = None,
    ) -> Fault:
        """Drop the frames that a filter expression matches, or that a function is true of.

        The switch applies a filter expression itself. A function runs in the
        test's process, in a thread of its own, and each frame waits for its answer.
        If it raises an exception, frames pass from then on, and the end of the
        fault raises it.

        Args:
            condition: A `filter expression <https://www.tcpdump.org/manpages/pcap-filter.7.html>`_ as
                tcpdump has it, ``"tcp and dst port 5432"``; or a function of a :class:`Packet`. An
                expression about packets matches none with a VLAN tag, unless it begins with ``vlan``.
            link: As in :meth:`delay`.
            direction: As in :meth:`delay`.

        Raises:
            MissingDependency: libpcap, which compiles filter expressions, is not installed.
            SpecError: An argument is wrong.
        """
        check_condition(condition, field=f"{self.name}.drop")
        return self._faults.drop(self, condition, on=self._stretches("drop", link, direction))

    # ------------------------------------------------------------ inside

    def _disturb(
        self,
        kind: str,
        settings: Mapping[str, float],
        *,
        words: str,
        link: Member | None,
        direction: Direction | None,
    ) -> Fault:
        on = self._stretches(kind, link, direction)
        return self._faults.disturb(self, kind, words=words, on=on, settings=settings)

    def _chance(
        self,
        kind: str,
        probability: float,
        *,
        link: Member | None,
        direction: Direction | None,
        **others: float,
    ) -> Fault:
        if not (is_number(probability) and 0 <= probability <= 1):
            raise SpecError(
                f"{self.name}.{kind}: {probability!r} is not a probability",
                resolution="from 0.0 (never) to 1.0 (always)",
            )
        words = ", ".join([f"{probability:g}", *(f"{name}={value:g}" for name, value in others.items())])
        settings = {"probability": probability, **others}
        return self._disturb(kind, settings, words=f"{kind}({words})", link=link, direction=direction)

    def _stretches(self, verb: str, link: Member | None, direction: Direction | None) -> list[Stretch]:
        """Return the parts of the way that a fault is on."""
        if direction is not None:
            check_choice(direction, Direction, field=f"{self.name}.{verb}: direction")
        if link is None:
            if direction is not None:
                raise SpecError(
                    f"{self.name}.{verb}: direction={direction!r} without a link",
                    resolution="a direction is seen from a guest: add link=guest",
                )
            return [Stretch()]
        directions = get_args(Direction) if direction is None else (direction,)
        return [Stretch(nic, each) for nic in self._nics_of(link) for each in directions]

    def _nics_for(self, groups: Sequence[Member | Iterable[Member]], *, verb: str) -> list[GuestNic]:
        nics = dict.fromkeys(nic for group in groups for nic in self._nics_in(group))
        if not nics:
            raise SpecError(f"{self.name}.{verb}: no guest", resolution="name one guest at least")
        return list(nics)

    def _nics_in(self, group: Member | Iterable[Member] | str) -> list[GuestNic]:
        """Return the cards of a group; a name is refused like anything else that is not on the segment."""
        members = [group] if isinstance(group, str) or not isinstance(group, Iterable) else group
        return [nic for member in members for nic in self._nics_of(member)]

    def _nics_of(self, member: Member | str) -> list[GuestNic]:
        """Return a guest's cards on this segment, or the card itself."""
        own = [nic for nic in self.nics if member in (nic, nic.guest)]
        if not own:
            name = getattr(member, "name", None) or repr(member)
            here = ", ".join(each.name for each in self.guests) or "nobody"
            raise SpecError(
                f"{name} has no card on the segment {self.name}; on it: {here}",
                resolution=f"name a guest that is on it, or put kvm.Nic({self.name}) into its spec's nics",
            )
        return own


def _names(nics: Iterable[GuestNic]) -> str:
    return ", ".join(nic.link for nic in nics) or "nobody"
