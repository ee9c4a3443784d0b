"""A run's switch process: starts it, sends it orders, and has its questions answered."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_kvm.errors import SwitchFailed
from pytest_kvm.switch.judges import Judges

_BOOTSTRAP = "import sys; sys.path.insert(0, sys.argv[1]); from pytest_kvm.switch.server import main; main()"
_PATIENCE = 30.0
"""Seconds to wait for an order's answer, which takes less than a millisecond unless the host stands still."""
_ENDS_WITHIN = 5.0


class SwitchProcess:
    """The switch process, as the test's process sees it.

    The switch process ends when its connection to this object does: at
    :meth:`close`, and in whatever way the run ends. Once the process has ended,
    each order raises SwitchFailed.

    Args:
        token: The run's token, by which the run's watcher finds the process if that does not end.

    Raises:
        SwitchFailed: The process cannot be started.
    """

    def __init__(self, token: str = "") -> None:
        ours, theirs = socket.socketpair()
        self._connection = ours
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._answers: dict[int, Future[Any]] = {}
        self.judges = Judges(self._tell_verdict)
        """Those who answer the switch's questions."""
        self._closed = False
        root = str(Path(__file__).parents[2])
        with theirs:
            argv = [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, root, token, str(theirs.fileno())]
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
        self.judges.close()
        self._connection.close()
        try:
            self._process.wait(_ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    # ------------------------------------------------------------ orders and answers

    def order(self, do: str, *, heard: Callable[[Any], None] | None = None, **arguments: object) -> Any:  # noqa: ANN401 - JSON
        """Send an order, and return its answer.

        Args:
            do: Its name.
            heard: Called with the answer, by the thread that reads all answers and questions.
            arguments: Its arguments.

        Raises:
            SwitchFailed: The switch has refused, does not answer, or has ended.
        """
        sent, answer = self.send(do, arguments, heard=heard)
        try:
            return self.wait(sent, answer, timeout=_PATIENCE)
        except TimeoutError:
            raise SwitchFailed(f"the switch (pid {self.pid}) does not answer {do}") from None

    def send(
        self, do: str, arguments: Mapping[str, object], *, heard: Callable[[Any], None] | None = None
    ) -> tuple[int, Future[Any]]:
        """Send an order; return its number and what its answer will be in, for :meth:`wait`."""
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

    def wait(self, number: int, answer: Future[Any], *, timeout: float | None = None) -> Any:  # noqa: ANN401 - JSON
        """Return an order's answer.

        Raises:
            TimeoutError: It has not come after so many seconds.
        """
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
                        self.judges.ask(message)
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
