"""Explains a test's failure by its guests: which do not answer, and what else has gone wrong in them."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from pytest_kvm.at_once import outcomes_at_once
from pytest_kvm.errors import AgentError, CommandTimeout, KvmError, SshUnavailable, WaitTimeout
from pytest_kvm.plugin.health import add_health_sections
from pytest_kvm.plugin.report import add_to_failure, console_sections, fault_sections, guests_of, is_skip
from pytest_kvm.plugin.session import existing_run

if TYPE_CHECKING:
    from pytest_kvm.machine.vitals import Trouble

_log = logging.getLogger("pytest_kvm.explanation")
_DUMPED = pytest.StashKey[set[str]]()
"""Guests whose kernels have dumped their tasks for a test."""
_TIMEOUTS = (AgentError, CommandTimeout, SshUnavailable, WaitTimeout)


def forget_dumps(item: pytest.Item) -> None:
    """Let kernels dump their tasks anew, for a test that begins, also for the second time."""
    item.stash[_DUMPED] = set()


class Explanation:
    """What the report of a test's phase tells of its guests.

    Nothing that goes wrong here takes the place of the test's own failure.

    Args:
        item: The test.
    """

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._has_looked = False
        self._consoles: list[tuple[str, str]] = []
        self._troubles: list[Trouble] = []
        self._lapses: list[str] = []

    def look_before_report(self, failure: BaseException | None) -> None:
        """Look at the guests after a failure that nobody expects; an error of our own tells what is found."""
        is_expected = isinstance(failure, pytest.xfail.Exception) or self._item.get_closest_marker("xfail")
        if failure is None or is_expected or is_skip(failure):
            return
        self._look()
        if isinstance(failure, KvmError):
            failure.set_facts([_fact(each) for each in self._troubles if _may_explain(each, failure)])

    def show(self, report: pytest.TestReport) -> None:
        """Add what is known of the guests to a report that is no success."""
        if report.failed and not self._has_looked:
            self._look()
        shown = report.longreprtext
        for each in self._troubles:
            if each.details or f"; {_fact(each)}" not in shown:
                add_to_failure(report, title=each.guest, text=f"{_fact(each)}\n{each.details}".rstrip())
        with self._noting_lapses():
            silent = [each.guest for each in self._troubles if not each.sshd_answers]
            add_health_sections(self._item, report, silent=silent)
        if report.failed:
            report.sections += [*self._consoles, *fault_sections(self._item)]
        report.sections += [("pytest-kvm could not find out everything", lapse) for lapse in self._lapses]

    def _look(self) -> None:
        self._has_looked = True
        with self._noting_lapses():
            # First of all, because a kernel that is asked what it is at prints that on its console.
            self._consoles = console_sections(self._item)
            self._find_troubles()

    def _find_troubles(self) -> None:
        run = existing_run(self._item.config)
        ready = [] if run is None else run.kernels.that_are_ready(guests_of(self._item))
        if not ready:
            return
        from pytest_kvm.machine.vitals import find_trouble  # noqa: PLC0415 - loads psutil

        _stop_timer(self._item)
        dumped = self._item.stash[_DUMPED]
        looks = [partial(find_trouble, machine, can_dump=machine.name not in dumped) for machine, _ in ready]
        for outcome in outcomes_at_once(looks):
            if isinstance(outcome, Exception):
                self._note_lapse(outcome)
            elif outcome is not None:
                self._troubles.append(outcome)
        dumped.update(each.guest for each in self._troubles if each.was_dumped)

    @contextmanager
    def _noting_lapses(self) -> Generator[None]:
        try:
            yield
        except Exception as lapse:  # noqa: BLE001 - pytest ends its session if a hook raises
            self._note_lapse(lapse)

    def _note_lapse(self, lapse: Exception) -> None:
        _log.error("the report of %s is not complete", self._item.nodeid, exc_info=lapse)
        self._lapses.append("".join(traceback.format_exception(lapse)))


def _fact(trouble: Trouble) -> str:
    return f"{trouble.guest} {trouble.what}"


def _may_explain(trouble: Trouble, failure: KvmError) -> bool:
    """Say whether a trouble may be the cause of a failure, and the failure does not tell it by itself."""
    return not trouble.has_ended and (not trouble.sshd_answers or isinstance(failure, _TIMEOUTS))


def _stop_timer(item: pytest.Item) -> None:
    """Stop the timer of pytest-timeout, as it does itself a moment later, after each failure.

    It would raise its exception while guests are looked at, where nobody catches it.
    """
    cancel = getattr(item.config.hook, "pytest_timeout_cancel_timer", None)
    if cancel is not None:
        cancel(item=item)
