"""Each test finds the guest as it was, and two guests of one template are two machines."""

from __future__ import annotations

from dataclasses import replace

import pytest

import pytest_kvm as kvm
from pytest_kvm.plugin.session import settings_stashed
from tests.guest_clock import clock_error
from tests.guest_specs import SMALL

CHANGE = "touch /root/changed /dev/shm/changed; sysctl -qw kernel.domainname=changed"
LOOK = "ls /root /dev/shm; cat /proc/sys/kernel/domainname"


@kvm.guest(scope="module")
def vm():
    """A guest that is reset before each test that uses it."""
    return SMALL


class TestSwapped:
    """A guest that nothing but its own tests has changed is swapped for a prestarted clone."""

    @pytest.mark.parametrize("time", ["first", "second"])
    def test_nothing_of_an_earlier_test_is_there(self, vm, time):
        assert vm.run(LOOK).stdout == "/dev/shm:\n\n/root:\n(none)\n"
        vm.run(CHANGE)


class TestPutBack:
    """A fixture's change is kept, so resets load the savepoint behind it, in place."""

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def prepared(cls, vm):
        vm.run("touch /root/prepared")

    @pytest.mark.parametrize("time", ["first", "second"])
    def test_the_fixtures_change_is_there_and_no_tests(self, vm, time):
        assert vm.run(LOOK).stdout == "/dev/shm:\n\n/root:\nprepared\n(none)\n"
        vm.run(CHANGE)


WHO = "cat /etc/machine-id /proc/sys/kernel/hostname; cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub"


def test_clones_share_neither_identity_nor_randomness_nor_the_templates_clock(kvm_guests):
    unique = replace(SMALL, identity="unique")
    one, two = kvm_guests.boot_all(unique, unique, names=["one", "two"])
    about = [guest.run(WHO).stdout.splitlines() for guest in (one, two)]
    assert [facts[1] for facts in about] == ["one", "two"]
    assert not set(about[0]) & set(about[1])
    drawn = [guest.run("head -c 16 /dev/urandom | od -An -tx1").stdout for guest in (one, two)]
    assert len(set(drawn)) == 2
    for guest in (one, two):
        error, uncertain = clock_error(guest)
        assert error + uncertain <= 0.1


SUITE = """
import pytest_kvm as kvm


@kvm.guest(scope="session")
def machine():
    return kvm.GuestSpec(memory="512MiB", vcpus=1)


def test_one(machine):
    assert machine.run("echo one").stdout == "one\\n"
"""


def test_two_workers_start_from_one_template(guest, pytester, pytestconfig):
    pytester.makepyfile(test_one=SUITE, test_two=SUITE)
    cache = f"--kvm-cache-dir={settings_stashed(pytestconfig).cache_dir}"
    result = pytester.runpytest_subprocess("-n2", "--dist=loadfile", cache, timeout=600)
    result.assert_outcomes(passed=2)
    result.stdout.re_match_lines([r"kvm: 2 guests, 2 clones median .*, 1 cache entry .*"])
