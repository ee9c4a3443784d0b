"""Why a template had to be made, as reports say it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_kvm.boot_cache import ram_file
from pytest_kvm.provision.run_templates import RunTemplates
from pytest_kvm.settings import Settings
from tests.unit.provision.start_requests import START_REQUEST

KEY = "5ca1ab1e" * 8


@pytest.mark.parametrize(("tier", "says"), [("cow", True), ("snapshot", False)])
def test_only_a_template_that_has_a_ram_file_says_where_the_file_is(tmp_path, monkeypatch, tier, says):
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(ram_file, "_MEMORY", tmp_path / "shm")
    monkeypatch.setattr(ram_file, "_KEPT_FREE", 1.0)  # no RAM file fits
    settings = Settings(cache_dir=tmp_path / "cache", run_dir=tmp_path, cache_ram="tmpfs")
    resources: Any = SimpleNamespace()
    made = SimpleNamespace(key=KEY, close=lambda: None)
    monkeypatch.setattr(RunTemplates, "_build", lambda *_arguments, **_more: made)
    templates = RunTemplates(settings, resources)
    template, why = templates.get(START_REQUEST, tier, key=KEY)
    assert template is made
    assert why.startswith("no template yet")
    assert ("its RAM file is on disk: " in why) == says
