"""pytest's hooks: when the plugin is asked, and how errors become outcomes.

A guest that cannot be had is an *error* of set-up, a wrong spec an error of
collection; only what a test itself finds wrong is a failure.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pytest_kvm.errors import KvmError
from pytest_kvm.plugin import newhooks
from pytest_kvm.plugin.addoption import add_options, settings_of
from pytest_kvm.plugin.collection import mistakes_in
from pytest_kvm.plugin.markers import MARKER
from pytest_kvm.plugin.progress import keep_screen
from pytest_kvm.plugin.record import attach
from pytest_kvm.plugin.report import add_sections, guests_of, is_infrastructure, without_machinery
from pytest_kvm.plugin.session import begin_session, coordinator_of, existing_run, record_of, scopes_of
from pytest_kvm.plugin.summary import Summary


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Offer hooks to other plugins."""
    pluginmanager.add_hookspecs(newhooks)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register ``--kvm-*`` and ``kvm_*``."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Merge the settings and register the marker."""
    config.addinivalue_line("markers", MARKER)
    settings = settings_of(config)
    begin_session(config, settings)
    if not hasattr(config, "workerinput"):  # one summary, by the process that reports
        config.pluginmanager.register(Summary(config, settings), "kvm-summary")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember where the terminal is, now that pytest has its reporter."""
    keep_screen(session.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn mistakes in specs into a collection error of their file."""
    report = yield
    items = [each for each in report.result or () if isinstance(each, pytest.Item)]
    mistakes = mistakes_in(items)
    if mistakes and report.passed:
        report.outcome = "failed"
        report.longrepr = "\n".join(mistakes)
        report.result = []
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Have every guest of the test ready, and as it shall see it, before its call phase.

    Outermost of all wrappers, so that it waits after every fixture ran: guests
    of one test boot at the same time, and one that cannot boot, or cannot be
    reset, is an error here.
    """
    scopes_of(item.config).begin(item)
    yield
    for guest in guests_of(item):
        guest.wait_ready()
        coordinator_of(item.config).settle(guest)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Tell what a fixture does to guests from what the test does."""
    with scopes_of(request.config).setting_up(fixturedef, request):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Let the test's changes end with it, after everything it tears down."""
    with scopes_of(item.config).tearing_down():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the guests' consoles to a failed test's report, and tell errors from failures."""
    error = None if call.excinfo is None else call.excinfo.value
    if isinstance(error, KvmError) and not item.config.option.fulltrace:
        call.excinfo = without_machinery(error)
    events = record_of(item.config).add_properties(item, [guest.name for guest in guests_of(item)])
    report = yield
    if events:
        attach(report, events)
    if report.failed:
        add_sections(item, report)
        if error is not None and is_infrastructure(error) and report.when == "call":
            # pytest calls what fails in set-up an error. A guest that a test
            # boots by itself and that cannot boot is one too.
            report.when = "setup"
    return report


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove whatever fixtures could not: Ctrl-C and ``-x`` may skip finalizers."""
    run = existing_run(config)
    if run is not None:
        run.close()
