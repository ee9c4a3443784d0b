"""Keeps what a machine can tell after a test: from its host, and from inside the guest if that answers.

Each part has limits of its own in time and size, and one that fails is noted
and keeps no other from being kept. What a guest has written is made plain, so
that a terminal can show it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pytest_kvm.host.artifact_folder import TEXT_LIMIT, ArtifactFolder
from pytest_kvm.machine import core_dumps
from pytest_kvm.machine.dumps import keep_dumps
from pytest_kvm.machine.questions import NoAnswer, ask
from pytest_kvm.machine.renewal import renew
from pytest_kvm.machine.screen import to_png
from pytest_kvm.machine.way_in import OUTPUT_LIMIT, WayIn, find_way_in
from pytest_kvm.plaintext import one_line, plain

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_kvm.machine.machine import Machine
    from pytest_kvm.machine.vitals import Trouble
    from pytest_kvm.results import CommandResult
    from pytest_kvm.settings import Dump

_PATIENCE = 10.0
"""Seconds that QEMU and libvirt have to answer."""
_INSIDE_WITHIN = 30.0
"""Seconds that the guest has for all questions, the first included."""
_CORES = 3
_CORE_LIMIT = 32 * 1024**2
"""Bytes of one core dump: a larger one is only named."""
_PIECE = 2 * 1024**2
"""Bytes of a core dump that are asked for at a time."""
_SUFFIX = re.compile(r"\.(?:lz4|xz|zst)\Z")
"""Those of systemd-coredump(8), which tell how a core dump is compressed."""

_BOUNDED = r"""
limit=$1
shift
exec 3>&1
words=$({ { { "$@" 3>&- 4>&-; echo "status $?" >&2; } 2>&4 | tail -c "$limit" >&3; } 4>&1 | tail -c 2000; })
printf %s "${words%status *}" >&2
exit "${words##*status }"
"""
"""Runs a program, passes the ends of its output and of its errors on, and exits as it did.

Without limits its answer could be longer than what the guest agent passes on.
"""

# https://www.freedesktop.org/software/systemd/man/latest/journalctl.html
_JOURNAL = r"""
command -v journalctl >/dev/null || exit 0
exec journalctl --quiet --no-pager --all --output=short-unix --since="@$1"
"""
_FAILED_UNITS = r"""
command -v systemctl >/dev/null || exit 0
failed=$(systemctl list-units --failed --no-legend --plain --no-pager) || exit
[ -n "$failed" ] || exit 0
systemctl status --no-pager --full --lines=100 --state=failed "*"
[ $? -eq 3 ] # https://www.freedesktop.org/software/systemd/man/latest/systemctl.html#Exit%20status
"""
_JOURNAL_FILE = "journal.txt"
_ENTRY = re.compile(rb"(\d{1,11}\.\d{6}) (\S+ ([^\s\[:]+).*)", re.DOTALL)
"""Time, host and program of an entry of journalctl(1)'s ``short-unix``."""
_AGENT = b"qemu-ga"
_CAT = '[ ! -e "$1" ] || exec cat "$1"'
_LIST_CORES = f"""
tries=0
while [ $tries -lt 100 ] && systemctl --quiet is-active "systemd-coredump@*.service" 2>/dev/null; do
    sleep 0.1
    tries=$((tries + 1))
done
{core_dumps.SCRIPT}"""
_READ_PIECE = 'tail -c "+$2" "$1" | head -c "$3"'


