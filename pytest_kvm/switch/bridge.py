"""One L2 segment: learns which address is behind which link, and passes frames between its links.

A frame passes the faults of its sender's link, those of the segment, and those of its receiver's link.

A segment can be a network of the host, too. Then each guest's link has an
*uplink* to that network. Frames for whoever is not on the segment's links go to
the sender's own uplink, and what comes from an uplink goes to its guest only.
What goes to everybody goes to the other guests and to the sender's uplink. The
host's network then hands it to the other uplinks; such echoes are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pytest_kvm.switch.faults import Faults
from pytest_kvm.switch.filters import split
from pytest_kvm.switch.frames import HEADER, PREFIX, frames_in, is_discovery, is_group, station
from pytest_kvm.switch.link import Link, Port, Tally

if TYPE_CHECKING:
    from pytest_kvm.switch.filters import FrameFilter
    from pytest_kvm.switch.pcapng import CaptureFile
    from pytest_kvm.switch.schedule import Schedule

_MOST_STATIONS = 8192
_MOST_IN_FLIGHT = 16384
_KEY = HEADER + 2
"""Bytes that say where a frame goes: addresses, type and, where it has one, the VLAN's tag."""


class AnswerCallback(Protocol):
    """Called with the test's answer about a frame."""

    def __call__(self, *, drop: bool, reason: str = "drop") -> None:
        """Drop the frame and count it by the reason, or pass it on."""
        ...


Ask = Callable[[int, bytes, AnswerCallback], None]
"""Asks the test whether a fault (by number) drops a frame; calls back with the answer."""


class _Cut(NamedTuple):
    """A cut between groups of links."""

    groups: list[frozenset[Link]]
    joins_others: bool

    def joins(self, source: Link, target: Link) -> bool:
        """Say whether frames pass between two links."""
        sides = [next((group for group in self.groups if link in group), None) for link in (source, target)]
        return sides[0] is sides[1] and (sides[0] is not None or self.joins_others)


