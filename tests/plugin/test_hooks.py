"""Hooks of other plugins on real guests."""

from __future__ import annotations

import re

import pytest

from tests.unit.docs.pages import DOCS, blocks

SUITE = """
import pytest
import pytest_kvm as kvm

NOTE = "%s: vm\\n"


@kvm.guest(scope="module")
def vm():
    return kvm.GuestSpec(memory="1GiB", vcpus=2)


@pytest.fixture(scope="module")
def note(vm):
    return vm.read_text("/root/session")


def test_the_fixture_found_the_note(note):
    assert note == NOTE


def test_the_spec_was_modified(vm):
    assert vm.run(["nproc"]).stdout == "1\\n"
    vm.run("echo changed >> /root/session; touch /root/changed")


def test_only_what_the_test_did_is_undone(vm):
    assert vm.run("ls /root; cat /root/session").stdout == "session\\n" + NOTE
    vm.power_off()


def test_a_guest_that_is_started_anew_has_the_note(vm):
    assert vm.run("ls /root; cat /root/session").stdout == "session\\n" + NOTE


def test_a_guest_of_the_test_itself(kvm_guests):
    own = kvm_guests.boot(kvm.GuestSpec(), name="own")
    assert own.read_text("/root/session") == NOTE.replace("vm", "own")


def test_a_guest_that_panics(kvm_guests):
    kvm_guests.boot(kvm.GuestSpec(cmdline_extra="rdinit=/nonexistent root=/dev/vda1"), name="dead")
"""

NEVER_CALLED = """
def pytest_kvm_guest_ready(guest):
    raise AssertionError(guest.name)
"""


@pytest.fixture
def hooks():
    """Return the hooks that the page of the documentation shows."""
    (block,) = [each for each in blocks(DOCS / "how-to" / "hooks.md") if each.info == "python"]
    return block.text


def test_the_hooks_of_the_documentation(pytester, hooks):
    pytester.makeconftest(hooks)
    pytester.makepyfile(
        **{
            "test_hooked": SUITE % pytester.path.name,
            "elsewhere/conftest": NEVER_CALLED,
            "elsewhere/test_none": "def test_none(): pass",
        }
    )
    result = pytester.runpytest_subprocess("-v", "elsewhere", "test_hooked.py", timeout=600)
    result.assert_outcomes(passed=6, errors=1)
    resets = re.findall(r"^kvm: .* (\d+) savepoints .* (\d+) resets", result.stdout.str(), re.MULTILINE)
    assert resets == [("3", "2")]
    told = (pytester.path / "failed-guests.txt").read_text()
    assert told.startswith("dead: KernelPanicked\n")
    assert "Kernel panic" in told
