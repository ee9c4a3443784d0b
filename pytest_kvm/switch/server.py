"""The switch process: an event loop for cards, the run's orders and delayed frames; ends with its run."""

from __future__ import annotations

import contextlib
import json
import resource
import select
import socket
import sys
from base64 import b64encode
from typing import Any

from pytest_kvm.errors import KvmError
from pytest_kvm.switch.bridge import AnswerCallback
from pytest_kvm.switch.commands import Commands
from pytest_kvm.switch.frames import BrokenStreamError, length_of_whole_frames
from pytest_kvm.switch.link import Port
from pytest_kvm.switch.schedule import Schedule

_CHUNK = 1 << 16
_LONGEST_WAIT = 3600.0
"""Seconds; the loop may wake up earlier than it has to."""
_MOST_ASKED = 4096
"""Frames that may wait for the test's answer; more than these are dropped."""


class Orders:
    """The connection to the run: orders come in, answers and questions go out, each a line of JSON.

    Args:
        connection: The socket; its end means that the run has ended.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.settimeout(0)
        self._begun = b""
        self._unsent = b""

    def read(self) -> list[dict[str, Any]] | None:
        """Return the orders that have come; None if the run has ended."""
        try:
            data = self.connection.recv(_CHUNK)
        except BlockingIOError:
            return []
        except ConnectionError:
            return None
        if not data:
            return None
        *lines, self._begun = (self._begun + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def tell(self, **message: object) -> None:
        """Queue a message for the run."""
        self._unsent += json.dumps(message).encode() + b"\n"

    def flush(self) -> bool:
        """Send as much of the queue as the run takes now; say whether the queue is empty.

        A broken connection is no error here: :meth:`read` tells that the run has ended.
        """
        while self._unsent:
            try:
                self._unsent = self._unsent[self.connection.send(self._unsent) :]
            except BlockingIOError:
                return False
            except ConnectionError:
                self._unsent = b""
        return True


class Server:
    """The event loop of the switch process.

    Args:
        connection: The socket to the run.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._orders = Orders(connection)
        self._schedule = Schedule()
        self._commands = Commands(self._schedule, ask=self._ask, cards=self)
        self._epoll = select.epoll()
        self._listening = select.EPOLLIN
        self._epoll.register(connection, self._listening)
        self._ports: dict[int, Port] = {}
        self._ready: set[Port] = set()
        self._asked: dict[int, AnswerCallback] = {}
        self._questions = 0
        self._waiting: dict[int, tuple[int, int]] = {}
        """By order, the capture that is to have more than so many frames before the order is answered."""

    def run(self) -> None:
        """Work until the run ends."""
        connection = self._orders.connection.fileno()
        while True:
            for descriptor, events in self._events():
                if descriptor == connection:
                    if not self._obey():
                        return
                elif descriptor in self._ports:
                    self._serve(self._ports[descriptor], events)
            self._schedule.run()
            self._flush()

    def _events(self) -> list[tuple[int, int]]:
        wait = self._schedule.wait()
        if wait:
            # epoll_wait(2) can only wait whole milliseconds, select(2) microseconds.
            select.select([self._epoll], [], [], min(wait, _LONGEST_WAIT))
        return self._epoll.poll(None if wait is None else 0)

    # ------------------------------------------------------------ cards

    def watch(self, port: Port) -> None:
        """Begin to wait for a card to connect to the port, or for frames from the card."""
        self._ports[port.fileno()] = port
        self._epoll.register(port, select.EPOLLIN)

    def wake(self, port: Port) -> None:
        """Send what is queued at the port, at the end of this turn of the loop."""
        self._ready.add(port)

    def hang_up(self, port: Port) -> None:
        """Stop waiting for events at the port, and close it with the connection of its card."""
        if self._ports.pop(port.fileno(), None) is not None:
            self._epoll.unregister(port)
        self._ready.discard(port)
        port.close()

    def _serve(self, port: Port, events: int) -> None:
        if not port.connected:
            # The event may belong to a closed socket, whose descriptor number this port got.
            listener = port.fileno()
            with contextlib.suppress(BlockingIOError):
                port.accept()  # closes the listener, which also ends its registration
                del self._ports[listener]
                self.watch(port)
            return
        if events & select.EPOLLOUT:
            self._epoll.modify(port, select.EPOLLIN)
            self._ready.add(port)
        if events & ~select.EPOLLOUT:
            self._read(port)

    def _read(self, port: Port) -> None:
        link = self._commands.link_of.get(port)
        try:
            data = port.read()
            if data is None:
                return
            if not data:
                self.hang_up(port)
                return
            # Frames from a card without a link are dropped.
            done = length_of_whole_frames(data) if link is None else link.segment.receive(link, data)
        except BrokenStreamError as broken:
            if link is not None:
                link.sent.dropped[str(broken)] += 1
            self.hang_up(port)
        else:
            port.keep(data[done:])

    def _flush(self) -> None:
        ready, self._ready = self._ready, set()
        for port in ready:
            if port.fileno() in self._ports and not port.flush():
                self._epoll.modify(port, select.EPOLLIN | select.EPOLLOUT)
        for capture in self._commands.captures.values():
            capture.flush()
        if self._waiting:
            self._tell_waiting()
        events = select.EPOLLIN if self._orders.flush() else select.EPOLLIN | select.EPOLLOUT
        if events != self._listening:
            self._listening = events
            self._epoll.modify(self._orders.connection, events)

    # ------------------------------------------------------------ orders

    def _obey(self) -> bool:
        """Carry out the orders that have come; say whether the run goes on."""
        orders = self._orders.read()
        for order in orders or ():
            if "verdict" in order:
                self._take_verdict(**order)
            elif order["do"] == "wait_capture":
                self._waiting[order["id"]] = order["number"], order["frames"]
            elif order["do"] == "stop_waiting":
                self._waiting.pop(order["wait"], None)
                self._orders.tell(id=order["id"], answer=None)
            else:
                self._carry_out(order.pop("id"), order.pop("do"), order)
        return orders is not None

    def _carry_out(self, number: int, name: str, arguments: dict[str, Any]) -> None:
        try:
            answer = getattr(self._commands, f"do_{name}")(**arguments)
        except (KeyError, ValueError, OSError, KvmError) as error:
            self._orders.tell(id=number, error=f"{type(error).__name__}: {error}")
        else:
            self._orders.tell(id=number, answer=answer)

    def _tell_waiting(self) -> None:
        """Answer the orders whose captures have more frames, have broken off, or were ended."""
        for order, (number, frames) in list(self._waiting.items()):
            capture = self._commands.captures.get(number)
            if capture is None or capture.written.problem or capture.written.frames > frames:
                del self._waiting[order]
                self._orders.tell(id=order, answer=None)

    # ------------------------------------------------------------ questions

    def _ask(self, fault: int, frame: bytes, answered: AnswerCallback) -> None:
        if len(self._asked) >= _MOST_ASKED:
            answered(drop=True, reason="function too slow")
            return
        self._questions += 1
        self._asked[self._questions] = answered
        self._orders.tell(question=self._questions, fault=fault, frame=b64encode(frame).decode())

    def _take_verdict(self, *, verdict: int, drop: bool) -> None:
        self._asked.pop(verdict)(drop=drop)


def main() -> None:
    """Serve one run; the last argument is the descriptor of the connection to it."""
    # Each card and each capture takes a descriptor, and the usual limit is 1024.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with socket.socket(fileno=int(sys.argv[-1])) as connection:
        Server(connection).run()
