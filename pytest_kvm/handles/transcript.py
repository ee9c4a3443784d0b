"""What tests have done with a guest, when, and what came of it: for whoever reads the report of a failure."""

from __future__ import annotations

import inspect
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import wraps
from operator import attrgetter
from reprlib import Repr
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pytest_kvm.errors import CommandFailed, CommandTimeout, KvmError
from pytest_kvm.machine.agent import GuestAgent
from pytest_kvm.plaintext import one_line
from pytest_kvm.results import CommandResult, for_terminal
from pytest_kvm.ssh.process import Process

if TYPE_CHECKING:
    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.machine.machine import Machine

T = TypeVar("T")
M = TypeVar("M", bound=Callable[..., object])

_MOST = 1000
"""Calls that are remembered, the last ones."""
_MOST_RUNNING = 100
"""Processes in the background whose output is looked at later."""
_OUTPUT_BYTES = 4096
"""Bytes of each stream that are remembered, its end."""
_COMMAND_CHARS = 2000
_COMMANDS = ("command", "argv")
"""Arguments that are shown on a line of their own."""
_PRIVATE = ("input", "env", "text", "data", "chords")
"""Arguments that may hold secrets, or much: only their size is told."""
_LATE_OUTPUT = 1.0
"""Seconds after a process has ended within which the rest of its output comes."""
_REPR = Repr()
_REPR.maxstring = _REPR.maxother = 120


@dataclass(kw_only=True)
class Entry:
    """One call of a verb."""

    call: str
    """As in Python, without the command."""
    command: str | None = None
    began_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    begun: float = field(default_factory=time.monotonic)
    seconds: float | None = None
    """None: it is under way."""
    outcome: str = ""
    """What came of it, on one line; empty: it returned."""
    out: bytes = b""
    err: bytes = b""
    sizes: tuple[int, int] = (0, 0)
    """Bytes of all that both streams have held."""
    process: Process | None = None
    """What :meth:`Guest.start` has started, until its output is complete."""
    has_secrets: bool = False
    """Whether it was given an argument that may be secret."""
    repeats: int = 0
    """How often the same had come of the same call right before it."""
    _seen_ended: float | None = None

    def end(self, value: object) -> None:
        """Note what the verb has returned."""
        if isinstance(value, Process):
            self.process = value
            return
        self.seconds = time.monotonic() - self.begun
        if isinstance(value, CommandResult):
            self._note_result(value)
        elif isinstance(value, (str, bytes)):
            self.outcome = f"returned {len(value)} {'bytes' if isinstance(value, bytes) else 'characters'}"

    def fail(self, failure: BaseException) -> None:
        """Note what the verb has raised."""
        self.seconds = time.monotonic() - self.begun
        if isinstance(failure, (CommandFailed, CommandTimeout)):
            self._note_result(failure.result)
        name = type(failure).__name__
        if isinstance(failure, KvmError):
            self.outcome = one_line(f"{name}: {failure.brief}")
        else:  # Python's own texts may repeat an argument
            self.outcome = name if self.has_secrets else one_line(f"{name}: {failure}")

    def look(self) -> None:
        """Note what a process in the background has written."""
        if self.process is not None:
            if self._seen_ended is None and not self.process.running:
                self._seen_ended = time.monotonic()
            self._note_result(self.process.so_far())

    @property
    def is_complete(self) -> bool:
        """Whether nothing more comes from a process in the background."""
        return self._seen_ended is not None and time.monotonic() - self._seen_ended >= _LATE_OUTPUT

    def equals(self, other: Entry) -> bool:
        """Say whether another entry differs in its time alone."""
        return self.seconds is not None and other.seconds is not None and self._facts == other._facts

    @property
    def _facts(self) -> tuple[object, ...]:
        return (self.call, self.command, self.outcome, self.out, self.err, self.sizes)

    def _note_result(self, result: CommandResult) -> None:
        self.outcome = "" if result.exit_code == -1 else f"exit code {result.exit_code}"
        self.out, self.err = result.stdout_bytes[-_OUTPUT_BYTES:], result.stderr_bytes[-_OUTPUT_BYTES:]
        self.sizes = (len(result.stdout_bytes), len(result.stderr_bytes))

    def lines(self) -> Iterator[str]:
        """Yield it as people read it."""
        took = "" if self.seconds is None else f"after {self.seconds:.2f} s"
        again = f"({self.repeats} times more before)" if self.repeats else ""
        state = "has not ended" if self._seen_ended is None else "nobody knows how it has ended"
        what = " ".join(filter(None, [self.outcome, took, again])) or state
        yield f"{self.began_at:%Y-%m-%d %H:%M:%S.%fZ} {self.call}: {what}"
        if self.command is not None:
            first, *others = for_terminal(self.command.encode(errors="replace")).split("\n")
            yield f"  $ {first}"
            yield from (f"    {line}" for line in others)
        for name, data, size in zip(("out", "err"), (self.out, self.err), self.sizes, strict=True):
            if size > len(data):
                yield f"  {name}: (the end of {size} bytes)"
            if data:
                yield from (f"  {name}: {line}" for line in for_terminal(data).rstrip("\n").split("\n"))


