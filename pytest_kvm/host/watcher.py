"""The watcher process, which cleans up after a run that was killed and could not do so itself.

One watcher is started beside every run with the run's folder and token, in
a process session of its own. It sleeps until the run says "done" or dies,
``kill -9`` included. If the run dies, the watcher kills every QEMU of the run and
its switch, undoes what the run has made on the host, and removes the run's folder. It
imports only the standard library, because it must start without the run's
``sys.path`` and stay small: there is one for each xdist worker.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from pathlib import Path

from pytest_kvm.host import folder_marker, undo_notes

BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from pytest_kvm.host.watcher import main; raise SystemExit(main(sys.argv[2:]))"
)
"""Program text that starts the watcher. Arguments: the package's folder, the run's folder and token."""

_PATIENCE_MS = 5000
"""How long a killed process may take to disappear."""


_MADE_ANEW = frozenset({"v", "test.json"})
"""What a run makes in its folder's place if somebody removes that: libvirt's folders, and a test's record."""


def processes_of(folder: Path, *, token: str = "") -> list[int]:
    """Return the ids of a run's QEMU processes, of its switch and its watcher, but for this process.

    Every domain of a run has its console log in the run's folder, so QEMU's command
    line names the folder. The folder's name is random, so no other process names it
    by accident; the folders above it may have other names for QEMU, by a symbolic link.
    The command lines of the switch and the watcher have the run's token, and so has
    the folder's marker.

    Args:
        folder: The run's folder.
        token: The run's token; "": that of the marker.
    """
    in_folder = os.fsencode(f"/{folder.parent.name}/{folder.name}/")
    token = token or str((folder_marker.marker_of(folder) or {}).get("token", ""))
    in_arguments = b"\0" + token.encode() + b"\0"

    def is_qemu(program: bytes, arguments: bytes) -> bool:
        return b"qemu" in program.rpartition(b"/")[2] and in_folder in arguments

    def has_token(arguments: bytes) -> bool:
        return bool(token) and in_arguments in arguments and b"pytest_kvm" in arguments

    return [
        pid
        for pid, (program, arguments) in command_lines().items()
        if is_qemu(program, arguments) or (has_token(arguments) and pid != os.getpid())
    ]


def command_lines() -> dict[int, tuple[bytes, bytes]]:
    """Return program and arguments, each with a NUL byte behind it, of all processes that we may look at."""
    found: dict[int, tuple[bytes, bytes]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            program, _, arguments = (entry / "cmdline").read_bytes().partition(b"\0")
        except OSError:  # the process ended meanwhile, or we may not look at it
            continue
        found[int(entry.name)] = (program, arguments)
    return found


def end_processes(folder: Path, *, token: str = "") -> list[int]:
    """Kill the processes of a run and wait until they are gone; see :func:`processes_of`."""
    ended: list[int] = []
    for pid in processes_of(folder, token=token):
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            # Before the pidfd was opened, another process may have been given
            # the id. From now on that cannot happen, so look again.
            if pid in processes_of(folder, token=token):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                _await_end(handle)
                ended.append(pid)
        except (PermissionError, ProcessLookupError) as error:
            sys.stderr.write(f"pytest-kvm: cannot end process {pid} of {folder}: {error}\n")
        finally:
            os.close(handle)
    return ended


def remove_run(folder: Path, *, token: str = "") -> list[int]:
    """Kill a run's processes, remove its folder, and return the ids of the killed processes.

    A folder that the plugin did not make is left alone, even if it has the run folder's name.
    If something that the run has made outside of it cannot be undone, the notes of that stay in the folder.

    Args:
        folder: The run's folder.
        token: The run's token. Who gives it knows that the run had this folder, so what
            the run has made in its place, after somebody removed it, is removed, too.
    """
    ended = end_processes(folder, token=token)
    try:
        if token and _is_made_anew(folder):
            folder_marker.discard_tree(folder)
        is_undone = not folder_marker.is_ours(folder) or undo_notes.carry_out(folder)
        keeps = () if is_undone else (undo_notes.FOLDER,)
        folder_marker.remove(folder, keeps=keeps)
    except (OSError, ValueError) as problem:
        sys.stderr.write(f"pytest-kvm: cannot remove {folder}: {problem}\n")
    # A QEMU that was between fork and exec at the first look has its own
    # command line by now.
    return ended + end_processes(folder, token=token)


def _is_made_anew(folder: Path) -> bool:
    """Say whether a folder has no marker, and nothing that a run does not make in its folder's place."""
    if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.geteuid():
        return False
    return {path.name for path in folder.iterdir()} <= _MADE_ANEW


def _await_end(handle: int) -> bool:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(_PATIENCE_MS))


def _run_ended_well(parent: int) -> bool:
    """Sleep until the run says "done" on stdin (True) or dies (False)."""
    poll = select.poll()
    poll.register(sys.stdin, select.POLLIN)
    try:
        handle = os.pidfd_open(parent)
    except ProcessLookupError:
        return False
    # A forked child of the run may hold the pipe open after the run has died,
    # so waiting for the pipe's end is not enough; the pidfd tells.
    poll.register(handle, select.POLLIN)
    ready = [source for source, _ in poll.poll()]
    if sys.stdin.fileno() in ready:
        return os.read(sys.stdin.fileno(), 16).startswith(b"done")
    return False


def main(arguments: list[str]) -> int:
    """Watch one run.

    Args:
        arguments: The run's folder and its token, which begins with its process id.
    """
    folder, token = Path(arguments[0]), arguments[1]
    parent = int(token.partition(":")[0])
    # Ctrl-C and a closing terminal end the run; the watcher has to outlive both.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    if not _run_ended_well(parent):
        remove_run(folder, token=token)
    return 0
