"""What the plugin adds to pytest's report: header lines, consoles of failed tests, short tracebacks.

The plugin's errors explain themselves, so their tracebacks are shown without
the plugin's own frames. ``--full-trace`` shows all frames, as it does for
pytest's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

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


def console_sections(item: pytest.Item) -> list[tuple[str, str]]:
    """Return sections with the end of each guest's console."""
    tails = [(guest.name, guest.console_tail(CONSOLE_LINES)) for guest in guests_of(item)]
    return [(f"console of {name}, last {CONSOLE_LINES} lines", tail) for name, tail in tails if tail]


def fault_sections(item: pytest.Item) -> list[tuple[str, str]]:
    """Return a section with the faults of segments that the test has met, if there are any."""
    run = existing_run(item.config)
    faults = [] if run is None else run.faults.at_work()
    if run is None or not faults:
        return []
    seed = f" (--kvm-seed={run.faults.seed} repeats their random choices)"
    title = "faults of segments" + (seed if any(each.is_random for each in faults) else "")
    lines = list(map(str, faults[-FAULTS:]))
    if len(faults) > FAULTS:
        lines.insert(0, f"… {len(faults) - FAULTS} before")
    return [(title, "\n".join(lines))]


def is_skip(error: BaseException) -> bool:
    """Say whether a test has skipped itself, by pytest's way or by unittest's."""
    unittest = sys.modules.get("unittest")
    return isinstance(error, (pytest.skip.Exception, *([unittest.SkipTest] if unittest else ())))


def is_expected(item: pytest.Item, error: BaseException) -> bool:
    """Say whether a test is expected to fail by an error.

    pytest tells when the report is made. Conditions that are texts are taken to hold.
    """
    if isinstance(error, pytest.xfail.Exception):
        return True
    if item.config.getoption("runxfail", default=False):
        return False
    for marker in item.iter_markers("xfail"):
        conditions = [*marker.args, *([marker.kwargs["condition"]] if "condition" in marker.kwargs else [])]
        raises: Any = marker.kwargs.get("raises") or BaseException
        if (any(conditions) or not conditions) and isinstance(error, raises):
            return True
    return False


def add_to_failure(report: pytest.TestReport, *, title: str, text: str) -> None:
    """Add a section to what a report tells of a failure, so that JUnit's file has it, too."""
    add: Callable[[str, str], None] | None = getattr(report.longrepr, "addsection", None)
    if add is None:  # it is a text
        report.sections.append((title, text))
    else:
        add(title, text)


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
