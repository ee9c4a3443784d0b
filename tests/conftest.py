"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

from pytest_kvm.hypervisor.libvirt_log import logging_to
from scripts.folders import own_folder
from tests.figures import figures_in

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
    stats = terminalreporter.stats
    for line in figures_in([*stats.get("passed", []), *stats.get("failed", [])]):
        terminalreporter.write_line(line)


@pytest.fixture
def run_dir():
    """Make a folder for runs, with a path that is short enough for sockets."""
    with own_folder("kvm-") as folder:
        yield folder


@pytest.fixture(scope="session")
def project_root() -> Path:
    """Folder of the checkout."""
    return ROOT