class Evidence:
    """What is kept of one machine.

    Args:
        machine: The machine.
        folder: Where it is kept.
        since: When the test began, by the host's monotonic clock.
        console_since: How much the console had shown by then, in bytes.
        transcript: Returns what was done with the guest since then.
        dump: What is kept beside the usual.
        goes_on: Whether the guest is of use afterwards.
    """

    def __init__(
        self,
        machine: Machine,
        folder: ArtifactFolder,
        *,
        since: float,
        console_since: int = 0,
        transcript: Callable[[], str] = str,
        dump: Collection[Dump] = (),
        goes_on: bool = True,
    ) -> None:
        self.folder = folder
        self._machine = machine
        self._since = since
        self._begun = time.monotonic()
        self._seconds = 0.0
        self._trouble = ""
        self._console_since = console_since
        self._transcript = transcript
        self._dump = dump
        self._goes_on = goes_on
        self._has_screenshot = False

    def keep_screenshot(self) -> None:
        """Keep what the screen shows, the first time that this is called."""
        if self._has_screenshot:
            return
        self._has_screenshot = True
        with self._part("screenshot.png"):
            picture = to_png(ask(self._machine.domain.screenshot, within=_PATIENCE))
            self.folder.write("screenshot.png", picture, limit=None)

    def keep(self, trouble: Trouble | None) -> None:
        """Keep everything.

        Args:
            trouble: What is the matter with the machine; None: nothing.
        """
        begun = time.monotonic()
        try:
            self._keep_all(trouble)
        finally:
            self._seconds = time.monotonic() - begun

    def finish(self) -> dict[str, Any]:
        """Write down what is missing, and return what there is to say of the folder."""
        self.folder.finish()
        return {
            "trouble": self._trouble,
            "seconds": round(self._seconds, 2),
            "files": self.folder.files,
            "missing": self.folder.missing,
        }

    def _keep_all(self, trouble: Trouble | None) -> None:
        if trouble is not None:
            self._trouble = trouble.what
            text = f"{trouble.guest} {trouble.what}\n{trouble.details}"
            self.folder.write("trouble.txt", text.rstrip() + "\n")
        with self._part("transcript.txt"):
            self.folder.write("transcript.txt", self._transcript())
        with self._part("console.log"):
            self._keep_console()
        with self._part("domain.xml"):
            self.folder.write("domain.xml", ask(self._machine.domain.xml, within=_PATIENCE))
        for name, source in self._logs():
            with self._part(name):
                self._copy(name, source)
        if trouble is None or (trouble.monitor_answers and not trouble.has_ended):
            self.keep_screenshot()
        if self._dump:  # first of all, so that it does not show our own questions
            self._keep_dumps(trouble)
        with self._part("what only the guest itself can tell"):
            if trouble is not None and not (trouble.agent_answers or trouble.sshd_answers):
                raise NoAnswer(trouble.what)
            self._keep_from_guest(trouble)

    def _keep_dumps(self, trouble: Trouble | None) -> None:
        with self._part("dumps"):
            if trouble is not None and not (trouble.monitor_answers or trouble.has_ended):
                raise NoAnswer(trouble.what)
            keep_dumps(self._machine, self.folder, what=self._dump)
        if self._goes_on and (trouble is None or trouble.agent_answers or trouble.sshd_answers):
            with self._part("the right time in the guest, which has stood still"):
                renew(self._machine)

    @contextmanager
    def _part(self, name: str) -> Generator[None]:
        """Note what keeps a part from being kept, whatever it is: the next part may succeed."""
        try:
            yield
        except NoAnswer as failure:
            self.folder.note(name, failure)
        except Exception as failure:  # noqa: BLE001 - as said above
            self.folder.note(name, repr(failure))

    def _keep_console(self) -> None:
        console, end = self._machine.console, self._machine.console.offset()
        # virtlogd(8) starts a new file at 2 MiB.
        since = self._console_since if self._console_since <= end else 0
        for name, begin, stop in (("console.log", since, end), ("console-before.log", 0, since)):
            begin_kept = max(begin, stop - TEXT_LIMIT)
            if begin_kept > begin:
                self.folder.note(name, f"the last {TEXT_LIMIT} of {stop - begin} bytes are kept")
            self._write(name, console.read(begin_kept, stop - begin_kept))

    def _logs(self) -> Iterator[tuple[str, Path]]:
        firmware, qemu = self._machine.folder / "console.firmware.log", self._machine.domain.log
        if firmware.exists():
            yield "console-firmware.log", firmware
        if qemu is None:
            self.folder.note("qemu.log", "only libvirt's daemon knows where it is")
        else:
            yield "qemu.log", qemu

    def _copy(self, name: str, source: Path) -> None:
        with source.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TEXT_LIMIT))
            self._write(name, file.read(TEXT_LIMIT))

    def _write(self, name: str, data: bytes) -> None:
        self.folder.write(name, plain(data.decode(errors="replace")))

    # ------------------------------------------------------------ inside

    def _keep_from_guest(self, trouble: Trouble | None) -> None:
        """Ask the guest; all programs run at the same time.

        Raises:
            NoAnswer: It does not answer at all.
        """
        way = find_way_in(self._machine, trouble, until=time.monotonic() + _INSIDE_WITHIN)
        since = f"{self._since + way.clock:.3f}"
        finishing: list[tuple[str, Callable[[], CommandResult]]] = []
        for name, script, arguments in _questions(since):
            with self._part(name):
                finishing.append((name, way.begin(_with_bounds("sh", "-c", script, "sh", *arguments))))
        for name, finish in finishing:
            with self._part(name):
                self._keep_output(name, finish(), begun=self._begun + way.clock)
        with self._part("core dumps"):
            self._keep_cores(way, since=since)

    def _keep_output(self, name: str, result: CommandResult, *, begun: float) -> None:
        output = result.stdout_bytes
        if len(output) >= OUTPUT_LIMIT:
            self.folder.note(name, f"the last {OUTPUT_LIMIT} bytes are kept")
        self._write(name, _journal(output, without_us_since=begun) if name == _JOURNAL_FILE else output)
        self._note_failure(name, result)

    def _note_failure(self, name: str, result: CommandResult) -> None:
        if result.exit_code:
            self.folder.note(name, f"exit code {result.exit_code}{_last_words(result)}")

    # ------------------------------------------------------------ core dumps

    def _keep_cores(self, way: WayIn, *, since: str) -> None:
        """Keep the newest core dumps, and a list of all.

        Raises:
            NoAnswer: The guest does not list them.
        """
        listed = way.run(_with_bounds("sh", "-c", _LIST_CORES, "sh", since, "files"))
        self._note_failure("core dumps", listed)
        lines: list[str] = []
        for number, (size, path) in enumerate(_cores(listed.stdout_bytes), start=1):
            suffix = _SUFFIX.search(path)
            name = f"core-{number}{suffix[0] if suffix else ''}"
            is_kept = number <= _CORES and size <= _CORE_LIMIT
            lines.append(f"{name if is_kept else 'not kept'}\t{size} bytes\t{one_line(path)}")
            if is_kept:
                with self._part(name):
                    self.folder.write(name, b"".join(_pieces(way, path, size)), limit=None)
        self.folder.write("core-dumps.txt", "".join(f"{line}\n" for line in lines))


