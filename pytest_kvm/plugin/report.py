"""What the plugin adds to pytest's report: header lines, consoles of failed tests, short tracebacks.

The plugin's errors explain themselves, so their tracebacks are shown without
the plugin's own frames. ``--full-trace`` shows all frames, as it does for
pytest's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, cast

import pytest

from pytest_kvm.errors import (
    BootFailed,
    HostError,
    HypervisorError,
    ImageError,
    KvmError,
    SavepointGone,
    SavepointRefused,
)
from pytest_kvm.plugin.fixtures import Guests
from pytest_kvm.plugin.session import existing_run, settings_stashed

if TYPE_CHECKING:
    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.settings import Settings

CONSOLE_LINES = 40
FAULTS = 40
"""How many faults a report shows, the newest."""


def header_lines(config: pytest.Config) -> list[str]:
    """Return lines that name this run's accelerator (and why), libvirt connection, image and cache folder."""
    settings = settings_stashed(config)
    return [
        f"kvm: accelerator {_accelerator(config, settings)}",
        f"kvm: uri {settings.uri}, image {settings.default_image}, cache {settings.cache_dir}",
    ]


def _accelerator(config: pytest.Config, settings: Settings) -> str:
    if config.option.collectonly or config.getoption("setupplan", default=False):
        return f"{settings.accel} (not probed: no guest will start)"
    from pytest_kvm.host.accelerator import choose_accelerator  # noqa: PLC0415 - loads subprocess and more

    try:
        chosen = choose_accelerator(settings.accel, cache_dir=settings.cache_dir)
    except HostError as error:
        return f"none: {error.brief}"
    return f"{chosen.kind} ({chosen.reason})"


def guests_of(item: pytest.Item) -> list[Guest]:
    """Return the run's guests that a test has by any of its fixtures."""
    run = existing_run(item.config)
    if run is None:
        return []
    fixtures: dict[str, object] = getattr(item, "funcargs", None) or {}
    held: list[Guest] = []
    for value in fixtures.values():
        if isinstance(value, Guests):
            held += value.started
        elif run.holds(value):
            held.append(value)
    return held


def add_sections(item: pytest.Item, report: pytest.TestReport) -> None:
    """Put the end of each guest's console, and the faults of segments, into the report of a failed test."""
    for guest in guests_of(item):
        tail = guest.console_tail(CONSOLE_LINES)
        if tail:
            report.sections.append((f"console of {guest.name}, last {CONSOLE_LINES} lines", tail))
    run = existing_run(item.config)
    faults = [] if run is None else run.faults.at_work()
    if run is not None and faults:
        seed = f" (--kvm-seed={run.faults.seed} repeats their random choices)"
        title = "faults of segments" + (seed if any(each.is_random for each in faults) else "")
        lines = list(map(str, faults[-FAULTS:]))
        if len(faults) > FAULTS:
            lines.insert(0, f"… {len(faults) - FAULTS} before")
        report.sections.append((title, "\n".join(lines)))


def is_infrastructure(error: BaseException) -> bool:
    """Say whether an exception means that a guest could not be started or reset, not that a test failed."""
    if isinstance(error, (SavepointGone, SavepointRefused)):
        return False  # a mistake of the test: it asked for a savepoint that is not possible
    return isinstance(error, (BootFailed, HostError, HypervisorError, ImageError))


_MACHINERY = {"_pytest", "concurrent", "contextlib", "pluggy", "pytest_kvm", "tenacity", "threading"}


def shorten_traceback(call: pytest.CallInfo[None]) -> bool:
    """Leave only frames of the user's own code in an error of the plugin; say whether there are none."""
    error = None if call.excinfo is None else call.excinfo.value
    if not isinstance(error, KvmError):
        return False
    shortened: TracebackType | None = None
    for entry in reversed(list(_users_entries(error.__traceback__))):
        shortened = TracebackType(shortened, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    if shortened is None:
        return True
    # The text of the error says what caused it.
    error.__suppress_context__, error.__cause__ = True, None
    call.excinfo = pytest.ExceptionInfo[BaseException].from_exception(error.with_traceback(shortened))
    return False


def show_text_alone(report: pytest.TestReport, error: BaseException) -> None:
    """Have the report of a failure show an error without any frame."""
    told = cast("BaseException", pytest.fail.Exception(f"{type(error).__name__}: {error}", pytrace=False))
    told.__traceback__ = error.__traceback__
    report.longrepr = pytest.ExceptionInfo[BaseException].from_exception(told).getrepr(style="value")


def _users_entries(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in _MACHINERY:
            yield traceback
        traceback = traceback.tb_next
