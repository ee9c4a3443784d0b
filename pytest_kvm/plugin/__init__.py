"""The pytest plugin: its hooks and fixtures, imported by name so that type checkers can follow."""

from __future__ import annotations

from pytest_kvm.plugin.fixtures import kvm_guests, kvm_networks
from pytest_kvm.plugin.hooks import (
    pytest_addhooks,
    pytest_addoption,
    pytest_configure,
    pytest_fixture_setup,
    pytest_make_collect_report,
    pytest_runtest_call,
    pytest_runtest_makereport,
    pytest_runtest_setup,
    pytest_runtest_teardown,
    pytest_sessionstart,
    pytest_unconfigure,
)

__all__ = [
    "kvm_guests",
    "kvm_networks",
    "pytest_addhooks",
    "pytest_addoption",
    "pytest_configure",
    "pytest_fixture_setup",
    "pytest_make_collect_report",
    "pytest_runtest_call",
    "pytest_runtest_makereport",
    "pytest_runtest_setup",
    "pytest_runtest_teardown",
    "pytest_sessionstart",
    "pytest_unconfigure",
]