def _with_bounds(*argv: str) -> list[str]:
    return ["sh", "-c", _BOUNDED, "sh", f"{OUTPUT_LIMIT}", *argv]


def _questions(since: str) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yield, for each file, the script that prints it, and the script's arguments."""
    yield _JOURNAL_FILE, _JOURNAL, [since]
    yield "dmesg.txt", "exec dmesg", []
    yield "failed-units.txt", _FAILED_UNITS, []
    yield "cloud-init.log", _CAT, ["/var/log/cloud-init.log"]
    yield "cloud-init-output.log", _CAT, ["/var/log/cloud-init-output.log"]
    yield "cloud-init-status.json", _CAT, ["/run/cloud-init/status.json"]


def _journal(entries: bytes, *, without_us_since: float) -> bytes:
    """Return entries of the journal with times that people can read.

    Args:
        entries: As ``short-unix`` has them; lines that go on begin with blanks.
        without_us_since: Seconds of the guest's clock: since then the guest agent is asked by us, and logs
            each question.
    """
    kept: list[bytes] = []
    is_ours = False
    for line in entries.split(b"\n"):
        entry = _ENTRY.fullmatch(line)
        if entry is not None:
            is_ours = float(entry[1]) >= without_us_since and entry[3] == _AGENT
        if not is_ours:
            kept.append(line if entry is None else _with_date(entry))
    return b"\n".join(kept)


def _with_date(entry: re.Match[bytes]) -> bytes:
    at = datetime.fromtimestamp(float(entry[1]), UTC)
    return f"{at:%Y-%m-%d %H:%M:%S.%fZ} ".encode() + entry[2]


def _last_words(result: CommandResult) -> str:
    said = one_line(result.stderr.strip())[-200:]
    return f": {said}" if said else ""


def _cores(listed: bytes) -> list[tuple[int, str]]:
    """Return size and path of each core dump, the newest first; lines that make no sense are left out."""
    found: list[tuple[float, int, str]] = []
    for line in listed.decode(errors="surrogateescape").split("\n"):
        with suppress(ValueError):
            changed, size, path = line.split(" ", 2)
            if PurePosixPath(path).is_absolute() and int(size) > 0:
                found.append((float(changed), int(size), path))
    return [(size, path) for _, size, path in sorted(found, reverse=True)]


def _pieces(way: WayIn, path: str, size: int) -> Iterator[bytes]:
    """Yield the content of a file in the guest.

    Raises:
        NoAnswer: It cannot be read, has another size, or the time is over.
    """
    for offset in range(0, size, _PIECE):
        result = way.run(["sh", "-c", _READ_PIECE, "sh", path, f"{offset + 1}", f"{_PIECE}"])
        if result.exit_code or len(result.stdout_bytes) != min(_PIECE, size - offset):
            raise NoAnswer(f"cannot be read{_last_words(result) or ', or changes'}")
        yield result.stdout_bytes
