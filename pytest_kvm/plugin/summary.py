"""The summary of a run: accelerator and image, how guests were started and reset, and how long it took."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_kvm.errors import KvmError
from pytest_kvm.plugin.collection import uses_guests
from pytest_kvm.plugin.record import event_text, events_of
from pytest_kvm.plugin.report import header_lines
from pytest_kvm.provision.events import STARTS, WORDS

if TYPE_CHECKING:
    import pytest

    from pytest_kvm.provision.events import Event, Kind
    from pytest_kvm.settings import Settings

_MIB = 1024**2
_TITLE = "guests (pytest-kvm)"
_SAYING_WHY: tuple[Kind, ...] = ("image", "failure", "forming", *STARTS)
"""Kinds whose reasons are shown; a guest has few events of these kinds."""


@dataclass(frozen=True, kw_only=True)
class _Told:
    """An event, with the test and the process of the report that carried it."""

    event: Event
    worker: str
    """xdist's name of the process, empty without xdist."""
    test: str


class Summary:
    """A pytest plugin of the process that reports: sums up the events in all tests' reports.

    In a run without guests it writes nothing, and does not look at the host.

    Args:
        config: The run's configuration.
        settings: The run's settings.
    """

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self._config = config
        self._settings = settings
        self._introduced = False
        self._began = time.time()
        self._told: list[_Told] = []

    def pytest_report_collectionfinish(self, items: Sequence[pytest.Item]) -> list[str]:
        """Return the header lines (accelerator, connection, image, cache) if a test uses a guest."""
        if self._config.get_verbosity() < 0 or not any(map(uses_guests, items)):
            return []
        self._introduced = True
        return header_lines(self._config)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect a report's events."""
        worker = str(getattr(report, "worker_id", ""))
        self._told += [_Told(event=event, worker=worker, test=report.nodeid) for event in events_of(report)]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write the summary line; before it, with ``-v`` lines per guest, with ``-vv`` a line per event."""
        verbosity = terminalreporter.verbosity
        if verbosity < 0 or not self._told:
            return
        if not self._introduced:  # xdist's workers collect, and this process does not
            for line in header_lines(self._config):
                terminalreporter.write_line(line)
        if verbosity > 0:
            terminalreporter.write_sep("=", _TITLE)
            for line in self._details() if verbosity == 1 else self._everything():
                terminalreporter.write_line(line)
        terminalreporter.write_line("kvm: " + ", ".join(self._parts()))
        if left_alone := self._left_alone():
            terminalreporter.write_line(f"kvm: not made by pytest-kvm and left alone: {left_alone}")

    def _parts(self) -> Iterable[str]:
        events = [each.event for each in self._told]
        started = sum(event.kind in STARTS and not event.for_template for event in events)
        yield _count(started, "guest")
        for kind, what in WORDS.items():
            yield from _count_and_median([each for each in events if each.kind == kind], what)
        yield from self._cache()

    def _cache(self) -> Iterable[str]:
        """Yield number and size of the templates that this run used, or why they cannot be read."""
        if self._settings.cache == "off":
            return
        from pytest_kvm.boot_cache.inventory import Inventory  # noqa: PLC0415 - only runs with guests pay for it

        try:
            used = [each for each in Inventory.of(self._settings).list() if each.last_used >= self._began]
        except (KvmError, OSError) as failure:
            yield failure.brief if isinstance(failure, KvmError) else f"the boot cache fails: {failure}"
            return
        if used:
            size = sum(each.size for each in used) / _MIB
            yield f"{_count(len(used), 'cache entry', 'cache entries')} {size:.0f} MiB"

    def _left_alone(self) -> str:
        from pytest_kvm.provision.unowned_files import foreign_files_text  # noqa: PLC0415 - as above

        return foreign_files_text(self._settings)

    def _details(self) -> Iterable[str]:
        """Yield a line for each guest, kind of event and tier."""
        groups: dict[tuple[str, str, Kind, str | None, str], list[Event]] = defaultdict(list)
        for each in self._told:
            event = each.event
            why = event.why if event.kind in _SAYING_WHY else ""
            groups[each.worker, event.guest, event.kind, event.tier, why].append(event)
        for (worker, guest, kind, tier, why), events in groups.items():
            (timed,) = _count_and_median(events, f"{tier} {kind}" if tier else WORDS[kind])
            reason = f" ({why})" if why else ""
            yield f"{_place(worker, guest)}: {timed}{reason}"

    def _everything(self) -> Iterable[str]:
        for each in self._told:
            event = each.event
            kind = "" if event.kind in STARTS else f"{WORDS[event.kind]} "
            yield f"{_place(each.worker, event.guest)}: {kind}{event_text(event)} in {each.test}"


def _place(worker: str, guest: str) -> str:
    return f"[{worker}] {guest}" if worker else guest


def _count_and_median(events: list[Event], what: str) -> Iterable[str]:
    """Yield the number of events and their median duration; nothing if there are none."""
    if events:
        seconds = statistics.median(event.seconds for event in events)
        median = "" if len(events) == 1 else "median "
        digits = 1 if seconds >= 10 else 2
        yield f"{_count(len(events), what)} {median}{seconds:.{digits}f} s"


def _count(number: int, what: str, several: str = "") -> str:
    return f"{number} {what if number == 1 else several or what + 's'}"
