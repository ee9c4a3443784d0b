"""Runs on a host where something goes wrong; ``--soak`` makes the tests of chance long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_kvm.plugin.session import settings_stashed
from tests.own_cache import OwnCache
from tests.suite_process import Suites, suites_in

FIGURES = "figures"
"""The property of a test's report with what it has measured."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write what the tests have measured."""
    reports = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    for report in reports:
        for name, value in getattr(report, "user_properties", []):
            if name == FIGURES:
                terminalreporter.write_line(f"{report.nodeid}: {value}")


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Return a function that shows its argument at the end of the run."""
    return lambda text: record_property(FIGURES, text)


@pytest.fixture(scope="session")
def soak(pytestconfig: pytest.Config) -> bool:
    """Whether there is time for the long form."""
    return bool(pytestconfig.getoption("--soak"))


@pytest.fixture
def suites(tmp_path: Path, pytestconfig: pytest.Config) -> Iterator[Suites]:
    """Start suites that have this run's cache."""
    with suites_in(tmp_path, settings_stashed(pytestconfig)) as suites:
        yield suites


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[OwnCache]:
    """A cache without templates, which nobody else uses."""
    outer = settings_stashed(pytestconfig).cache_dir
    cache = OwnCache(tmp_path_factory.mktemp("faults") / "cache", outer=outer)
    yield cache
    cache.remove()


@pytest.fixture
def loners(tmp_path: Path, cache: OwnCache, pytestconfig: pytest.Config) -> Iterator[Suites]:
    """Start suites that have a cache of their own."""
    with ExitStack() as stack:
        settings = replace(settings_stashed(pytestconfig), cache_dir=cache.folder)
        yield stack.enter_context(suites_in(tmp_path, settings))
