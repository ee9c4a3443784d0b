"""What a run holds of its switch: starts the process, and tells it what to do.

QEMU connects each network card to a *port* (a unix socket, ``-netdev stream``);
a port is attached to a *link*, a guest's cable, and links meet on a *segment*.
A link stays while one machine follows another behind it. Everything but this
module and :mod:`~pytest_kvm.switch.packets` runs in the switch's own process,
where nothing of the test can slow it down.
"""

from __future__ import annotations

import itertools
import json
import logging
import socket
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_kvm.errors import SwitchFailed
from pytest_kvm.switch.judges import Judge, Judges
from pytest_kvm.switch.link import Direction

_log = logging.getLogger("pytest_kvm.switch")
_BOOTSTRAP = "import sys; sys.path.insert(0, sys.argv[1]); from pytest_kvm.switch.server import main; main()"
_PATIENCE = 30.0
"""Seconds for an order, which takes less than a millisecond unless the machine stands still."""
_ENDS_WITHIN = 5.0


class Switch:
    """A run's switch.

    Its process ends when this is closed, and with the run, however that ends:
    it notices the end of the connection.

    Raises:
        SwitchFailed: It does not start.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._connection = ours
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._answers: dict[int, Future[Any]] = {}
        self._judges = Judges()
        self._closed = False
        root = str(Path(__file__).parents[2])
        with theirs:
            argv = [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, root, str(theirs.fileno())]
            # In a session of its own: Ctrl-C is for the run, which then ends it.
            self._process = subprocess.Popen(
                argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._listener = threading.Thread(target=self._listen, name="kvm-switch", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def close(self) -> None:
        """End the process; frames on their way are lost. A second time does nothing."""
        if self._closed:
            return
        self._closed = True
        self._connection.shutdown(socket.SHUT_RDWR)
        self._listener.join()
        self._connection.close()
        try:
            self._process.wait(_ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    # ------------------------------------------------------------ what there is

    def add_segment(self, segment: str) -> None:
        """Make a segment."""
        self._order("add_segment", segment=segment)

    def remove_segment(self, segment: str) -> None:
        """Remove a segment with its links."""
        self._order("remove_segment", segment=segment)

    def add_link(self, segment: str, link: str) -> None:
        """Put a cable on a segment."""
        self._order("add_link", segment=segment, link=link)

    def remove_link(self, segment: str, link: str) -> None:
        """Take a cable off a segment."""
        self._order("remove_link", segment=segment, link=link)

    def open_port(self, path: Path) -> None:
        """Listen for a card; whatever it sends is lost until a cable is put into it.

        Raises:
            SwitchFailed: The path is taken, or longer than the 107 bytes of ``unix(7)``.
        """
        self._order("open_port", port=str(path))

    def close_port(self, path: Path) -> None:
        """Hang up; a second time does nothing."""
        self._order("close_port", port=str(path))

    def attach(self, segment: str, link: str, *, port: Path | None) -> None:
        """Put a cable into a card, whatever it was in before."""
        self._order("attach", segment=segment, link=link, port=None if port is None else str(port))

    def set_link(self, segment: str, link: str, *, up: bool) -> None:
        """Let frames pass a cable, or not."""
        self._order("set_link", segment=segment, link=link, up=up)

    def counters(self, segment: str) -> dict[str, dict[Direction, dict[str, Any]]]:
        """Return what passed each link, and what was dropped there, by reason."""
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
        """Let something happen to frames; return the number to undo it by.

        Args:
            segment: Where.
            kind: One of :data:`pytest_kvm.switch.faults.KINDS`.
            link: A cable, with a direction; None: every frame of the segment, once.
            direction: Seen from the guest.
            seed: Of its chances.
            settings: Of the kind.
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

    def ask(
        self,
        segment: str,
        judge: Judge,
        *,
        link: str | None = None,
        direction: Direction | None = None,
    ) -> int:
        """Have each frame judged here before it goes on; return the number to undo it by.

        A judge that raises is asked no more, and :meth:`undo` raises that:
        frames pass until then.

        Args:
            segment: Where.
            judge: Says whether to drop it; called from one thread, in order.
            link: As in :meth:`fault`.
            direction: As in :meth:`fault`.
        """
        place = {"segment": segment, "link": link, "direction": direction}
        # Appointed by the thread that hears the questions, before it hears the first.
        number: int = self._order("ask", heard=lambda number: self._judges.appoint(number, judge), **place)
        return number

    def cut(self, segment: str, groups: Sequence[Sequence[str]]) -> int:
        """Let frames pass within groups of links only; return the number to undo it by."""
        number: int = self._order("cut", segment=segment, groups=[list(group) for group in groups])
        return number

    def undo(self, number: int) -> None:
        """Undo a fault or a cut; a second time does nothing.

        Raises:
            Exception: What the judge of this number has raised.
        """
        self._order("undo", number=number)
        self._judges.dismiss(number)

    # ------------------------------------------------------------ captures

    def capture(self, segment: str, path: Path, *, link: str | None = None) -> int:
        """Write what crosses a segment, or passes a link, into a new pcap file; return its number."""
        number: int = self._order("capture", segment=segment, link=link, path=str(path))
        return number

    def wait_capture(self, number: int, *, frames: int, timeout: float) -> bool:
        """Wait until a capture's file holds more than so many frames; say whether it does.

        Args:
            number: The capture's.
            frames: How many are known already.
            timeout: Seconds.
        """
        sent, answer = self._send("wait_capture", {"number": number, "frames": frames})
        try:
            return bool(self._wait(sent, answer, timeout=timeout))
        except TimeoutError:
            return False

    def end_capture(self, number: int) -> dict[str, Any]:
        """Finish a capture's file; return its number of frames, and its problem or ""."""
        result: dict[str, Any] = self._order("end_capture", number=number)
        return result

    # ------------------------------------------------------------ the inside

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
            with self._connection.makefile("rb") as lines:
                for line in lines:
                    message = json.loads(line)
                    if "question" in message:
                        self._judge(message)
                    else:
                        self._take_answer(message)
        finally:
            # Nobody waits for an answer that this thread will not hear.
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            for answer in list(self._answers.values()):
                if not answer.done():
                    answer.set_exception(self._switch_gone())

    def _take_answer(self, message: dict[str, Any]) -> None:
        answer = self._answers.get(message["id"])
        if answer is None:
            return  # nobody waits for it any more
        if "error" in message:
            answer.set_exception(SwitchFailed(f"the switch refused: {message['error']}"))
        else:
            answer.set_result(message["answer"])

    def _judge(self, message: dict[str, Any]) -> None:
        drop = self._judges.drops(message["fault"], b64decode(message["frame"]))
        with suppress(SwitchFailed):  # it has ended meanwhile, which the next line tells
            self._tell(verdict=message["question"], drop=drop)

    def _switch_gone(self) -> SwitchFailed:
        return SwitchFailed(
            "the switch of this run has ended",
            details="" if self._closed else f"its process was {self.pid}, exit status {self._process.poll()}",
        )
