"""What a run orders its switch process to do.

QEMU connects each network card to a *port* (a unix socket, ``-netdev stream``);
a port is attached to a *link*, a guest's cable, and links meet on a *segment*.
A link stays when another machine takes the place of the one behind it. Only
this module, :mod:`~pytest_kvm.switch.switch_process`, :mod:`~pytest_kvm.switch.judges`
and :mod:`~pytest_kvm.switch.packets` do their work in the test's process. The others
do theirs in the switch's own process, where the test cannot slow it down.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_kvm.switch.judges import Judge
from pytest_kvm.switch.link import Direction
from pytest_kvm.switch.pcapng import Written
from pytest_kvm.switch.switch_process import SwitchProcess


class Switch(SwitchProcess):
    """A run's switch, as the test's process sees it: segments, links, ports, faults and captures by name."""

    # ------------------------------------------------------------ segments, links, ports

    def add_segment(self, segment: str) -> None:
        """Make a segment."""
        self.order("add_segment", segment=segment)

    def remove_segment(self, segment: str) -> None:
        """Remove a segment with its links."""
        self.order("remove_segment", segment=segment)

    def add_link(self, segment: str, link: str) -> None:
        """Make a link on a segment."""
        self.order("add_link", segment=segment, link=link)

    def add_uplink(self, segment: str, link: str, *, guest: str) -> None:
        """Make a link that leads from a guest's link to a network of the host.

        Frames for whoever is not on the segment's links go to the uplink of their sender, and
        what comes from an uplink goes to its guest only.

        Args:
            segment: The segment's name.
            link: The uplink's name.
            guest: The name of the guest's link.
        """
        self.order("add_uplink", segment=segment, link=link, guest=guest)

    def set_direct(self, segment: str, *, direct: bool) -> None:
        """Have guests with uplinks reach each other within the segment, or only by the host's network."""
        self.order("set_direct", segment=segment, direct=direct)

    def remove_link(self, segment: str, link: str) -> None:
        """Remove a link from a segment, with its uplink."""
        self.order("remove_link", segment=segment, link=link)

    def open_port(self, path: Path) -> None:
        """Listen for a card; frames that the card sends are lost until a link is attached to the port.

        Raises:
            SwitchFailed: The path is taken, or longer than the 107 bytes of ``unix(7)``.
        """
        self.order("open_port", port=str(path))

    def open_redirected_ports(self, paths: Sequence[Path], *, header: int) -> None:
        """Listen for the frames of one card that QEMU redirects, as :meth:`open_port` does.

        Args:
            paths: The sockets.
            header: Bytes of the header in front of frames for the card or from it, as long as none has come.

        Raises:
            SwitchFailed: As in :meth:`open_port`.
        """
        self.order("open_redirected_ports", ports=[str(path) for path in paths], header=header)

    def close_port(self, path: Path) -> None:
        """Close a port, and the connection of its card; a second call does nothing."""
        self.order("close_port", port=str(path))

    def attach(self, segment: str, link: str, *, port: Path | None, source: Path | None = None) -> bool:
        """Attach a link to a port in place of its former one; None only detaches it from that one.

        Frames that are on their way from or to the link are lost, and so are those that the card at
        the port has sent before.

        Args:
            segment: The segment's name.
            link: The link.
            port: Where frames for the card go.
            source: Where frames from the card come from, if that is another port.

        Returns:
            Whether the link is plugged in.
        """
        to, from_ = (None if path is None else str(path) for path in (port, source))
        is_up: bool = self.order("attach", segment=segment, link=link, port=to, source=from_)
        return is_up

    def set_link(self, segment: str, link: str, *, up: bool) -> bool:
        """Plug a link in, or unplug it, so that no frames pass; say whether it was plugged in."""
        was_up: bool = self.order("set_link", segment=segment, link=link, up=up)
        return was_up

    def is_drained(self, path: Path) -> bool:
        """Say whether the card at a port has taken all that was sent to it."""
        drained: bool = self.order("is_drained", port=str(path))
        return drained

    def traffic(self, segment: str, link: str) -> tuple[int, int]:
        """Return how many frames others have sent to a link, and it to others, that can have changed a guest.

        These are all frames but those by which machines find each other (:func:`frames.is_discovery`).
        What goes to several counts for each.
        """
        reached, told = self.order("traffic", segment=segment, link=link)
        return reached, told

    def counters(self, segment: str) -> dict[str, dict[Direction, dict[str, Any]]]:
        """Return what passed each link in each direction, and what was dropped there, by reason."""
        counted: dict[str, dict[Direction, dict[str, Any]]] = self.order("counters", segment=segment)
        return counted

    # ------------------------------------------------------------ faults

    def fault(
        self,
        segment: str,
        kind: str,
        *,
        link: str | None = None,
        direction: Direction | None = None,
        seed: str,
        settings: Mapping[str, float],
    ) -> int:
        """Apply a fault to frames from now on; return the number to undo it by.

        Args:
            segment: The segment's name.
            kind: One of :data:`pytest_kvm.switch.faults.KINDS`.
            link: The link whose frames meet the fault; None: every frame of the segment meets it once.
            direction: The direction of the link, seen from the guest.
            seed: Seed of the fault's random numbers.
            settings: Fields of the kind's class, such as ``probability``.
        """
        number: int = self.order(
            "fault",
            segment=segment,
            link=link,
            direction=direction,
            kind=kind,
            seed=seed,
            settings=dict(settings),
        )
        return number

    def filter(
        self,
        segment: str,
        program: bytes,
        *,
        link: str | None = None,
        direction: Direction | None = None,
    ) -> int:
        """Drop the frames that a filter matches from now on; return the number to undo it by.

        Args:
            segment: The segment's name.
            program: The filter, as :func:`pytest_kvm.switch.filters.compile_filter` returned it.
            link: As in :meth:`fault`.
            direction: As in :meth:`fault`.
        """
        number: int = self.order(
            "filter", segment=segment, link=link, direction=direction, program=b64encode(program).decode()
        )
        return number

    def ask(
        self,
        segment: str,
        judge: Judge,
        *,
        link: str | None = None,
        direction: Direction | None = None,
    ) -> int:
        """Ask a judge in this process about each frame before it goes on; return the number to undo it by.

        A judge that raises an exception is not asked again. Frames pass from
        then on, and :meth:`undo` raises the exception.

        Args:
            segment: The segment's name.
            judge: Says whether to drop a frame; called from one thread, in the order of the frames,
                which wait for it.
            link: As in :meth:`fault`.
            direction: As in :meth:`fault`.
        """
        place = {"segment": segment, "link": link, "direction": direction}
        # The listener thread adds the judge when it reads this answer, and so before the first question.
        number: int = self.order("ask", heard=lambda number: self.judges.appoint(number, judge), **place)
        return number

    def cut(self, segment: str, groups: Sequence[Sequence[str]], *, joins_others: bool = False) -> int:
        """Let frames pass only between links of the same group; return the number to undo it by.

        Once this has returned, no frame is handed to a guest on the other side, not even one on its way.

        Args:
            segment: The segment's name.
            groups: The groups.
            joins_others: Whether the links in no group are one more group; else each of them is alone.
        """
        number: int = self.order(
            "cut", segment=segment, groups=[list(group) for group in groups], joins_others=joins_others
        )
        return number

    def undo(self, number: int) -> None:
        """Undo a fault, a judge or a cut; a second call does nothing.

        Raises:
            Exception: The exception that the judge of this number raised.
        """
        self.order("undo", number=number)
        self.judges.dismiss(number)

    # ------------------------------------------------------------ captures

    def capture(
        self,
        segment: str,
        path: Path,
        *,
        links: Sequence[str] = (),
        comment: str = "",
        limit: int = 1 << 28,
    ) -> int:
        """Write what crosses a segment or passes links into a new pcapng file; return the capture's number.

        Args:
            segment: The segment's name.
            path: The file.
            links: The links; none: the segment, each frame once.
            comment: What is captured, in words, for readers of the file.
            limit: Bytes that the file may have.
        """
        number: int = self.order(
            "capture", segment=segment, links=list(links), path=str(path), comment=comment, limit=limit
        )
        return number

    def flush_capture(self, number: int) -> Written:
        """Flush all frames that have passed to a capture's file; say how far it has come."""
        return Written(*self.order("flush_capture", number=number))

    def wait_capture(self, number: int, *, frames: int, timeout: float) -> None:
        """Wait until a capture's file holds more than ``frames`` frames, or the capture breaks off or ends.

        Args:
            number: The capture's number.
            frames: How many frames the caller knows already.
            timeout: Seconds to wait at most.
        """
        sent, answer = self.send("wait_capture", {"number": number, "frames": frames})
        try:
            self.wait(sent, answer, timeout=timeout)
        except TimeoutError:
            self.order("stop_waiting", wait=sent)

    def end_capture(self, number: int) -> Written:
        """Finish a capture's file; say how far it has come."""
        return Written(*self.order("end_capture", number=number))
