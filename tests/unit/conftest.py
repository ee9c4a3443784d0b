"""Tests without guests."""

from __future__ import annotations

import pytest

from pytest_kvm.options import OPTIONS


@pytest.fixture(autouse=True)
def _no_options_from_outside(monkeypatch):
    """Take no option from the environment: what tests are made for holds for anybody who runs them."""
    for option in OPTIONS:
        monkeypatch.delenv(option.variable, raising=False)
