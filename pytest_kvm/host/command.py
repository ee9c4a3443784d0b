"""Runs host programs, and lets none of them outlive the process that started it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pytest_kvm.errors import HostCommandFailed, MissingDependency
from pytest_kvm.host import install_hints as packages

OnLine = Callable[[str], None]

_TAIL_LINES = 25


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A host program that ended with exit code 0."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    input: str | None = None,  # noqa: A002 - the word subprocess.run uses
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_line: OnLine | None = None,
) -> Completed:
    """Run a program to its end and return what it printed.

    The program runs in a process group of its own, which is killed when time
    runs out or when this call is interrupted. The kernel also kills the program
    when the calling thread ends (``PR_SET_PDEATHSIG``, prctl(2)), so a killed
    test run leaves nothing running.

    Args:
        argv: Program and arguments; never a shell string.
        timeout: Seconds that the program may take.
        input: Text for its standard input; without it, ``/dev/null``.
        env: Variables added to this process's environment.
        cwd: Folder in which the program runs.
        on_line: Called from a reader thread with each line of the program's
            output or error output, one line at a time. If it raises an
            exception, the program is killed and this call raises the exception.

    Raises:
        MissingDependency: The program is not installed.
        HostCommandFailed: The program exited non-zero, was killed, or ran out of time.
    """
    args = [os.fspath(arg) for arg in argv]
    _require(args[0])
    child = subprocess.Popen(
        with_parent_death_signal(args),
        stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        process_group=0,
    )
    with child:
        streams = _Streams(child, input, on_line)
        exit_code = _wait_for_end(child, streams, timeout=timeout)
    if streams.problem is not None:
        raise streams.problem
    if exit_code is None:
        raise _failure(args, f"ran out of time after {timeout:.0f} s", streams)
    if exit_code != 0:
        raise _failure(args, _outcome(exit_code), streams)
    return Completed(argv=tuple(args), exit_code=exit_code, stdout=streams.stdout, stderr=streams.stderr)


def require(*programs: str) -> None:
    """Check that programs are installed, before work starts that needs them.

    Raises:
        MissingDependency: A program is absent; the message names the first one.
    """
    for program in programs:
        _require(program)


def with_parent_death_signal(argv: Sequence[str]) -> list[str]:
    """Return arguments that start a program which is killed when the thread that started it ends.

    They run setpriv(1), which makes the prctl call and then becomes the program. On a
    host without setpriv the program goes on after the thread's end.
    A ``preexec_fn`` could make that call, too, but it runs Python between fork
    and exec, which is not safe in a process that has threads.
    """
    setpriv = shutil.which("setpriv")
    return [*([setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []), *argv]


class _Streams:
    """The three streams of a child, each served by a thread of its own."""

    def __init__(self, child: subprocess.Popen[bytes], text: str | None, on_line: OnLine | None) -> None:
        self.problem: Exception | None = None
        """The exception that ``on_line`` raised, None if it raised none."""
        self._child = child
        self._on_line = on_line
        self._one_line = threading.Lock()
        self._out: list[str] = []
        self._err: list[str] = []
        self._last: list[str] = []
        self._threads: list[threading.Thread] = []
        if child.stdout is not None:
            self._serve(self._read, child.stdout, self._out)
        if child.stderr is not None:
            self._serve(self._read, child.stderr, self._err)
        if child.stdin is not None and text is not None:
            self._serve(_write, child.stdin, text)

    @property
    def stdout(self) -> str:
        return "".join(self._out)

    @property
    def stderr(self) -> str:
        return "".join(self._err)

    @property
    def tail(self) -> str:
        """The last lines of both streams, in the order they came."""
        return "".join(self._last[-_TAIL_LINES:])

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _serve(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _read(self, stream: IO[bytes], lines: list[str]) -> None:
        for raw in stream:
            line = raw.decode(errors="replace")
            with self._one_line:
                lines.append(line)
                self._last = [*self._last[-_TAIL_LINES:], line]
                self._pass_on(line.rstrip("\r\n"))

    def _pass_on(self, line: str) -> None:
        if self._on_line is None or self.problem is not None:
            return
        try:
            self._on_line(line)
        except Exception as problem:  # noqa: BLE001 - it is raised by run(); this thread has to read on
            self.problem = problem
            _kill_group(self._child)


def _write(stream: IO[bytes], text: str) -> None:
    # A program may end before it has read all of its input; that is no error.
    with suppress(BrokenPipeError), stream:
        stream.write(text.encode())


def _require(program: str) -> None:
    if shutil.which(program) is None:
        need = packages.need_for(Path(program).name)
        raise MissingDependency(
            f"the program {program!r} is not installed",
            resolution=packages.install_hint(need) if need else f"install what brings {program}",
        )


def _wait_for_end(child: subprocess.Popen[bytes], streams: _Streams, *, timeout: float) -> int | None:
    """Return a program's exit code once all of its output is read; None if it ran out of time."""
    exit_code = None
    try:
        exit_code = child.wait(timeout)
    except subprocess.TimeoutExpired:
        _kill_group(child)
    except BaseException:
        _kill_group(child)
        raise
    streams.join()
    return exit_code


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _outcome(exit_code: int) -> str:
    return f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exited with {exit_code}"


def _failure(argv: list[str], how: str, streams: _Streams) -> HostCommandFailed:
    return HostCommandFailed(
        f"{argv[0]} {how}",
        details=f"$ {shlex.join(argv)}\n{streams.tail}",
        resolution="the last lines above say what it stumbled over; the command can be repeated by hand",
    )
