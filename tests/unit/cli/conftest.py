"""What tests of commands have in common."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from pytest_kvm.host import run_survey


@pytest.fixture
def parent():
    """A folder with a path as short as sockets want it."""
    with tempfile.TemporaryDirectory(prefix="kvm-", dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def alone(parent, monkeypatch):
    """Let commands look at this folder only, as other tests have runs elsewhere at the same time."""
    monkeypatch.setattr(run_survey, "_parents", lambda _parent: [parent])
