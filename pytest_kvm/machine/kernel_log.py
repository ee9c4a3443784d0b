"""Reads what a guest's kernel has logged, whether or not its console shows it.

A console can hide it (``quiet``, ``loglevel=``, ``dmesg -n``), and reading the
whole log after each test would take a guest without KVM a tenth of a second. So
the guest agent holds ``/dev/kmsg`` open at the end of the log: after most tests
one question of a few milliseconds tells that nothing was added. The agent's
handle is part of the guest's memory, so it goes back with the guest, to where
the log ended then.

``/dev/kmsg`` gives one record for each read,
``priority,number,microseconds,flags;text``
(https://docs.kernel.org/admin-guide/abi-testing.html, dev-kmsg).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from pytest_kvm.errors import AgentError, KvmError
from pytest_kvm.hypervisor.protocol import Domain, DomainState
from pytest_kvm.machine.agent import GuestAgent

T = TypeVar("T")
_log = logging.getLogger("pytest_kvm.kernel")

_DEVICE = "/dev/kmsg"
_READ_ALL = ("sh", "-c", f"dd if={_DEVICE} iflag=nonblock bs=8192 2>/dev/null | tail -c 2000000")
"""dd fails at the end of the log, because there is no more. The agent passes on some 7 MiB at most."""
_FIRST_BYTES = 8
"""Each record has as many."""
_MORE_BYTES = 4
_LONGEST_NUMBER = 64
"""Bytes of a record in which its number must stand."""
_NUMBER = re.compile(rb"\d+,(\d+),")
_RECORD = re.compile(rb"^(\d{1,9}),(\d{1,20}),(\d{1,20}),[^;\n]*;([^\n]*)", re.MULTILINE)
_NOTHING_NEW = "temporarily unavailable"
"""Part of strerror(3) of EAGAIN, as the agent passes it on."""
_CLOCKS_DIFFER = 1.0
"""The times of records and the uptime differ by at most so many seconds (sched_clock and CLOCK_BOOTTIME)."""


@dataclass(frozen=True, kw_only=True)
class _Record:
    number: int
    micros: int
    text: bytes
    is_of_kernel: bool
    """Else a program has written it to the device."""

    @property
    def stamp(self) -> str:
        """Its time, as a console shows it."""
        seconds, micros = divmod(self.micros, 1_000_000)
        return f"{seconds}.{micros:06d}"

    def line(self) -> bytes:
        """The record as a console shows it."""
        return b"[%12s] %s\n" % (self.stamp.encode(), self.text)


class KernelLog:
    """The log of one machine's kernel.

    No method raises an error of the guest: a guest that does not answer has logged nothing.

    Args:
        domain: The machine's domain.
        patience: Seconds that one answer of the guest agent may take.
    """

    def __init__(self, domain: Domain, *, patience: float) -> None:
        self._domain = domain
        self._agent = GuestAgent(domain, timeout=patience)
        self._patience = patience
        self._handle: int | None = None
        self._first_unread: int | None = None
        """Number of a record that is new and could not be read; None: the handle knows what is new."""
        self._read_at: float | None = None
        """When the log was read last, by the host's monotonic clock; None: this kernel's never."""
        self._is_silent = False
        """Whether the agent has kept us waiting; it is not asked again then."""

    def skip_to_end(self) -> None:
        """Take for read what is logged by now."""
        self._read_at = time.monotonic()
        self._first_unread = None
        self._ask(self._go_to_end)

    def note_silence(self) -> None:
        """Note that the agent does not answer: it is not asked until the guest is restored or boots."""
        self._is_silent = True
        _log.warning(
            "%s: its kernel's log is not read any more: its agent does not answer", self._domain.name
        )

    def note_restore(self) -> None:
        """Note that the guest was restored: its agent may answer now, and what it had logged then is old."""
        self._is_silent = False
        self._first_unread = None
        if self._read_at is not None:
            self._read_at = time.monotonic()

    def note_boot(self) -> None:
        """Note that another kernel runs, whose log is all new."""
        self._is_silent = False
        self._handle = self._first_unread = self._read_at = None

    def read_new(self) -> bytes:
        """Return what the kernel has logged since the last call: a line for each record, as on a console."""
        new = self._ask(self._new_records) or []
        return b"".join(record.line() for record in new if record.is_of_kernel)

    def stamps_of_programs(self) -> set[str]:
        """Return the time stamps of the records that programs have written to the kernel's log."""
        records = self._ask(lambda: list(self._records())) or []
        of_kernel = {record.stamp for record in records if record.is_of_kernel}
        return {record.stamp for record in records} - of_kernel

    def _ask(self, question: Callable[[], T]) -> T | None:
        """Return what a question to the agent gives; None if nobody answers it."""
        begun = time.monotonic()
        try:
            if not self._is_silent and self._domain.state() is DomainState.RUNNING:
                return question()
        except (KvmError, LookupError, TypeError, ValueError) as failure:  # the agent may answer anything
            self._is_silent = time.monotonic() - begun > self._patience / 2
            level = logging.WARNING if self._is_silent else logging.DEBUG
            _log.log(level, "%s: its kernel's log cannot be read: %s", self._domain.name, failure)
        return None

    def _new_records(self) -> list[_Record]:
        if self._first_unread is None:
            self._first_unread = self._number_of_first_new()
        if self._first_unread is None:
            return []
        # If the agent was restarted, perhaps the kernel was, too, and numbers its records anew.
        first, oldest = self._first_unread if self._go_to_end() else 0, 0.0
        if first == 0 and self._read_at is not None:
            oldest = self._uptime() - (time.monotonic() - self._read_at) - _CLOCKS_DIFFER
        new = [each for each in self._records() if each.number >= first and each.micros >= oldest * 1e6]
        self._read_at, self._first_unread = time.monotonic(), None
        return new

    def _go_to_end(self) -> bool:
        """Have the agent skip the log's records; say whether it still had its handle."""
        if self._handle is not None:
            try:
                self._seek(self._handle)
            except AgentError:
                self._handle = None  # the agent was restarted
            else:
                return True
        handle = self._agent.open(_DEVICE, mode="r")
        self._seek(handle)
        self._handle = handle
        return False

    def _seek(self, handle: int) -> None:
        self._agent.call("guest-file-seek", {"handle": handle, "offset": 0, "whence": "end"})

    def _number_of_first_new(self) -> int | None:
        """Return the number of the first new record; None if there is none, 0 if the agent does not know."""
        if self._handle is None:
            return 0
        begin = b""
        try:
            while (found := _NUMBER.match(begin)) is None:
                read = self._agent.read(self._handle, _MORE_BYTES if begin else _FIRST_BYTES)
                begin += read
                if not read or len(begin) > _LONGEST_NUMBER:
                    return 0  # no kernel sends that
        except AgentError as failure:
            # Another error: records were overwritten that had not been read, or the agent was restarted.
            return None if _NOTHING_NEW in str(failure) else 0
        return int(found[1])

    def _uptime(self) -> float:
        """Return how many seconds ago the guest was booted."""
        return float(self._agent.read_text("/proc/uptime", limit=100).partition(" ")[0])

    def _records(self) -> Iterator[_Record]:
        text = self._agent.exec(_READ_ALL, check=False, timeout=self._patience).stdout_bytes
        for record in _RECORD.finditer(text):
            yield _Record(
                number=int(record[2]),
                micros=int(record[3]),
                text=record[4],
                # The bits above the priority are a facility of syslog(3); the kernel's is 0.
                is_of_kernel=int(record[1]) >> 3 == 0,
            )
