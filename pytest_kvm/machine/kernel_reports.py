"""Recognises what a Linux kernel prints when something goes wrong in it: oopses, lockdep reports, OOM kills.

The words are the kernel's own (``kernel/panic.c``, ``kernel/locking/lockdep.c``,
``kernel/watchdog.c``, ``kernel/hung_task.c``, ``kernel/rcu/tree_stall.h``,
``mm/oom_kill.c``, ``mm/kasan/report.c``, ``mm/slub.c``). A program may print the
same words, so a line counts only if the kernel's time stamp stands before it. What
a guest prints can be anything: each report is decoded with replacement, cleaned
and cut.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pytest_kvm.plaintext import plain

ReportKind = Literal[
    "panic",
    "sanitizer report",
    "soft lockup",
    "hung task",
    "RCU stall",
    "OOM kill",
    "lockdep report",
    "oops",
    "warning",
]

MOST_REPORTS = 20
"""Reports of each kind that are recognised in one text. Any number of warnings hides no panic."""
_MOST_LINES = 60
_MOST_BYTES = 12 * 1024
"""The longest text of one report, from its first words on."""
_MOST_BEFORE = 16 * 1024
"""Bytes before the first words that may belong to the report, too."""
_TOGETHER = 5.0
"""Lines of one report have time stamps at most so many seconds apart."""
_DISORDER = 0.1
"""Time stamps of several processors can be in disorder by so many seconds."""
_REASON_WITHIN = 1.0
"""The second line of an oops ("Oops: 0002 [#1]") comes within so many seconds of the first."""

# In this order: the first pattern that matches tells the kind.
_WORDS: tuple[tuple[ReportKind, bytes], ...] = (
    ("panic", rb"Kernel panic - not syncing"),
    ("sanitizer report", rb"BUG: (?:K[ACM]SAN|KFENCE)\b|UBSAN: "),
    ("soft lockup", rb"BUG: (?:soft lockup|workqueue lockup)|Watchdog detected hard LOCKUP"),
    ("hung task", rb"INFO: task [^\n]{1,80} blocked (?:for more than|in I/O wait)"),
    ("RCU stall", rb"INFO: rcu\w* (?:self-detected stall|detected (?:expedited )?stalls)"),
    ("OOM kill", rb"(?:Memory cgroup out|Out) of memory(?: \(\w{1,40}\))?: Kill"),
    (
        "lockdep report",
        (
            rb"(?:WARNING|INFO|\[ BUG): (?:possible (?:circular|recursive|irq lock)|inconsistent lock state"
            rb"|bad (?:unlock balance|contention)|held lock freed|lock held when|Nested lock was not taken"
            rb"|suspicious RCU usage|Invalid wait context|trying to register non-static key"
            rb"|[^\n]{1,80}(?:unsafe lock order detected|still has locks held))"
        ),
    ),
    (
        "oops",
        (
            rb"BUG: |BUG [^\n]{1,80}? \((?:Not t|T)ainted|kernel BUG at |Oops: |general protection fault"
            rb"|Unable to handle kernel |Internal error: [^\n]{1,80}\[#\d|(?:PANIC: )?double fault"
            rb"|[a-z][\w -]{2,40}: (?:0x)?[0-9a-f]{4,16} \[#\d"
        ),
    ),
    ("warning", rb"WARNING: (?:CPU: \d|(?:\[[^\n]{1,200}\] )?[\w/.-]{1,200}:\d{1,6} at )"),
)
_KIND_OF_GROUP: dict[str, ReportKind] = {f"k{number}": kind for number, (kind, _) in enumerate(_WORDS)}
_STAMP = rb"\[ {0,8}(?P<stamp>\d{1,9}\.\d{6})\](?:\[ {0,8}[TC]\d{1,9}\])? "
"""With the thread or the processor that printed the line, where the kernel names it."""
_PREFIXES = rb"(?:(?:NMI )?[\w/.#-]{1,40}: ){0,2}"
"""Subsystems, as in "watchdog: BUG: soft lockup". Before a program's name there can be the host's, as
``journalctl`` prints it, and after it its process id in brackets."""
_KINDS = b"|".join(b"(?P<k%d>%s)" % (number, words) for number, (_, words) in enumerate(_WORDS))
_BEGIN = re.compile(rb"(?<!\d\] )" + _STAMP + _PREFIXES + b"(?:" + _KINDS + b")")
"""Not after another time stamp: that is a program that quotes the kernel."""
_BARE_PANIC = re.compile(rb"^Kernel panic - not syncing", re.MULTILINE)
_LINE_STAMP = re.compile(rb"^\[ {0,8}\d{1,9}\.\d{6}\]", re.MULTILINE)
_REASON = re.compile(
    rb"Oops\b|general protection fault|Internal error|[a-z][\w -]{2,40}: (?:0x)?[0-9a-f]{4,16} "
)
_STAMPED = re.compile(r"\[ *(\d+\.\d{6})\](?:\[ *[TC]\d+\])?")
_END = re.compile(r"---\[ end ")
_HAS_REASON = re.compile(rb"---\[ end |\[#\d")
"""The number of an oops, or its end: no other line can be its reason."""
_HEADS: dict[ReportKind, tuple[bytes, ...]] = {
    "OOM kill": (b" invoked oom-killer: ",),
    "oops": (b"------------[ cut here ]------------",),
    "warning": (b"------------[ cut here ]------------",),
}
"""Words of the line that a report of this kind can begin with, before its first words."""


@dataclass(frozen=True, kw_only=True)
class KernelReport:
    """One report of a guest's kernel, in the kernel's own words."""

    kind: ReportKind
    stamp: str
    """The time stamp of :attr:`line`, in seconds since the kernel's boot; "" if it prints none."""
    line: str
    """The line that names the problem, without its time stamp, cut to what a message can hold."""
    text: str
    """The whole report, clean and cut."""
    excuse: str = ""
    """Why this host is to blame and not the guest; "" if nothing says so."""

    @property
    def explained(self) -> str:
        """The text, and the excuse if there is one."""
        return f"{self.text}\n({self.excuse})" if self.excuse else self.text