class Bridge:
    """A learning switch.

    Args:
        schedule: Where delayed frames wait.
        ask: Asks the test about a frame.
    """

    def __init__(self, schedule: Schedule, *, ask: Ask) -> None:
        self.links: dict[str, Link] = {}
        self.faults = Faults()
        """Faults of the segment: each frame passes them once, however many links it goes to."""
        self.is_direct = True
        """Whether guests with uplinks reach each other within the segment, and not by the host's network."""
        self.captures: list[CaptureFile] = []
        self._schedule = schedule
        self._ask = ask
        self._link_of: dict[bytes, Link] = {}
        self._cuts: dict[int, _Cut] = {}
        self._moves = 0
        """How often links were moved or unplugged; a frame keeps the number at which it was sent."""

    # ------------------------------------------------------------ set-up

    def join(self, link: Link) -> None:
        """Add a link."""
        self.links[link.name] = link

    def leave(self, link: Link) -> None:
        """Remove a link and forget the addresses behind it."""
        del self.links[link.name]
        self._forget(link)

    def move(self, link: Link, port: Port | None) -> None:
        """Have a link lead to another port, or to none; no frame that was sent before passes the link."""
        link.port = port
        self._interrupt(link)

    def unplug(self, link: Link) -> None:
        """Let no frame pass a link until it is plugged in, nor any that was sent before."""
        link.up = False
        link.withdraw(lambda _: True, reason="unplugged")
        self._interrupt(link)

    def _interrupt(self, link: Link) -> None:
        """Let no frame pass a link that was sent before."""
        self._moves += 1
        link.moved = self._moves
        link.sent.lose_delayed("unplugged")
        link.got.lose_delayed("unplugged")
        self._forget(link)

    def _forget(self, link: Link) -> None:
        """Forget which addresses are behind a link."""
        self._link_of = {key: each for key, each in self._link_of.items() if each is not link}

    def cut(self, number: int, groups: list[frozenset[Link]], *, joins_others: bool) -> None:
        """Let frames pass only between links of the same group.

        Frames that wait for a guest on the other side of the cut are dropped.

        Args:
            number: The number to undo it by.
            groups: The groups.
            joins_others: Whether the links in no group are one more group; else each of them is alone.
        """
        self._cuts[number] = _Cut(groups, joins_others)
        for link in self.links.values():
            link.withdraw(partial(self._are_cut, link), reason="partition")

    def mend(self, number: int) -> None:
        """Undo a cut."""
        self._cuts.pop(number, None)

    def _are_cut(self, target: Link, source: Link) -> bool:
        return not self.are_joined(source, target)

    def are_joined(self, source: Link, target: Link) -> bool:
        """Say whether no cut lies between two links."""
        return all(cut.joins(source, target) for cut in self._cuts.values())

    # ------------------------------------------------------------ frames

    def receive(self, source: Link, data: bytes) -> int:
        """Pass on all whole frames in the bytes that a card has sent.

        Returns:
            How many bytes the whole frames take; the rest is the beginning of another.

        Raises:
            BrokenStreamError: The bytes cannot be frames.
        """
        if source.guest is not None:
            return self._receive_from_host(source, data, guest=source.guest)
        watched = self.captures or source.captures
        if source.up and source.out.are_filters_only and self.faults.are_filters_only and not watched:
            filters = [*source.out.filters.values(), *self.faults.filters.values()]
            if filters:
                return self._receive_filtered(source, data, filters)
            return self._receive_fast(source, data)
        end = 0
        for begin, end in frames_in(data):
            self._from_guest(source, data[begin:end])
        return end

    def _receive_from_host(self, uplink: Link, data: bytes, *, guest: Link) -> int:
        """Pass on what the host's network has for a guest, without what comes from the segment's guests."""
        end = 0
        for begin, end in frames_in(data):
            frame = data[begin:end]
            receiver = self._link_of.get(station(frame, 0)) if len(frame) >= HEADER else None
            is_for_other = receiver is not None and receiver.guest is None and receiver is not guest
            if not (is_for_other or uplink.echoes.take(frame)):
                self._from_guest(uplink, frame)
        return end

    def _receive_filtered(self, source: Link, data: bytes, filters: list[FrameFilter]) -> int:
        """Pass on the frames that no filter matches, as if the others had never come."""
        end = 0
        for run in split(data, filters):
            end += len(run.data)
            if run.is_matched:
                source.sent.frames += run.frames
                source.sent.bytes += len(run.data) - PREFIX.size * run.frames
                source.sent.dropped["drop"] += run.frames
            else:
                self._receive_fast(source, run.data)
        return end

    def _receive_fast(self, source: Link, data: bytes) -> int:
        """Pass frames on unchanged; consecutive frames with the same target are handed over as one piece."""
        view = memoryview(data)
        begin = at = frames = total = 0
        last = b""
        target: Link | None = None
        for begins, ends in frames_in(data):
            key = data[begins : begins + _KEY]
            if key != last:
                last, way = key, self._target_of(source, data[begins:ends])
                if way is not target:
                    if target is not None:
                        target.deliver_run(view[begin:at], frames=frames, sender=source)
                    begin, frames, target = at, 0, way
            if target is None:
                self._switch(source, self._moves, data[begins:ends])
                begin, last = ends, b""
            else:
                frames += 1
            total += 1
            at = ends
        if target is not None:
            target.deliver_run(view[begin:at], frames=frames, sender=source)
        source.sent.frames += total
        source.sent.bytes += at - PREFIX.size * total
        return at

    def _target_of(self, source: Link, frame: bytes) -> Link | None:
        """Return the one link that a frame goes to; None if it takes a closer look."""
        if len(frame) < HEADER:
            return None
        self._learn(source, frame)
        targets = self._targets(source, frame) if station(frame, 0) in self._link_of else ()
        target = targets[0] if len(targets) == 1 else None
        if target is None or target is source or not target.takes_runs or not self.are_joined(source, target):
            return None
        return None if is_discovery(frame) else target

    def _targets(self, source: Link, frame: bytes) -> Sequence[Link]:
        """Return the links that a frame goes to; its sender's own may be among them."""
        known = self._link_of.get(station(frame, 0))
        if source.guest is not None:
            return [source.guest]
        is_beyond = known is not None and known.guest is not None
        if source.uplink is not None and (is_beyond or not self.is_direct):
            return [source.uplink]
        if known is None:
            return [each for each in self.links.values() if each.guest in (None, source)]
        return [known]

    def _expect_echoes(self, source: Link, targets: Sequence[Link], frame: bytes) -> None:
        """Expect the host's network to hand a frame to the uplinks of guests that get it from here."""
        if source.uplink is None or len(targets) == 1 or not self.are_joined(source, source.uplink):
            return
        for target in targets:
            if target.uplink is not None and target.uplink.is_connected and target is not source:
                target.uplink.echoes.expect(frame)

    def _learn(self, source: Link, frame: bytes) -> None:
        """Note which link a frame's sender is behind."""
        sender = station(frame, 6)
        if self._link_of.get(sender) is source or is_group(sender):
            return
        if len(self._link_of) >= _MOST_STATIONS:
            del self._link_of[next(iter(self._link_of))]
        self._link_of[sender] = source

    # ------------------------------------------------------------ frame by frame

    def _from_guest(self, source: Link, frame: bytes) -> None:
        """Take a frame that a guest has sent, and apply the faults of its link."""
        if not source.up:
            source.sent.dropped["unplugged"] += 1
            return
        source.sent.frames += 1
        source.sent.bytes += len(frame)
        for capture in source.captures:
            capture.take(frame, link=source.name, direction="out")
        then = partial(self._apply_own_faults, source, self._moves)
        self._apply_faults(source.out, source, frame, then=then)

    def _apply_own_faults(self, source: Link, sent: int, frame: bytes) -> None:
        self._apply_faults(self.faults, source, frame, then=partial(self._switch, source, sent))

    def _switch(self, source: Link, sent: int, frame: bytes) -> None:
        """Send a frame to the link that its receiver is behind, or to all links if that link is not known.

        Args:
            source: The link that it came from.
            sent: How often links had been moved or unplugged when it came.
            frame: The frame.
        """
        if len(frame) < HEADER:
            source.sent.dropped["malformed"] += 1
            return
        if source.moved > sent:
            source.sent.dropped["unplugged"] += 1
            return
        self._learn(source, frame)
        discovery = is_discovery(frame)
        crossed = False
        targets = self._targets(source, frame)
        self._expect_echoes(source, targets, frame)
        for target in targets:
            if target is source:
                continue
            if not self.are_joined(source, target):
                target.got.dropped["partition"] += 1
                continue
            crossed = True
            if target.moved > sent:
                target.got.dropped["unplugged"] += 1
            elif target.is_clear:
                target.hand_one(frame, sender=source, is_discovery=discovery)
            else:
                then = partial(self._to_guest, source, target, sent)
                self._apply_faults(target.into, target, frame, then=then)
        if crossed:
            for capture in self.captures:
                capture.take(frame, link=source.name, direction="out")

    def _to_guest(self, source: Link, target: Link, sent: int, frame: bytes) -> None:
        """Hand a frame to a guest, unless a cut was made or a link was moved while it was on its way."""
        if not self.are_joined(source, target):
            target.got.dropped["partition"] += 1
        elif max(source.moved, target.moved) > sent:
            target.got.dropped["unplugged"] += 1
        else:
            target.hand_one(frame, sender=source, is_discovery=is_discovery(frame))

    def _apply_faults(
        self, faults: Faults, link: Link, frame: bytes, *, then: Callable[[bytes], None]
    ) -> None:
        """Apply faults to a frame, first filters; ``then`` gets each copy that is left."""
        tally = link.got if faults is link.into else link.sent
        if faults.is_clear:
            then(frame)
        elif any(each.matches(frame) for each in faults.filters.values()):
            tally.dropped["drop"] += 1
        else:
            self._ask_verdicts(faults, frame, then=then, asks=list(faults.asks), tally=tally)

    def _ask_verdicts(
        self,
        faults: Faults,
        frame: bytes,
        *,
        then: Callable[[bytes], None],
        asks: list[int],
        tally: Tally,
    ) -> None:
        """Ask the test about one fault after another; a frame that no answer drops goes on."""
        if not asks:
            self._apply_unasked(faults, frame, then=then, tally=tally)
            return

        def take_verdict(*, drop: bool, reason: str = "drop") -> None:
            if drop:
                tally.dropped[reason] += 1
            else:
                self._ask_verdicts(faults, frame, then=then, asks=asks[1:], tally=tally)

        self._ask(asks[0], frame, take_verdict)

    def _apply_unasked(
        self, faults: Faults, frame: bytes, *, then: Callable[[bytes], None], tally: Tally
    ) -> None:
        """Apply the faults that do not ask the test: they drop, change, repeat or delay a frame.

        While frames are delayed, one that is not waits its turn, too: they may be due by now.
        """
        now = time.monotonic()
        for each, moment in faults.through(frame, now, dropped=tally.dropped):
            if moment <= now and not tally.delayed:
                then(each)
            elif len(tally.delayed) >= _MOST_IN_FLIGHT:
                tally.dropped["too many in flight"] += 1
            else:
                self._schedule.at(moment, tally.delay(partial(then, each)))