class Transcript:
    """The calls of one guest's verbs, in the order in which they began."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque(maxlen=_MOST)
        self._running: deque[Entry] = deque()

    @contextmanager
    def noting(self, call: str, command: object = None, *, has_secrets: bool = False) -> Generator[Entry]:
        """Note a call that lasts as long as a block; the block may tell the entry what it returns.

        Args:
            call: As in Python.
            command: What is run in the guest: a text, or words; None: nothing.
            has_secrets: Whether an error's text may hold what must not be told.
        """
        text = None if command is None else _command_text(command)
        entry = Entry(call=one_line(call), command=text, has_secrets=has_secrets)
        with self._lock:
            self._entries.append(entry)
        try:
            yield entry
        except BaseException as failure:
            entry.fail(failure)
            raise
        else:
            if entry.seconds is None and entry.process is None:
                entry.end(None)
        finally:
            self._settle(entry)

    def text(self, *, since: float) -> str:
        """Return what has begun since a moment of the host's monotonic clock; empty if nothing has."""
        with self._lock:
            entries = [entry for entry in self._entries if entry.begun >= since]
            for entry in entries:
                entry.look()
            return "".join(f"{line}\n" for entry in entries for line in entry.lines())

    def _settle(self, entry: Entry) -> None:
        """Keep the first and the last of calls of which the same came, and let go of processes."""
        with self._lock:
            last = [self._entries[-number] for number in range(1, min(3, len(self._entries)) + 1)]
            if len(last) == 3 and last[0] is entry and all(entry.equals(each) for each in last[1:]):
                entry.repeats = last[1].repeats + 1
                del self._entries[-2]
            if entry.process is not None:
                self._running.append(entry)
            self._let_go()

    def _let_go(self) -> None:
        """Let go of processes whose output is complete, and of the oldest of too many."""
        too_many = len(self._running) - _MOST_RUNNING
        for number, each in enumerate(self._running):
            if number < too_many or (each.process is not None and not each.process.running):
                each.look()
            if number < too_many or each.is_complete:
                each.process = None
        self._running = deque(each for each in self._running if each.process is not None)


@contextmanager
def noting_all(transcripts: Iterable[Transcript], call: str) -> Generator[None]:
    """Note a call, which lasts as long as a block, for several guests."""
    with ExitStack() as stack:
        for each in transcripts:
            stack.enter_context(each.noting(call))
        yield


def transcript_of(guest: Guest) -> Transcript:
    """Return a guest's transcript. It is no verb: tests have no use for it."""
    return guest._callbacks.transcript  # noqa: SLF001 - of the same layer, and no verb: see above


def with_transcript(*, but: Sequence[str] = ()) -> Callable[[type[T]], type[T]]:
    """Return a decorator of a class: each call of one of its public methods is noted in its transcript.

    Args:
        but: Methods whose calls are not.
    """

    def decorate(kind: type[T]) -> type[T]:
        for name, method in list(vars(kind).items()):
            if inspect.isfunction(method) and not name.startswith("_") and name not in but:
                setattr(kind, name, _with_notes(method, find=transcript_of))
        return kind

    return decorate


def _with_notes(method: M, *, find: Callable[[Any], Transcript], prefix: str = "") -> M:
    """Return a method whose calls are noted.

    Args:
        method: The method.
        find: Returns the transcript of the object that it is called for.
        prefix: What stands before its name.
    """
    signature = inspect.signature(method)

    @wraps(method)
    def call(self: Any, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - whatever the method takes
        __tracebackhide__ = True
        try:
            given = signature.bind(self, *args, **options).arguments
        except TypeError:
            return method(self, *args, **options)  # which raises it better
        _, *arguments = given.items()
        command = next((value for name, value in arguments if name in _COMMANDS), None)
        shown = ", ".join(_argument(*each) for each in arguments if each[0] not in _COMMANDS)
        has_secrets = any(name in _PRIVATE for name, _ in arguments)
        verb = f"{prefix}{method.__name__}({shown})"
        with find(self).noting(verb, command, has_secrets=has_secrets) as entry:
            value = method(self, *args, **options)
            entry.end(value)
        return value

    return cast("M", call)


def _argument(name: str, value: object) -> str:
    if name in _PRIVATE:
        return f"{name}=<{len(value) if isinstance(value, Sized) else '…'}>"
    return f"{name}={_REPR.repr(value)}"


def _command_text(command: object) -> str:
    words = isinstance(command, (list, tuple))
    text = shlex.join(map(str, cast("Sequence[object]", command))) if words else str(command)
    return text if len(text) <= _COMMAND_CHARS else f"{text[:_COMMAND_CHARS]}…"


class NotedAgent(GuestAgent):
    """A guest agent whose programs are noted.

    Args:
        machine: The guest's machine.
        transcript: The guest's.
    """

    def __init__(self, machine: Machine, transcript: Transcript) -> None:
        super().__init__(machine.domain, timeout=machine.timeouts.agent)
        self.transcript = transcript

    exec = _with_notes(GuestAgent.exec, find=attrgetter("transcript"), prefix="agent.")
