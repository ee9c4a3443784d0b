"""Real guests for the tests that every change has to pass: what is here, says CONTRIBUTING.md."""

from __future__ import annotations

from tests.shared_guest import boot, guest

__all__ = ["boot", "guest"]
