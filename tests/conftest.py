"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

from pytest_kvm.hypervisor.libvirt_log import logging_to

FIGURES = "figures"
"""The property of a test's report with what the test has measured."""
ROOT = Path(__file__).resolve().parent.parent

# A machine that is busy with guests is no reason for a property not to hold.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

# libvirt reads once where to log, when it is loaded, and many tests load it outside of any run.
with logging_to(Path(os.devnull)):
    import libvirt as _libvirt  # noqa: F401 - for its effect


def pytest_addoption(parser):
    parser.addoption(
        "--regenerate-golden", action="store_true", help="rewrite tests/golden from today's code"
    )
    parser.addoption("--soak", action="store_true", help="let tests/faults take their time")
    parser.addoption("--soak-seed", type=int, help="seed of the random moments in tests/faults")


def pytest_terminal_summary(terminalreporter):
    """Write what tests have measured."""
    for report in terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", []):
        for name, value in report.user_properties:
            if name == FIGURES:
                terminalreporter.write_line(f"{report.nodeid}: {value}")


@pytest.fixture(scope="session")
def project_root() -> Path:
    """Folder of the checkout."""
    return ROOT
