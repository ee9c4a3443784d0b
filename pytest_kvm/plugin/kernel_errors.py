"""Fails a test, or warns, if the kernel of one of its guests reported an error while the test ran."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvm.errors import GuestUnhealthy, KernelErrorWarning
from pytest_kvm.plugin.declare import overrides_of
from pytest_kvm.plugin.report import guests_of, show_text_alone
from pytest_kvm.plugin.session import existing_run, settings_stashed

if TYPE_CHECKING:
    from pytest_kvm.provision.watched_kernels import GuestReport
    from pytest_kvm.settings import KernelPolicy

_SHOWN = 3
"""How many reports a failure shows with their whole text; of more, it shows the first lines."""
_RESOLUTION = (
    'a test allows what it expects by @pytest.mark.kvm(allow_kernel_errors=["…"]), a guest by the same field '
    'of its spec; kernel_errors="warn" and "ignore" allow everything'
)


def begin_test(item: pytest.Item) -> None:
    """Begin a test: what kernels have reported before is not its own."""
    run = existing_run(item.config)
    if run is not None:
        run.kernels.begin_test()


def note_guests(item: pytest.Item) -> None:
    """Note which guests a test has, at the end of its set-up."""
    run = existing_run(item.config)
    if run is not None:
        for guest in guests_of(item):
            run.kernels.note_test(guest)


def check_kernels(item: pytest.Item) -> None:
    """Check what kernels have reported since the test's set-up began, or since the last check.

    Raises:
        GuestUnhealthy: One has reported an error, which is not allowed.
    """
    run = existing_run(item.config)
    if run is None:
        return
    run.kernels.look(guests_of(item))
    warned: list[GuestReport] = []
    failing: list[GuestReport] = []
    for each in run.kernels.take():
        policy = _policy(item, each)
        if policy != "ignore":
            (failing if policy == "fail" else warned).append(each)
    try:
        _warn(item, warned)
    finally:  # warnings can be errors
        if failing:
            raise _unhealthy(failing, warned=warned)


@contextmanager
def checking_skips(item: pytest.Item) -> Generator[None]:
    """Check what kernels have reported if a test skips itself in the block; else it would be told nowhere.

    Raises:
        GuestUnhealthy: As :func:`check_kernels`.
    """
    try:
        yield
    except BaseException as outcome:
        if _is_skip(outcome):
            check_kernels(item)
        raise


def add_kernel_sections(item: pytest.Item, report: pytest.TestReport) -> None:
    """Show, after a test's own outcome, what kernels have reported meanwhile."""
    run = existing_run(item.config)
    if run is None:
        return
    run.kernels.look(guests_of(item))
    found = [each for each in run.kernels.take() if _policy(item, each) != "ignore"]
    for each in found[:_SHOWN]:
        _add_section(report, f"kernel of {each.guest}: {each.report.kind}", each.report.explained)
    if len(found) > _SHOWN:
        _add_section(report, "further kernel errors", "\n".join(map(_first_line, found[_SHOWN:])))


def show_replaced(error: GuestUnhealthy, *, report: pytest.TestReport, by: BaseException) -> None:
    """Show an error in the report of a test whose own outcome has taken its place.

    pytest does so for the methods of a ``unittest.TestCase``.
    """
    if _is_skip(by):
        report.outcome = "failed"
        show_text_alone(report, error)
    else:
        _add_section(report, "GuestUnhealthy", str(error))


def _is_skip(error: BaseException) -> bool:
    """Say whether a test has skipped itself, by pytest's way or by unittest's."""
    unittest = sys.modules.get("unittest")
    return isinstance(error, (pytest.skip.Exception, *([unittest.SkipTest] if unittest else ())))


def _add_section(report: pytest.TestReport, title: str, text: str) -> None:
    # As a part of the failure it is in JUnit's file, too; a failure that is a text can have none.
    add: Callable[[str, str], None] | None = getattr(report.longrepr, "addsection", None)
    if add is None:
        report.sections.append((title, text))
    else:
        add(title, text)


def _warn(item: pytest.Item, found: Sequence[GuestReport]) -> None:
    """Warn of reports; where warnings are errors, one that is this host's fault fails no test."""
    errors: list[KernelErrorWarning] = []
    for each in found:
        warning = KernelErrorWarning(f"{_first_line(each)}\n{each.report.explained}")
        try:
            item.warn(warning)
        except KernelErrorWarning as error:
            if not each.report.excuse:
                errors.append(error)
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("always", KernelErrorWarning)
                item.warn(warning)
    if errors:
        raise KernelErrorWarning("\n".join(map(str, errors)))


def _unhealthy(failing: Sequence[GuestReport], *, warned: Sequence[GuestReport]) -> GuestUnhealthy:
    texts = [f"{each.guest}, {each.report.kind}:\n{each.report.explained}" for each in failing[:_SHOWN]]
    texts += map(_first_line, [*failing[_SHOWN:], *warned])
    more = f" (and {len(failing) - 1} more)" if len(failing) > 1 else ""
    return GuestUnhealthy(
        f"{_first_line(failing[0])}{more}", details="\n".join(texts), resolution=_RESOLUTION
    )


def _first_line(found: GuestReport) -> str:
    return f"{found.guest}: {found.report.kind} in its kernel: {found.report.line}"


def _policy(item: pytest.Item, found: GuestReport) -> KernelPolicy:
    """Return what becomes of a test: the marker comes before the spec, the spec before the options."""
    marker: dict[str, Any] = overrides_of(item)
    settings, spec, report = settings_stashed(item.config), found.spec, found.report
    allowed = [
        *marker.get("allow_kernel_errors", ()),
        *spec.allow_kernel_errors,
        *settings.allow_kernel_errors,
    ]
    if any(re.search(pattern, report.text) for pattern in allowed):
        return "ignore"
    field = "kernel_warnings" if report.kind == "warning" else "kernel_errors"
    policy: KernelPolicy = marker.get(field) or getattr(spec, field) or getattr(settings, field)
    return "warn" if policy == "fail" and report.excuse else policy
