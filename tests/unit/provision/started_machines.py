"""Machines that look started, for tests that start none."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pytest_kvm.provision.events import Event
from pytest_kvm.provision.starter import Started
from tests.unit.provision.start_requests import START_REQUEST


def started(removed: list[str], *, is_on: bool = True) -> Started:
    """Return a guest that has booted cold."""
    domain = SimpleNamespace(alive=lambda: is_on, end_reason=lambda: "guest shutdown")
    machine: Any = SimpleNamespace(name="web", domain=domain, folder=Path("/nonexistent"))
    undo = ExitStack()
    undo.callback(removed.append, "former")
    boot = Event(guest="web", kind="boot", tier="cold", seconds=30.0)
    plan: Any = None  # a machine that is never switched on again
    return Started(
        machine=machine,
        request=START_REQUEST,
        plan=plan,
        template=None,
        base="kvm-base",
        undo=undo,
        events=(boot,),
    )


def future_of(started: Started) -> Future[Started]:
    future: Future[Started] = Future()
    future.set_result(started)
    return future
