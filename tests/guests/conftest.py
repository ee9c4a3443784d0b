"""Real guests for the full suite."""

from __future__ import annotations

from tests.shared_guest import boot, guest

__all__ = ["boot", "guest"]
