"""Explains a test's failure by its guests: whether they answer, and what they can tell."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from pytest_kvm.at_once import outcomes_at_once
from pytest_kvm.errors import AgentError, CommandTimeout, KvmError, SshUnavailable, WaitTimeout
from pytest_kvm.plugin.artifacts import artifacts_of, begin_artifacts
from pytest_kvm.plugin.health import add_health_sections
from pytest_kvm.plugin.report import (
    add_to_failure,
    console_sections,
    fault_sections,
    guests_of,
    is_expected,
    is_skip,
)
from pytest_kvm.plugin.session import existing_run
from pytest_kvm.plugin.timeouts import holding_timeout

if TYPE_CHECKING:
    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.machine.evidence import Evidence
    from pytest_kvm.machine.machine import Machine
    from pytest_kvm.machine.vitals import Trouble
    from pytest_kvm.provision.run import Run
    from pytest_kvm.provision.watched_kernels import ReadyGuest

_log = logging.getLogger("pytest_kvm.explanation")
_DUMPED = pytest.StashKey[set[str]]()
"""Guests whose kernels have dumped their tasks for a test."""
_PHASE = pytest.StashKey[tuple[pytest.Item, str]]()
"""The test whose fixtures are set up or torn down, and which of the two."""
_EARLY = pytest.StashKey["Explanation"]()
"""Of a failure that was looked at before its phase of the test is over."""
_OTHERS = pytest.StashKey["Collection[Guest]"]()
"""Guests of the fixture whose set-up has failed."""
_TIMEOUTS = (AgentError, CommandTimeout, SshUnavailable, WaitTimeout)


def begin_explanations(item: pytest.Item) -> None:
    """Begin with a test, also for the second time: guests are looked at and asked anew."""
    item.stash[_DUMPED] = set()
    item.stash[_OTHERS] = ()
    begin_artifacts(item)


@contextmanager
def explaining_teardowns(item: pytest.Item, *, when: str) -> Generator[None]:
    """Explain the teardown of a fixture that fails in the block, this phase of the test, by its guests."""
    item.config.stash[_PHASE] = (item, when)
    try:
        yield
    finally:
        del item.config.stash[_PHASE]


def note_failed_fixture(config: pytest.Config, guests: Collection[Guest]) -> None:
    """Note the guests that a fixture has whose set-up has failed: the test does not have it."""
    item, _ = config.stash.get(_PHASE, (None, ""))
    if item is not None:
        item.stash[_OTHERS] = {*item.stash[_OTHERS], *guests}


def explain_at_once(failure: BaseException, *, config: pytest.Config, guests: Collection[Guest]) -> None:
    """Look at the guests as soon as a fixture's teardown has failed; the report shows it later.

    Only the first one that fails is explained.

    Args:
        failure: How it fails.
        config: The session's configuration.
        guests: The guests that the fixture has, if the test does not have them.
    """
    item, when = config.stash.get(_PHASE, (None, ""))
    if item is not None and _EARLY not in item.stash:
        explanation = Explanation(item, when=when, guests=guests)
        explanation.look_before_report(failure)
        if explanation.has_looked:
            item.stash[_EARLY] = explanation


def explanation_of(item: pytest.Item, *, when: str) -> Explanation:
    """Return the explanation of a phase of a test that is over."""
    early = item.stash.get(_EARLY, None)
    if early is None:
        guests = item.stash.get(_OTHERS, ()) if when == "setup" else ()
        return Explanation(item, when=when, guests=guests)
    del item.stash[_EARLY]
    return early


class Explanation:
    """What the report of a test's phase tells of its guests.

    Nothing that goes wrong here takes the place of the test's own failure.

    Args:
        item: The test.
        when: The phase: ``setup``, ``call`` or ``teardown``.
        guests: Further guests to look at.
    """

    def __init__(self, item: pytest.Item, *, when: str, guests: Collection[Guest] = ()) -> None:
        self.has_looked = False
        self._item = item
        self._when = when
        self._others = guests
        self._artifacts = artifacts_of(item)
        self._dumped = item.stash.setdefault(_DUMPED, set[str]())
        self._has_failed = False
        self._failure: BaseException | None = None
        self._consoles: list[tuple[str, str]] = []
        self._troubles: list[Trouble] = []
        self._lapses: list[str] = []

    def look_before_report(self, failure: BaseException | None) -> None:
        """Look at the guests after a failure that nobody expects; an error of our own tells what is found."""
        self._has_failed = not (failure is None or is_skip(failure) or is_expected(self._item, failure))
        self._failure = failure
        if not self.has_looked and (self._has_failed or self._is_kept):
            self._look()
        if self._has_failed and isinstance(failure, KvmError):
            failure.set_facts([_fact(each) for each in self._troubles if _may_explain(each, failure)])

    def show(self, report: pytest.TestReport) -> None:
        """Add what is known of the guests to a report that is no success."""
        if report.failed:
            self._has_failed = True
            if not self.has_looked:
                self._look()
            self._show_troubles(report)
        with self._noting_lapses():
            silent = [each.guest for each in self._troubles if not each.sshd_answers]
            add_health_sections(self._item, report, silent=silent)
        if report.failed:
            report.sections += [*self._consoles, *fault_sections(self._item)]
        self.keep(report)

    def keep(self, report: pytest.TestReport) -> None:
        """Keep what there is to keep, and say so in the report."""
        with self._noting_lapses():
            self._artifacts.finish(report)
        report.sections += [("pytest-kvm could not find out everything", lapse) for lapse in self._lapses]

    @property
    def _is_kept(self) -> bool:
        return self._artifacts.is_wanted(failed=self._has_failed, when=self._when)

    def _show_troubles(self, report: pytest.TestReport) -> None:
        shown = report.longreprtext
        for each in self._troubles:
            if each.details or f"; {_fact(each)}" not in shown:
                add_to_failure(report, title=each.guest, text=f"{_fact(each)}\n{each.details}".rstrip())

    def _look(self) -> None:
        self.has_looked = True
        with self._noting_lapses():
            # First of all, because a kernel that is asked what it is at prints that on its console.
            self._consoles = console_sections(self._item)
        run = existing_run(self._item.config)
        if run is not None:
            with self._noting_lapses():
                self._adopt_failed_boots(run)
            with self._noting_lapses():
                self._find_troubles(run)

    @property
    def _guests(self) -> list[Guest]:
        return [*guests_of(self._item), *self._others]

    def _adopt_failed_boots(self, run: Run) -> None:
        """Keep what machines could tell that did not become ready; errors say where it is."""
        if not self._is_kept:
            return
        failures = [*run.kernels.boot_failures(self._guests), *([self._failure] if self._failure else [])]
        errors = [error for failure in failures for error in _chain(failure) if isinstance(error, KvmError)]
        boots = [boot for boot in dict.fromkeys(error.kept for error in errors) if boot is not None]
        if boots:
            with holding_timeout(self._item, can_cancel=self._has_failed):
                for boot in boots:
                    self._artifacts.adopt(boot, when=self._when)

    def _find_troubles(self, run: Run) -> None:
        ready = run.kernels.that_are_ready(self._guests)
        if not ready:
            return
        looks = [partial(self._look_at, each.machine, self._evidence_of(each)) for each in ready]
        with holding_timeout(self._item, can_cancel=self._has_failed):
            outcomes = outcomes_at_once(looks)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                self._note_lapse(outcome)
            elif outcome is not None:
                self._troubles.append(outcome)
        self._dumped.update(each.guest for each in self._troubles if each.was_dumped)

    def _evidence_of(self, guest: ReadyGuest) -> Evidence | None:
        return self._artifacts.evidence_of(guest, when=self._when) if self._is_kept else None

    def _look_at(self, machine: Machine, evidence: Evidence | None) -> Trouble | None:
        """Return what is the matter with a machine, and keep what it can tell."""
        from pytest_kvm.machine.vitals import find_trouble  # noqa: PLC0415 - loads psutil

        trouble = find_trouble(
            machine,
            can_dump=self._has_failed and machine.name not in self._dumped,
            before_dump=None if evidence is None else evidence.keep_screenshot,
        )
        if evidence is not None:
            with self._noting_lapses():
                evidence.keep(trouble)
        return trouble

    @contextmanager
    def _noting_lapses(self) -> Generator[None]:
        try:
            yield
        except Exception as lapse:  # noqa: BLE001 - pytest ends its session if a hook raises
            self._note_lapse(lapse)

    def _note_lapse(self, lapse: Exception) -> None:
        _log.error("the report of %s is not complete", self._item.nodeid, exc_info=lapse)
        self._lapses.append("".join(traceback.format_exception(lapse)))


def _chain(failure: BaseException) -> Iterator[BaseException]:
    """Yield an exception, and those that it tells of: its causes, or the members of a group."""
    todo, known = [failure], set[int]()
    while todo:
        error = todo.pop()
        if id(error) not in known:
            known.add(id(error))
            yield error
            members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
            todo += filter(None, (error.__cause__, error.__context__, *members))


def _fact(trouble: Trouble) -> str:
    return f"{trouble.guest} {trouble.what}"


def _may_explain(trouble: Trouble, failure: KvmError) -> bool:
    """Say whether a trouble may be the cause of a failure, and the failure does not tell it by itself."""
    return not trouble.has_ended and (not trouble.sshd_answers or isinstance(failure, _TIMEOUTS))
