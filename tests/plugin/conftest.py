"""What runs of pytest within a test have in common."""

from __future__ import annotations

import pytest

from pytest_kvm.plugin.session import settings_stashed


@pytest.fixture(autouse=True)
def _images_and_templates_of_the_outer_run(pytestconfig, monkeypatch):
    """Let an inner run start where this one is: pytester's HOME has neither an image nor a template."""
    monkeypatch.setenv("PYTEST_KVM_CACHE_DIR", str(settings_stashed(pytestconfig).cache_dir))
