"""The plugin's implementations of pytest's hooks.

A guest that cannot be started or reset is an *error* of set-up, and a wrong spec
an error of collection. A *failure* is only what a test itself finds wrong.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any

import pytest

from pytest_kvm.errors import GuestUnhealthy, SpecError
from pytest_kvm.options import OPTIONS, Option, from_environment, settings_from
from pytest_kvm.plugin import newhooks
from pytest_kvm.plugin.artifacts import close_store
from pytest_kvm.plugin.captures import record_segments
from pytest_kvm.plugin.collection import mistakes_in
from pytest_kvm.plugin.declare import MARKER
from pytest_kvm.plugin.explanation import (
    begin_explanations,
    explain_at_once,
    explaining_teardowns,
    explanation_of,
    note_failed_fixture,
)
from pytest_kvm.plugin.finalizers import watch_finalizers
from pytest_kvm.plugin.fixture_guests import guests_of_arguments, note_value
from pytest_kvm.plugin.health import (
    begin_test,
    check_guests,
    checking_skips,
    note_guests,
    show_replaced,
)
from pytest_kvm.plugin.progress import keep_screen
from pytest_kvm.plugin.record import attach
from pytest_kvm.plugin.report import (
    guests_of,
    is_infrastructure,
    shorten_traceback,
    show_text_alone,
)
from pytest_kvm.plugin.reservation import Reservation, end_reservation
from pytest_kvm.plugin.session import (
    begin_session,
    coordinator_of,
    existing_run,
    note_test,
    record_of,
    scopes_of,
)
from pytest_kvm.plugin.summary import Summary
from pytest_kvm.settings import Settings


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Register the hooks that other plugins can implement, and the plugin that reserves room.

    Hooks run in the reverse order of their registration, so those of conftest files
    come before the reservation.
    """
    pluginmanager.add_hookspecs(newhooks)
    pluginmanager.register(Reservation(), "kvm-reservation")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the ``--kvm-*`` flags and the ``kvm_*`` ini keys."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Merge the settings and register the marker."""
    config.addinivalue_line("markers", MARKER)
    settings = settings_of(config)
    begin_session(config, settings)
    if not hasattr(config, "workerinput"):  # only the process that reports writes a summary
        config.pluginmanager.register(Summary(config, settings), "kvm-summary")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Keep the real standard output, now that pytest has its terminal reporter."""
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
    """Wait until every guest of the test is ready and reset, before the test's call phase.

    It is the outermost of all wrappers, so it waits after all fixtures have run:
    guests of one test boot, and are reset, at the same time. A guest that cannot
    boot, or cannot be reset, is an error of set-up.
    """
    note_test(item.config, item.nodeid)
    begin_test(item)
    begin_explanations(item)
    scopes_of(item.config).begin(item)
    record_segments(item)
    try:
        with checking_skips(item, gates=False), explaining_teardowns(item, when="setup"):
            yield
    finally:
        end_reservation(item.config)
    guests = guests_of(item)
    for guest in guests:
        guest.wait_ready()
    coordinator_of(item.config).settle(guests)
    note_guests(item)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Keep a fixture's changes to guests apart from the test's; be told at once if its teardown fails."""
    with scopes_of(request.config).setting_up(fixturedef, request):
        config = request.config
        guests = guests_of_arguments(fixturedef, config)
        try:
            value = yield
        except BaseException:
            note_failed_fixture(config, guests)
            raise
        finally:
            if existing_run(config) is not None:
                explain = partial(explain_at_once, config=config, guests=guests)
                watch_finalizers(fixturedef, on_failure=explain)
        note_value(fixturedef, value, config=config)
        return value


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a test that passed, or has skipped itself, if something went wrong in a guest.

    It is the innermost of all wrappers, so what it logs is in the test's report.
    """
    with checking_skips(item, gates=True):
        yield
    check_guests(item, gates=True)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """End the test's changes to guests once all its fixtures are torn down."""
    try:
        with (
            checking_skips(item, gates=False),
            explaining_teardowns(item, when="teardown"),
            scopes_of(item.config).tearing_down(),
        ):
            yield
        check_guests(item, gates=False)
    finally:
        note_test(item.config, "")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Explain a failure by the test's guests; report a guest that does not boot as an error."""
    error = None if call.excinfo is None else call.excinfo.value
    has_no_frames = not item.config.option.fulltrace and shorten_traceback(call)
    events = record_of(item.config).add_properties(item, [guest.name for guest in guests_of(item)])
    explanation = explanation_of(item, when=call.when)
    explanation.look_before_report(error)
    report = yield
    outcome = None if call.excinfo is None else call.excinfo.value
    if outcome is error and error is not None and has_no_frames:
        show_text_alone(report, error)
    elif outcome is not None and outcome is not error and isinstance(error, GuestUnhealthy):
        show_replaced(error, report=report, by=outcome)
    if outcome is not None or report.failed:  # an unexpected success fails without an outcome
        explanation.show(report)
    else:
        explanation.keep(report)
    if events:
        attach(report, events)
    if report.failed and error is not None and is_infrastructure(error) and report.when == "call":
        # pytest calls a failure in set-up an error. A guest that a test
        # starts by itself and that does not boot is to be an error as well.
        report.when = "setup"
    return report


def pytest_unconfigure(config: pytest.Config) -> None:
    """Close the run: it removes guests whose finalizers were skipped, by Ctrl-C or ``-x`` for instance."""
    close_store(config)
    run = existing_run(config)
    if run is not None:
        run.close()


def add_options(parser: pytest.Parser) -> None:
    """Register every option and ini key."""
    group = parser.getgroup("kvm", "guests (pytest-kvm)")
    for option in OPTIONS:
        text = f"{option.help} (default: {option.default}; environment {option.variable}, ini {option.ini})"
        # Values stay text until all sources are merged, so that a mistake is
        # reported in the same way for each source.
        group.addoption(option.flag, dest=option.ini, metavar=option.metavar, default=None, help=text)
        parser.addini(option.ini, text, default=None)


def settings_of(config: pytest.Config) -> Settings:
    """Merge command line, environment and ini file; the first that has a value wins.

    Raises:
        pytest.UsageError: A value is not valid; the message names its source.
    """

    def command_line(option: Option) -> tuple[str, str | None]:
        return option.flag, config.getoption(option.ini)

    def ini(option: Option) -> tuple[str, str | None]:
        text: str | None = config.getini(option.ini)
        if text and option.is_path and not text.startswith("~"):
            # Resolved from the ini file's folder, as pytest resolves its own paths.
            folder = config.inipath.parent if config.inipath else config.invocation_params.dir
            text = str(folder / text)
        return f"ini key {option.ini}", text

    try:
        return settings_from([command_line, from_environment, ini])
    except SpecError as error:
        raise pytest.UsageError(str(error)) from None
