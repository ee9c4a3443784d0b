"""Why a template had to be made, as reports say it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_kvm.boot_cache import ram_file
from pytest_kvm.provision.events import cold_boot_event
from pytest_kvm.provision.run_templates import RunTemplates
from pytest_kvm.settings import Settings
from tests.unit.provision.start_requests import START_REQUEST

KEY = "5ca1ab1e" * 8


class MadeTemplate:
    key = KEY
    is_closed = False

    def close(self) -> None:
        self.is_closed = True


def boot_event(*, why, **_more: Any):
    return cold_boot_event("web", spec=START_REQUEST.spec, seconds=1.0, why=why)


@pytest.fixture
def made():
    return MadeTemplate()


@pytest.mark.parametrize(("tier", "says"), [("cow", True), ("snapshot", False)])
def test_only_a_template_that_has_a_ram_file_says_where_the_file_is(made, tmp_path, monkeypatch, tier, says):
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(ram_file, "_MEMORY", tmp_path / "shm")
    monkeypatch.setattr(ram_file, "_KEPT_FREE", 1.0)  # no RAM file fits
    settings = Settings(cache_dir=tmp_path / "cache", run_dir=tmp_path, cache_ram="tmpfs")
    resources: Any = SimpleNamespace()
    monkeypatch.setattr(RunTemplates, "_boot", lambda *_arguments, **more: (made, boot_event(**more)))
    templates = RunTemplates(settings, resources)
    template, (event,) = templates.get(START_REQUEST, tier, key=KEY)
    assert template is made
    assert event.why.startswith("no template yet")
    assert ("its RAM file is on disk: " in event.why) == says


def test_a_template_that_is_damaged_stays_while_clones_have_their_disks_on_it(made, tmp_path, monkeypatch):
    resources: Any = SimpleNamespace()
    monkeypatch.setattr(RunTemplates, "_boot", lambda *_arguments, **more: (made, boot_event(**more)))
    templates = RunTemplates(Settings(cache_dir=tmp_path / "cache", run_dir=tmp_path), resources)
    template, _ = templates.get(START_REQUEST, "cow", key=KEY)
    templates.discard(START_REQUEST, template, reason="QEMU refused its state")
    assert not made.is_closed
    following = MadeTemplate()
    monkeypatch.setattr(RunTemplates, "_boot", lambda *_arguments, **more: (following, boot_event(**more)))
    assert templates.get(START_REQUEST, "cow", key=KEY)[0] is following
    templates.close()
    assert made.is_closed
    assert following.is_closed
