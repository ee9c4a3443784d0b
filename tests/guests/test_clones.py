"""What starts from one template, or goes back to one point, is a guest of its own and of today."""

from __future__ import annotations

from dataclasses import replace

import pytest

import pytest_kvm as kvm
from tests.guest_clock import clock_error
from tests.guest_specs import FULL

# The kernel's, and those of a process that has just begun: from the kernel by
# getrandom(2), from OpenSSL, from Python's own generator.
DRAW = """
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
python3 -c 'if True:
    import random, secrets, ssl
    print(secrets.token_hex(16), ssl.RAND_bytes(16).hex(), random.randbytes(16).hex())'
"""


@kvm.guest(scope="module")
def vm():
    """A guest that is reset before each test that uses it."""
    return FULL


@pytest.fixture(scope="module")
def drawn() -> set[str]:
    """All random bytes that guests of this module have drawn."""
    return set()


@pytest.fixture
def draw(drawn):
    """Have a guest draw random bytes that no other has drawn before."""

    def draw(guest):
        fresh = guest.run(DRAW).stdout.split()
        assert len(fresh) == 4
        assert drawn.isdisjoint(fresh)
        drawn.update(fresh)

    return draw


def is_right(guest) -> bool:
    error, uncertain = clock_error(guest)
    return error + uncertain <= 0.1


@pytest.mark.parametrize("number", range(10))
def test_clones_draw_random_bytes_of_their_own(kvm_guests, draw, number):
    # Two of a name, then another: from the third on clones wait in the pool.
    clone = kvm_guests.boot(FULL, name=f"clone{number // 5}")
    draw(clone)


@pytest.mark.parametrize("number", range(6))
def test_a_guest_started_over_draws_others(vm, draw, number):
    draw(vm)


class TestSavepoint:
    """The class's own change makes resets go back to a savepoint, in place."""

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def changed(cls, vm):
        vm.run(["touch", "/root/changed"])

    @pytest.mark.parametrize("number", range(6))
    def test_a_guest_put_back_draws_others(self, vm, draw, number):
        draw(vm)

    def test_and_its_clock_is_right(self, vm):
        assert is_right(vm)


def test_the_clock_is_todays(kvm_guests):
    assert is_right(kvm_guests.boot(FULL, name="clock"))


def test_the_clock_is_right_after_a_reset(vm):
    assert is_right(vm)


class TestMemory:
    """The first changes what only memory holds, the second finds nothing of it."""

    def test_changes(self, vm):
        assert vm.read_text("/proc/sys/kernel/domainname").strip() == "(none)"
        vm.run("sysctl -qw kernel.domainname=changed; echo changed >/dev/shm/prepared; touch /root/changed")
        vm.run("setsid --fork sleep 12345 </dev/null >/dev/null 2>&1")
        assert vm.run(["pgrep", "-fx", "sleep 12345"]).ok

    def test_finds_nothing(self, vm):
        assert vm.read_text("/proc/sys/kernel/domainname").strip() == "(none)"
        assert vm.read_text("/dev/shm/prepared") == "prepared\n"
        assert not vm.run(["pgrep", "-fx", "sleep 12345"], check=False).ok
        assert not vm.run(["test", "-e", "/root/changed"], check=False).ok


WHO = """
cat /etc/machine-id /proc/sys/kernel/hostname
cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub
cat /sys/class/net/*/address | grep -v 00:00:00:00:00:00 | sort | xargs
"""


def who(guest):
    """Return a guest's machine id, host name, host key and addresses."""
    machine_id, hostname, host_key, macs = guest.run(WHO).stdout.splitlines()
    assert guest.machine.access.host_key.split()[1] == host_key
    assert len(macs.split()) == 2
    return machine_id, hostname, host_key, set(macs.split())


def test_unique_guests_started_at_once_have_nothing_in_common(kvm_guests):
    unique = replace(FULL, identity="unique")
    guests = kvm_guests.boot_all(unique, unique, names=["one", "two"])
    (id1, name1, key1, macs1), (id2, name2, key2, macs2) = map(who, guests)
    assert (name1, name2) == ("one", "two")
    assert id1 != id2
    assert key1 != key2
    # Each is alone on its control network: that card may be the same.
    assert len(macs1 & macs2) == 1


def test_shared_guests_are_the_template_with_cards_of_their_own(kvm_guests):
    shared = replace(FULL, identity="shared")
    guests = kvm_guests.boot_all(shared, shared, names=["one", "two"])
    (*names1, macs1), (*names2, macs2) = map(who, guests)
    assert names1 == names2
    assert len(macs1 & macs2) == 1
