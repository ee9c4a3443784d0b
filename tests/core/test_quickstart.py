"""The quickstart as a user runs it: from nothing, without root, with no other package than declared."""

from __future__ import annotations

import json
import re

from pytest_kvm.plugin.session import settings_stashed
from tests.ordinary_user import ordinary_user


def test_quickstart_as_an_ordinary_user(pytestconfig):
    with ordinary_user(settings_stashed(pytestconfig)) as user:
        finished = user.run_suites("quickstart")
        kinds = [json.loads(line)["kind"] for line in user.events.read_text().splitlines()]
    assert re.search(r"= [1-9]\d* passed in ", finished.stdout), finished.stdout
    assert re.search(r"^kvm: machine: ready after [\d.]+ s$", finished.stdout, re.MULTILINE), finished.stdout
    assert {kind: kinds.count(kind) for kind in ("boot", "clone", "reboot")} == {
        "boot": 1,
        "clone": 1,
        "reboot": 1,
    }
