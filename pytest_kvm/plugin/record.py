"""What happened to the guests of each test: JUnit properties, and data for the run's summary."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from pytest_kvm.provision.events import Event, Listener, ignore

if TYPE_CHECKING:
    import pytest

EVENTS = "kvm_events"
"""Attribute of a test report: its events as plain values, which xdist can pass on."""


class Record:
    """Collects the events of this process until a test's report takes them along.

    Args:
        pass_on: Is told of each as well.
    """

    def __init__(self, pass_on: Listener = ignore) -> None:
        self._pass_on = pass_on
        self._lock = threading.Lock()
        self._fresh: list[Event] = []
        self._starts: dict[str, list[Event]] = {}

    def tell(self, event: Event) -> None:
        """Take note of an event; called from any thread."""
        with self._lock:
            self._fresh.append(event)
            if event.kind in ("boot", "clone"):
                self._note_start(event)
        self._pass_on(event)

    def add_properties(self, item: pytest.Item, guests: Iterable[str]) -> list[Event]:
        """Add to a test's properties what happened since this was last called.

        Args:
            item: The test.
            guests: Names of those it holds now: how each was started is said
                once a test, whichever test it was started for.

        Returns:
            What happened, in order.
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
        """Keep how a guest was started: cold, from a template, or from one that was booted for it."""
        before = self._starts.get(event.guest, [])
        belongs = event.kind == "clone" and [each.kind for each in before] == ["boot"]
        self._starts[event.guest] = [*before, event] if belongs else [event]


def attach(report: pytest.TestReport, events: list[Event]) -> None:
    """Let a report carry events to whoever sums them up, through xdist as well."""
    setattr(report, EVENTS, [asdict(event) for event in events])


def events_of(report: pytest.TestReport) -> list[Event]:
    """Return the events a report carries."""
    return [Event(**fields) for fields in getattr(report, EVENTS, ())]


def event_text(event: Event) -> str:
    """Return an event as people read it, without the guest's name."""
    words = [
        event.kind if event.kind in ("boot", "clone") else "",
        event.tier or "",
        f"{event.seconds:.2f} s",
    ]
    return " ".join(filter(None, words)) + (f" ({event.why})" if event.why else "")
