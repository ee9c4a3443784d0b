"""Fails a test, or warns, if something went wrong in one of its guests: in its kernel, or by its gates."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Container, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvm.at_once import do_at_once
from pytest_kvm.errors import GuestUnhealthy, KernelErrorWarning
from pytest_kvm.plugin.declare import overrides_of
from pytest_kvm.plugin.report import add_to_failure, guests_of, is_skip, show_text_alone
from pytest_kvm.plugin.session import existing_run, settings_stashed

if TYPE_CHECKING:
    from pytest_kvm.machine.breaches import Breach
    from pytest_kvm.provision.watched_kernels import GuestReport
    from pytest_kvm.settings import KernelPolicy
    from pytest_kvm.spec.gates import Gates

_SHOWN = 3
"""How many reports a failure shows with their whole text; of more, it shows the first lines."""
_RESOLUTION = (
    'a test allows what it expects by @pytest.mark.kvm(allow_kernel_errors=["…"]), a guest by the same field '
    'of its spec; kernel_errors="warn" and "ignore" allow everything'
)
_GATES_RESOLUTION = (
    'what a test expects is allowed beside the gate: kvm.Gates(journal="err", allow_journal=["…"])'
)
_BEGAN = pytest.StashKey[float]()
"""When a test began, by the monotonic clock; it is gone once its gates were looked at."""
_SHOWN_LINES = 40
"""How many lines of a gate a failure shows."""


def begin_test(item: pytest.Item) -> None:
    """Begin a test: what has gone wrong before is not its own."""
    item.stash[_BEGAN] = time.monotonic()
    run = existing_run(item.config)
    if run is not None:
        run.kernels.begin_test()


def note_guests(item: pytest.Item) -> None:
    """Note which guests a test has, at the end of its set-up."""
    run = existing_run(item.config)
    if run is not None:
        for guest in guests_of(item):
            run.kernels.note_test(guest)


def check_guests(item: pytest.Item, *, gates: bool) -> None:
    """Check what has gone wrong in guests since the test's set-up began, or since the last check.

    Args:
        item: The test.
        gates: Whether to look at gates, too, as is done after the test's call.

    Raises:
        GuestUnhealthy: A guest has shown something that is not allowed.
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
        found = _look_at_gates(item) if gates else []
        if failing or found:
            raise _unhealthy(failing, warned=warned, found=found)


@contextmanager
def checking_skips(item: pytest.Item, *, gates: bool) -> Generator[None]:
    """Check what has gone wrong if a test skips itself in the block; else it would be told nowhere.

    Raises:
        GuestUnhealthy: As :func:`check_guests`.
    """
    try:
        yield
    except BaseException as outcome:
        if is_skip(outcome):
            check_guests(item, gates=gates)
        raise


def add_health_sections(item: pytest.Item, report: pytest.TestReport, *, silent: Container[str]) -> None:
    """Show, after a test's own outcome, what has gone wrong in guests meanwhile.

    Args:
        item: The test.
        report: Its report.
        silent: Names of guests that are known not to answer.
    """
    run = existing_run(item.config)
    if run is None:
        return
    run.kernels.look(guests_of(item))
    found = [each for each in run.kernels.take() if _policy(item, each) != "ignore"]
    for each in found[:_SHOWN]:
        add_to_failure(
            report, title=f"kernel of {each.guest}: {each.report.kind}", text=each.report.explained
        )
    if len(found) > _SHOWN:
        add_to_failure(
            report, title="further kernel errors", text="\n".join(map(_first_line, found[_SHOWN:]))
        )
    if report.when == "call" and report.failed:
        for breach in _look_at_gates(item, silent=silent):
            add_to_failure(report, title=f"{breach.guest}: {breach.what}", text=_lines_of(breach))


def _look_at_gates(item: pytest.Item, *, silent: Container[str] = ()) -> list[Breach]:
    """Return what the test's guests show though their gates forbid it, the first time it is asked for."""
    run = existing_run(item.config)
    began = item.stash.get(_BEGAN, None)
    if run is None or began is None:
        return []
    del item.stash[_BEGAN]
    from pytest_kvm.machine.breaches import find_breaches  # noqa: PLC0415 - few tests have gates

    marker: dict[str, Any] = overrides_of(item)
    looks: list[partial[list[Breach]]] = []
    for guest in run.kernels.that_can_answer():
        gates: Gates = marker.get("gates", guest.spec.gates)
        if gates.is_any_on and guest.machine.name not in silent:
            since = max(began, guest.machine.kernel.begun_at or 0.0)
            looks.append(partial(find_breaches, guest.machine, gates, since=since))
    return [breach for found in do_at_once(looks) for breach in found]


def show_replaced(error: GuestUnhealthy, *, report: pytest.TestReport, by: BaseException) -> None:
    """Show an error in the report of a test whose own outcome has taken its place.

    pytest does so for the methods of a ``unittest.TestCase``.
    """
    if is_skip(by):
        report.outcome = "failed"
        show_text_alone(report, error)
    else:
        add_to_failure(report, title="GuestUnhealthy", text=str(error))


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


def _unhealthy(
    failing: Sequence[GuestReport], *, warned: Sequence[GuestReport], found: Sequence[Breach]
) -> GuestUnhealthy:
    texts = [f"{each.guest}, {each.report.kind}:\n{each.report.explained}" for each in failing[:_SHOWN]]
    texts += map(_first_line, [*failing[_SHOWN:], *warned])
    texts += [f"{each.guest}, {each.what}:\n{_lines_of(each)}" for each in found]
    first, *others = [*map(_first_line, failing), *map(_first_breach, found)]
    more = f" (and {len(others)} more)" if others else ""
    can_be_allowed = any(each.can_be_allowed for each in found)
    resolutions = [_RESOLUTION] * bool(failing) + [_GATES_RESOLUTION] * can_be_allowed
    return GuestUnhealthy(f"{first}{more}", details="\n".join(texts), resolution="; ".join(resolutions))


def _first_breach(found: Breach) -> str:
    line, *_ = found.lines[0].split("\n")
    return f"{found.guest}: {found.what}: {line}"


def _lines_of(found: Breach) -> str:
    left_out = len(found.lines) - _SHOWN_LINES
    return "\n".join([*found.lines[:_SHOWN_LINES], *([f"… and {left_out} more"] if left_out > 0 else [])])


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
