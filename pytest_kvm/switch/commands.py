"""Segments, links, ports, faults and captures of the switch; methods ``do_*`` carry out the orders."""

from __future__ import annotations

import itertools
from base64 import b64decode
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Protocol

from pytest_kvm.switch.bridge import Ask, Bridge
from pytest_kvm.switch.faults import KINDS, Faults
from pytest_kvm.switch.filters import FrameFilter
from pytest_kvm.switch.frames import BrokenStreamError, length_of_whole_frames
from pytest_kvm.switch.link import Direction, Link, Port
from pytest_kvm.switch.pcapng import CaptureFile, Written
from pytest_kvm.switch.redirected_port import Header, RedirectedPort
from pytest_kvm.switch.schedule import Schedule

_READS = 64
"""More than a socket holds, so that a card which sends without end does not stop the switch."""


class Cards(Protocol):
    """Waits for events at ports: the event loop of the switch process."""

    def watch(self, port: Port) -> None:
        """Begin to wait for a card to connect to the port."""
        ...

    def wake(self, port: Port) -> None:
        """Send soon what is queued at the port."""
        ...

    def hang_up(self, port: Port) -> None:
        """Stop waiting for events at the port, and close it with the connection of its card."""
        ...


class Commands:
    """Segments, links, ports, faults and captures, each by its name or number.

    The methods that begin with ``do_`` are the orders of
    :class:`~pytest_kvm.switch.client.Switch`, which documents them.

    Args:
        schedule: Where delayed frames wait.
        ask: Asks the test about a frame.
        cards: Waits for events at the ports.
    """

    def __init__(self, schedule: Schedule, *, ask: Ask, cards: Cards) -> None:
        self.segments: dict[str, Bridge] = {}
        self.link_of: dict[Port, Link] = {}
        self.captures: dict[int, CaptureFile] = {}
        self._ports: dict[str, Port] = {}
        self._undo: dict[int, Callable[[], None]] = {}
        self._numbers = itertools.count(1)
        self._schedule = schedule
        self._ask = ask
        self._cards = cards

    # ------------------------------------------------------------ segments, links, ports

    def do_add_segment(self, *, segment: str) -> None:
        """Make a segment."""
        if segment in self.segments:
            raise ValueError(f"there is a segment {segment} already")
        self.segments[segment] = Bridge(self._schedule, ask=self._ask)

    def do_remove_segment(self, *, segment: str) -> None:
        """Remove a segment with its links."""
        for link in list(self.segments[segment].links.values()):
            if link.guest is None:
                self.do_remove_link(segment=segment, link=link.name)
        del self.segments[segment]

    def do_add_link(self, *, segment: str, link: str) -> None:
        """Make a link on a segment."""
        where = self.segments[segment]
        if link in where.links:
            raise ValueError(f"there is a link {link} on {segment} already")
        where.join(Link(link, where, wake=self._cards.wake))

    def do_add_uplink(self, *, segment: str, link: str, guest: str) -> None:
        """Make an uplink on a segment, for a guest's link."""
        self.do_add_link(segment=segment, link=link)
        links = self.segments[segment].links
        links[link].guest, links[guest].uplink = links[guest], links[link]

    def do_set_direct(self, *, segment: str, direct: bool) -> None:
        """Have guests with uplinks reach each other within the segment, or by the host's network."""
        self.segments[segment].is_direct = direct

    def do_remove_link(self, *, segment: str, link: str) -> None:
        """Remove a link from its segment, with its uplink."""
        where = self.segments[segment]
        for each in (where.links[link].uplink, where.links[link]):
            if each is not None:
                self.do_attach(segment=segment, link=each.name, port=None)
                where.leave(each)

    def do_open_port(self, *, port: str) -> None:
        """Listen for a card at a path."""
        self._open(port, Port(Path(port)))

    def do_open_redirected_ports(self, *, ports: Sequence[str], header: int) -> None:
        """Listen at some paths for the frames of one card, which come behind a header."""
        shared = Header(header)
        for port in ports:
            self._open(port, RedirectedPort(Path(port), header=shared))

    def do_close_port(self, *, port: str) -> None:
        """Close a port, and the connection of its card."""
        closed = self._ports.pop(port, None)
        if closed is not None:
            self._detach(closed)
            self._cards.hang_up(closed)

    def do_attach(self, *, segment: str, link: str, port: str | None, source: str | None = None) -> bool:
        """Attach a link to a port; None only detaches the link. Frames that the card sent before are lost.

        Returns:
            Whether the link is plugged in.
        """
        where = self.segments[segment]
        cable = where.links[link]
        card = None if port is None else self._ports[port]
        if cable.port is not None:
            self._detach(cable.port)
        if card is not None:
            sender = card if source is None else self._ports[source]
            for each in (card, sender):
                self._detach(each)
            self._skip(sender)
            where.move(cable, card)
            self.link_of[card] = self.link_of[sender] = cable
        return cable.up

    def do_set_link(self, *, segment: str, link: str, up: bool) -> bool:
        """Plug a link in, or unplug it; say whether it was plugged in."""
        cable = self.segments[segment].links[link]
        was_up = cable.up
        if up:
            cable.up = True
        else:
            self.segments[segment].unplug(cable)
        return was_up

    def do_is_drained(self, *, port: str) -> bool:
        """Say whether the card at a port has taken all that was sent to it."""
        return self._ports[port].is_drained

    def do_traffic(self, *, segment: str, link: str) -> tuple[int, int]:
        """Return how many frames came to a guest, and from it to others, that can have changed a guest."""
        cable = self.segments[segment].links[link]
        return cable.reached, cable.told

    def do_counters(self, *, segment: str) -> dict[str, Any]:
        """Return the counters of each link; what was dropped on the way to or from its uplink is its own."""
        counters: dict[str, Any] = {}
        for link in self.segments[segment].links.values():
            if link.guest is None:
                beyond = (None, None) if link.uplink is None else (link.uplink.got, link.uplink.sent)
                sent, got = (
                    each.as_json(plus) for each, plus in zip((link.sent, link.got), beyond, strict=True)
                )
                counters[link.name] = {"out": sent, "in": got}
        return counters

    # ------------------------------------------------------------ faults

    def do_fault(
        self,
        *,
        segment: str,
        link: str | None,
        direction: Direction | None,
        kind: str,
        seed: str,
        settings: dict[str, float],
    ) -> int:
        """Apply a fault to frames from now on; return its number."""
        faults = self._faults(segment, link, direction)
        number = next(self._numbers)
        chance = Random(seed)  # noqa: S311 - no secret
        faults.add(number, KINDS[kind](chance=chance, **settings), kind=kind)  # type: ignore[arg-type]
        self._undo[number] = lambda: faults.remove(number)
        return number

    def do_filter(self, *, segment: str, link: str | None, direction: Direction | None, program: str) -> int:
        """Drop the frames that a filter matches from now on; return the number of this fault."""
        faults = self._faults(segment, link, direction)
        number = next(self._numbers)
        faults.filters[number] = FrameFilter(b64decode(program))
        self._undo[number] = lambda: faults.remove(number)
        return number

    def do_ask(self, *, segment: str, link: str | None, direction: Direction | None) -> int:
        """Ask the test about each frame from now on; return the number of this fault."""
        faults = self._faults(segment, link, direction)
        number = next(self._numbers)
        faults.asks.append(number)
        self._undo[number] = lambda: faults.remove(number)
        return number

    def do_cut(self, *, segment: str, groups: Sequence[Sequence[str]], joins_others: bool) -> int:
        """Let frames pass only between links of the same group; return the number of this cut."""
        where = self.segments[segment]
        number = next(self._numbers)
        cut = [frozenset(where.links[link] for link in group) for group in groups]
        where.cut(number, cut, joins_others=joins_others)
        self._undo[number] = lambda: where.mend(number)
        return number

    def do_undo(self, *, number: int) -> None:
        """Undo a fault or a cut, or stop a capture; a second call does nothing."""
        undo = self._undo.pop(number, None)
        if undo is not None:
            undo()

    # ------------------------------------------------------------ captures

    def do_capture(self, *, segment: str, links: Sequence[str], path: str, comment: str, limit: int) -> int:
        """Begin to write the frames that pass into a file; return the number of this capture."""
        where = self.segments[segment]
        taps = [where.links[name].captures for name in links] or [where.captures]
        number = next(self._numbers)
        self.captures[number] = capture = CaptureFile(Path(path), comment=comment, limit=limit)
        for tap in taps:
            tap.append(capture)

        def undo() -> None:
            for tap in taps:
                tap.remove(capture)

        self._undo[number] = undo
        return number

    def do_flush_capture(self, *, number: int) -> Written:
        """Flush all frames that have passed to a capture's file; say how far it has come."""
        self.captures[number].flush()
        return self.captures[number].written

    def do_end_capture(self, *, number: int) -> Written:
        """Finish a capture's file; say how far it has come."""
        self.do_undo(number=number)
        capture = self.captures.pop(number)
        capture.close()
        return capture.written

    # ------------------------------------------------------------ helpers

    def _open(self, path: str, port: Port) -> None:
        self._ports[path] = port
        self._cards.watch(port)

    def _detach(self, port: Port) -> None:
        """Detach the link that a port is attached to, also from the other port if it has two."""
        link = self.link_of.get(port)
        if link is not None:
            self.link_of = {each: other for each, other in self.link_of.items() if other is not link}
            link.segment.move(link, None)

    def _skip(self, port: Port) -> None:
        """Drop the frames that a card has sent and nobody has read, also one that is not complete yet.

        A card that has sent what cannot be frames is hung up.
        """
        for _ in range(_READS if port.connected else 0):
            try:
                data = port.read()
                if not data:
                    break
                port.keep(data[length_of_whole_frames(data) :])
            except BrokenStreamError:
                self._cards.hang_up(port)
                return
        port.drop_rest()

    def _faults(self, segment: str, link: str | None, direction: Direction | None) -> Faults:
        where = self.segments[segment]
        if link is None:
            return where.faults
        cable = where.links[link]
        return cable.out if direction == "out" else cable.into
