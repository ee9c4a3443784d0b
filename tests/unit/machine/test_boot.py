from __future__ import annotations

import logging

from pytest_kvm.machine.boot import Phases


def test_phases_are_told_once_each_with_the_time_since_power_on(caplog):
    now = iter([100.0, 101.5, 115.0, 116.0])
    heard = []
    log = logging.getLogger("pytest_kvm.web")
    phases = Phases(log, listener=lambda *what: heard.append(what), clock=lambda: next(now))
    with caplog.at_level("INFO"):
        phases.reached("console")
        phases.reached("console")
        phases.reached("cloud_init")
    assert phases.seconds() == {"power_on": 0.0, "console": 1.5, "cloud_init": 15.0}
    assert heard == [("console", 1.5), ("cloud_init", 15.0)]
    assert caplog.messages == ["console after 1.5 s", "cloud init after 15.0 s"]
    assert phases.describe() == ("boot phases: power on 0.0 s, console 1.5 s, cloud init 15.0 s; now 16.0 s")


def test_another_boot_is_told_in_the_same_place_from_its_own_power_on():
    now = iter([100.0, 101.5, 140.0, 141.0])
    heard = []
    first = Phases(
        logging.getLogger("pytest_kvm.web"),
        listener=lambda *what: heard.append(what),
        clock=lambda: next(now),
    )
    first.reached("console")
    first.of_next_boot().reached("console")
    assert heard == [("console", 1.5), ("console", 1.0)]
