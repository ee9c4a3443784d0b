"""Starts a run's switch process and sends it orders.

QEMU connects each network card to a *port* (a unix socket, ``-netdev stream``);
a port is attached to a *link*, a guest's cable, and links meet on a *segment*.
A link stays when another machine takes the place of the one behind it. Only
this module, :mod:`~pytest_kvm.switch.judges` and :mod:`~pytest_kvm.switch.packets`
do their work in the test's process. The others do theirs in the switch's own
process, where the test cannot slow it down.
"""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_kvm.errors import SwitchFailed
from pytest_kvm.switch.judges import Judge, Judges
from pytest_kvm.switch.link import Direction
from pytest_kvm.switch.pcapng import Written

_BOOTSTRAP = "import sys; sys.path.insert(0, sys.argv[1]); from pytest_kvm.switch.server import main; main()"
_PATIENCE = 30.0
"""Seconds to wait for an order's answer, which takes less than a millisecond unless the host stands still."""
_ENDS_WITHIN = 5.0


class Switch:
    """A run's switch, as the test's process sees it.

    The switch process ends when its connection to this object does: at
    :meth:`close`, and in whatever way the run ends. Once the process has ended,
    each order raises SwitchFailed.

    Raises:
        SwitchFailed: The process cannot be started.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._connection = ours
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._answers: dict[int, Future[Any]] = {}
        self._judges = Judges(self._tell_verdict)
        self._closed = False
        root = str(Path(__file__).parents[2])
        with theirs:
            argv = [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, root, str(theirs.fileno())]
            # In a session of its own, so that Ctrl-C reaches only the run, which then ends the switch.
            try:
                self._process = subprocess.Popen(
                    argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
                )
            except OSError as failure:
                ours.close()
                raise SwitchFailed(f"the switch of this run cannot be started: {failure}") from failure
        self._listener = threading.Thread(target=self._listen, name="kvm-switch", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """Id of the switch process."""
        return self._process.pid

    def check(self) -> None:
        """Check that the switch process runs.

        Raises:
            SwitchFailed: It has ended.
        """
        if self.has_ended():
            raise self._switch_gone()

    def has_ended(self) -> bool:
        """Say whether the switch process has ended."""
        return self._process.poll() is not None

    def close(self) -> None:
        """End the switch process; frames on their way are lost. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        with suppress(OSError):  # the process has ended already
            self._connection.shutdown(socket.SHUT_RDWR)
        self._listener.join()
        self._judges.close()
        self._connection.close()
        try:
            self._process.wait(_ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    # ------------------------------------------------------------ segments, links, ports

    def add_segment(self, segment: str) -> None:
        """Make a segment."""
        self._order("add_segment", segment=segment)

    def remove_segment(self, segment: str) -> None:
        """Remove a segment with its links."""
        self._order("remove_segment", segment=segment)

    def add_link(self, segment: str, link: str) -> None:
        """Make a link on a segment."""
        self._order("add_link", segment=segment, link=link)

    def remove_link(self, segment: str, link: str) -> None:
        """Remove a link from a segment."""
        self._order("remove_link", segment=segment, link=link)

    def open_port(self, path: Path) -> None:
        """Listen for a card; frames that the card sends are lost until a link is attached to the port.

        Raises:
            SwitchFailed: The path is taken, or longer than the 107 bytes of ``unix(7)``.
        """
        self._order("open_port", port=str(path))

    def close_port(self, path: Path) -> None:
        """Close a port, and the connection of its card; a second call does nothing."""
        self._order("close_port", port=str(path))

    def attach(self, segment: str, link: str, *, port: Path | None) -> bool:
        """Attach a link to a port in place of its former one; None only detaches it from that one.

        Frames that are on their way from or to the link are lost, and so are those that the card at
        the port has sent before.

        Returns:
            Whether the link is plugged in.
        """
        path = None if port is None else str(port)
        is_up: bool = self._order("attach", segment=segment, link=link, port=path)
        return is_up

    def set_link(self, segment: str, link: str, *, up: bool) -> bool:
        """Plug a link in, or unplug it, so that no frames pass; say whether it was plugged in."""
        was_up: bool = self._order("set_link", segment=segment, link=link, up=up)
        return was_up

    def is_drained(self, path: Path) -> bool:
        """Say whether the card at a port has taken all that was sent to it."""
        drained: bool = self._order("is_drained", port=str(path))
        return drained

    def traffic(self, segment: str, link: str) -> tuple[int, int]:
        """Return how many frames others have sent to a link, and it to others, that can have changed a guest.

        These are all frames but those by which machines find each other (:func:`frames.is_discovery`).
        What goes to several counts for each.
        """
        reached, told = self._order("traffic", segment=segment, link=link)
        return reached, told

    def counters(self, segment: str) -> dict[str, dict[Direction, dict[str, Any]]]:
        """Return what passed each link in each direction, and what was dropped there, by reason."""
        counted: dict[str, dict[Direction, dict[str, Any]]] = self._order("counters", segment=segment)
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
        number: int = self._order(
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
        number: int = self._order(
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
        number: int = self._order("ask", heard=lambda number: self._judges.appoint(number, judge), **place)
        return number

    def cut(self, segment: str, groups: Sequence[Sequence[str]], *, joins_others: bool = False) -> int:
        """Let frames pass only between links of the same group; return the number to undo it by.

        Once this has returned, no frame is handed to a guest on the other side, not even one on its way.

        Args:
            segment: The segment's name.
            groups: The groups.
            joins_others: Whether the links in no group are one more group; else each of them is alone.
        """
        number: int = self._order(
            "cut", segment=segment, groups=[list(group) for group in groups], joins_others=joins_others
        )
        return number

    def undo(self, number: int) -> None:
        """Undo a fault, a judge or a cut; a second call does nothing.

        Raises:
            Exception: The exception that the judge of this number raised.
        """
        self._order("undo", number=number)
        self._judges.dismiss(number)

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
        number: int = self._order(
            "capture", segment=segment, links=list(links), path=str(path), comment=comment, limit=limit
        )
        return number

    def flush_capture(self, number: int) -> Written:
        """Flush all frames that have passed to a capture's file; say how far it has come."""
        return Written(*self._order("flush_capture", number=number))

    def wait_capture(self, number: int, *, frames: int, timeout: float) -> None:
        """Wait until a capture's file holds more than ``frames`` frames, or the capture breaks off or ends.

        Args:
            number: The capture's number.
            frames: How many frames the caller knows already.
            timeout: Seconds to wait at most.
        """
        sent, answer = self._send("wait_capture", {"number": number, "frames": frames})
        try:
            self._wait(sent, answer, timeout=timeout)
        except TimeoutError:
            self._order("stop_waiting", wait=sent)

    def end_capture(self, number: int) -> Written:
        """Finish a capture's file; say how far it has come."""
        return Written(*self._order("end_capture", number=number))

    # ------------------------------------------------------------ orders and answers

    def _order(self, do: str, *, heard: Callable[[Any], None] | None = None, **arguments: object) -> Any:  # noqa: ANN401 - JSON
        sent, answer = self._send(do, arguments, heard=heard)
        try:
            return self._wait(sent, answer, timeout=_PATIENCE)
        except TimeoutError:
            raise SwitchFailed(f"the switch (pid {self.pid}) does not answer {do}") from None

    def _send(
        self, do: str, arguments: Mapping[str, object], *, heard: Callable[[Any], None] | None = None
    ) -> tuple[int, Future[Any]]:
        number = next(self._numbers)
        answer: Future[Any] = Future()
        if heard is not None:
            answer.add_done_callback(lambda done: None if done.exception() else heard(done.result()))
        self._answers[number] = answer
        try:
            self._tell(id=number, do=do, **arguments)
        except BaseException:
            del self._answers[number]
            raise
        return number, answer

    def _wait(self, number: int, answer: Future[Any], *, timeout: float | None = None) -> Any:  # noqa: ANN401 - JSON
        try:
            return answer.result(timeout)
        finally:
            self._answers.pop(number, None)

    def _tell(self, **message: object) -> None:
        line = json.dumps(message).encode() + b"\n"
        try:
            with self._lock:
                self._connection.sendall(line)
        except OSError as failure:
            raise self._switch_gone() from failure

    def _listen(self) -> None:
        try:
            # A process that is killed resets the connection; one that ends closes it.
            with suppress(ConnectionError), self._connection.makefile("rb") as lines:
                for line in lines:
                    message = json.loads(line)
                    if "question" in message:
                        self._judges.ask(message)
                    else:
                        self._take_answer(message)
        finally:
            # No more answers will be read, so every call that waits for one has to fail.
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            for answer in list(self._answers.values()):
                if not answer.done():
                    answer.set_exception(self._switch_gone())

    def _take_answer(self, message: dict[str, Any]) -> None:
        answer = self._answers.get(message["id"])
        if answer is None:
            return  # the caller has stopped waiting
        if "error" in message:
            answer.set_exception(SwitchFailed(f"the switch refused: {message['error']}"))
        else:
            answer.set_result(message["answer"])

    def _tell_verdict(self, question: int, *, drop: bool) -> None:
        with suppress(SwitchFailed):  # the switch has ended, as the listener sees
            self._tell(verdict=question, drop=drop)

    def _switch_gone(self) -> SwitchFailed:
        if self._closed:
            return SwitchFailed("the switch of this run has ended")
        with suppress(subprocess.TimeoutExpired):  # its connection breaks a moment before it has ended
            self._process.wait(_ENDS_WITHIN)
        return SwitchFailed(
            "the switch of this run has ended",
            details=f"its process was {self.pid}, exit status {self._process.poll()}",
        )
