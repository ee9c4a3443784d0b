"""What happens to real guests is in the run's summary and in its file of events."""

from __future__ import annotations

import json

from pytest_kvm.plugin.session import settings_stashed

SUITE = """
import pytest
import pytest_kvm as kvm
from pytest_kvm.errors import KernelPanicked

SPEC = kvm.GuestSpec(memory="512MiB", vcpus=1)
PANICS = kvm.GuestSpec(memory="512MiB", vcpus=1, cmdline_extra="rdinit=/nonexistent root=/dev/vda1")


@kvm.guest(scope="module")
def machine():
    return SPEC


def test_reboot(machine):
    machine.reboot(hard=True)


def test_reset(machine):
    machine.run("true")


def test_panic(kvm_guests):
    with pytest.raises(KernelPanicked):
        kvm_guests.boot(PANICS, name="sick")
"""


def test_all_that_takes_time_is_told(guest, pytester, pytestconfig):
    pytester.makepyfile(test_suite=SUITE)
    file = pytester.path / "events.jsonl"
    cache = f"--kvm-cache-dir={settings_stashed(pytestconfig).cache_dir}"
    result = pytester.runpytest_subprocess("-v", cache, f"--kvm-events={file}", timeout=900)
    result.assert_outcomes(passed=3)
    result.stdout.re_match_lines(
        [
            r"machine: 1 reboot \d.*",
            r"sick: 1 failed boot .* s \(KernelPanicked\)",
            r"kvm: 1 guest, 1 failed boot .*, 1 clone .*, 1 reset .*, 1 reboot .*",
        ]
    )
    events = [json.loads(line) for line in file.read_text().splitlines()]
    told = [(event["guest"], event["kind"], event["test"]) for event in events]
    assert told == [
        ("machine", "clone", "test_suite.py::test_reboot"),
        ("machine", "reboot", "test_suite.py::test_reboot"),
        ("machine", "reset", "test_suite.py::test_reset"),
        ("sick", "failure", "test_suite.py::test_panic"),
    ]
    assert "cmdline_extra" in events[-1]["spec"]
    assert all(event["seconds"] > 0.01 for event in events)
    assert {event["within"].rpartition("::")[2] for event in events} == {"test_all_that_takes_time_is_told"}
