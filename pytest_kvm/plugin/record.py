"""Passes the events of each test on: as JUnit properties, and in its report for the run's summary."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from pytest_kvm.provision.events import STARTS, Event, EventListener, ignore

if TYPE_CHECKING:
    import pytest

EVENTS = "kvm_events"
"""Attribute of a test report that holds its events as plain values, which xdist can transfer."""


class Record:
    """Collects the events of this process until they are added to a test's report.

    Args:
        pass_on: Gets each event as well.
    """

    def __init__(self, pass_on: EventListener = ignore) -> None:
        self._pass_on = pass_on
        self._lock = threading.Lock()
        self._fresh: list[Event] = []
        self._starts: dict[str, list[Event]] = {}

    def tell(self, event: Event) -> None:
        """Collect an event; may be called from any thread."""
        with self._lock:
            self._fresh.append(event)
            if event.kind in STARTS:
                self._note_start(event)
        self._pass_on(event)

    def add_properties(self, item: pytest.Item, guests: Iterable[str]) -> list[Event]:
        """Add to a test's properties the events since this was last called.

        Args:
            item: The test.
            guests: Names of the guests that the test has now. How each of them was
                started is added once for each test, also if it was started for another.

        Returns:
            The events, in order.
        """
        with self._lock:
            fresh, self._fresh = self._fresh, []
            starts = {name: self._starts[name] for name in guests if name in self._starts}
        said = {name for name, _ in item.user_properties}
        for name, events in starts.items():
            if (key := f"kvm_guest_{name}") not in said:
                item.user_properties.append((key, ", ".join(map(event_text, events))))
        for event in fresh:
            if event.kind in ("reset", "savepoint", "reboot"):
                item.user_properties.append((f"kvm_{event.kind}_{event.guest}", event_text(event)))
        return fresh

    def _note_start(self, event: Event) -> None:
        """Keep how a guest was started: what was done for it, from its template's boot to its clone."""
        before = self._starts.get(event.guest, [])
        goes_on = bool(before) and before[-1].for_template
        self._starts[event.guest] = [*before, event] if goes_on else [event]


def attach(report: pytest.TestReport, events: list[Event]) -> None:
    """Put events into a report, which brings them to the summary, also from an xdist worker."""
    setattr(report, EVENTS, [asdict(event) for event in events])


def events_of(report: pytest.TestReport) -> list[Event]:
    """Return the events that a report holds."""
    return [Event(**fields) for fields in getattr(report, EVENTS, ())]


def event_text(event: Event) -> str:
    """Return an event as people read it, without the guest's name."""
    words = [
        event.kind if event.kind in STARTS else "",
        event.tier or "",
        f"{event.seconds:.2f} s",
    ]
    return " ".join(filter(None, words)) + (f" ({event.why})" if event.why else "")
