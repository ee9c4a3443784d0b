"""Runs on a host where something goes wrong; ``--soak`` makes the tests of chance long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_kvm.plugin.session import settings_stashed
from tests.figures import FIGURES
from tests.own_cache import OwnCache
from tests.suite_process import Suites, suites_in


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Return a function that shows its argument at the end of the run."""
    return lambda text: record_property(FIGURES, text)


@pytest.fixture(scope="session")
def soak(pytestconfig: pytest.Config) -> bool:
    """Whether there is time for the long form."""
    return bool(pytestconfig.getoption("--soak"))


@pytest.fixture
def suites(tmp_path: Path, run_dir: Path, pytestconfig: pytest.Config) -> Iterator[Suites]:
    """Start suites that have this run's cache."""
    with suites_in(tmp_path, run_dir=run_dir, settings=settings_stashed(pytestconfig)) as suites:
        yield suites


@pytest.fixture
def cache(tmp_path: Path, pytestconfig: pytest.Config) -> Iterator[OwnCache]:
    """A cache without templates, which nobody else uses."""
    cache = OwnCache(tmp_path / "cache", outer=settings_stashed(pytestconfig).cache_dir)
    yield cache
    cache.remove()


@pytest.fixture
def loners(tmp_path: Path, run_dir: Path, cache: OwnCache, pytestconfig: pytest.Config) -> Iterator[Suites]:
    """Start suites that have a cache of their own."""
    settings = replace(settings_stashed(pytestconfig), cache_dir=cache.folder)
    with suites_in(tmp_path, run_dir=run_dir, settings=settings) as suites:
        yield suites