@dataclass(frozen=True, kw_only=True)
class FoundReport:
    """A report, and where it stands in the text that was searched."""

    offset: int
    report: KernelReport
    is_complete: bool
    """Whether its end is in the text, too."""


@dataclass(frozen=True, kw_only=True)
class _Begin:
    offset: int
    kind: ReportKind
    stamp: str


def has_stamps(text: bytes) -> bool:
    """Say whether the kernel that printed a text begins its lines with time stamps."""
    return _LINE_STAMP.search(text) is not None


def find_reports(
    text: bytes, *, stamps: bool = False, former: KernelReport | None = None
) -> list[FoundReport]:
    """Return the reports in a text, in its order.

    Args:
        text: What a console showed, or the kernel's log with time stamps.
        stamps: Whether the kernel is known to print time stamps; else the text tells.
            From a kernel that prints none, a panic is all that is recognised.
        former: The last report before the text, which may go on there.
    """
    begins = list(_begins(text, stamps=stamps, former=former))
    found: list[FoundReport] = []
    ends = [*(begin.offset for begin in begins), len(text)][1:]
    before = 0
    for begin, end in zip(begins, ends, strict=True):
        lines, is_complete = _lines_from(text[begin.offset : min(end, begin.offset + _MOST_BYTES)], begin)
        head = _lines_before(text[max(before, begin.offset - _MOST_BEFORE) : begin.offset], begin)
        before = begin.offset
        report = KernelReport(
            kind=begin.kind,
            stamp=begin.stamp,
            line=_STAMPED.sub("", lines[0]).strip()[:300],
            text="\n".join([*head, *lines]),
        )
        found.append(
            FoundReport(offset=begin.offset, report=report, is_complete=is_complete or end < len(text))
        )
    return found


def _begins(text: bytes, *, stamps: bool, former: KernelReport | None) -> Iterator[_Begin]:
    """Yield where each report begins."""
    counts: Counter[ReportKind] = Counter()
    last = None if former is None or not former.stamp else (former.kind, float(former.stamp))
    is_open = former is not None and _HAS_REASON.search(former.text.encode()) is None
    """Whether a line can be the reason of the last report."""
    begin = 0
    for match in _BEGIN.finditer(text):
        group, words = next((name, match[name]) for name in _KIND_OF_GROUP if match[name] is not None)
        kind, stamp = _KIND_OF_GROUP[group], match["stamp"].decode()
        is_open = is_open and _HAS_REASON.search(text, begin, match.start()) is None
        begin = match.start()
        if (
            last is not None
            and is_open
            and _is_reason(kind, words, seconds_since=float(stamp) - last[1], of=last[0])
        ):
            continue
        is_open = True
        last = (kind, float(stamp))
        counts[kind] += 1
        if counts[kind] <= MOST_REPORTS:
            yield _Begin(offset=match.start(), kind=kind, stamp=stamp)
    if not stamps and not has_stamps(text) and (bare := _BARE_PANIC.search(text)) is not None:
        yield _Begin(offset=bare.start(), kind="panic", stamp="")


def _is_reason(kind: ReportKind, words: bytes, *, seconds_since: float, of: ReportKind) -> bool:
    """Say whether a line continues the former report: an oops names its cause first, then its number."""
    can_follow = kind == "oops" and of in {"oops", "sanitizer report"} and _REASON.match(words) is not None
    return can_follow and -_DISORDER <= seconds_since < _REASON_WITHIN


def _lines_from(text: bytes, begin: _Begin) -> tuple[list[str], bool]:
    """Return the lines of a report from its first words on, and whether its end was found."""
    first, *rest = _clean_lines(text)
    kept = [first.rstrip()]
    if begin.kind == "OOM kill":  # all else stands before the kill
        return kept, True
    for line in rest:
        seconds = _seconds_after(begin, line)
        if seconds is None:
            continue  # a program's, in between
        if not -_DISORDER <= seconds < _TOGETHER:
            return kept, True
        kept.append(line.rstrip())
        if _END.search(line) or len(kept) >= _MOST_LINES:
            return kept, True
    return kept, False


def _lines_before(text: bytes, begin: _Begin) -> list[str]:
    """Return the lines of a report that stand before its first words."""
    head = max((text.rfind(words) for words in _HEADS.get(begin.kind, ())), default=-1)
    if head < 0:
        return []
    # The last line may be the beginning of the report's own: a prompt, perhaps.
    lines = _clean_lines(text[text.rfind(b"\n", 0, head) + 1 : text.rfind(b"\n") + 1])
    offsets = [_seconds_after(begin, line) for line in lines]
    kept = [line.rstrip() for line, seconds in zip(lines, offsets, strict=True) if seconds is not None]
    if any(seconds is not None and not -_TOGETHER < seconds <= _DISORDER for seconds in offsets):
        return []  # another's head
    half = _MOST_LINES // 2
    return kept if len(kept) <= _MOST_LINES else [*kept[:half], "…", *kept[-half:]]


def _clean_lines(text: bytes) -> list[str]:
    return plain(text.decode("utf-8", "replace")).splitlines()


def _seconds_after(begin: _Begin, line: str) -> float | None:
    """Return how many seconds after a report's first words a line was printed; None: by a program."""
    if not begin.stamp:
        return 0.0
    stamped = _STAMPED.match(line)
    return None if stamped is None else float(stamped[1]) - float(begin.stamp)
