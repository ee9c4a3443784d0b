"""Two guests on a segment: addresses, names, and frames in both directions."""

from __future__ import annotations

from dataclasses import replace

import pytest

import pytest_kvm as kvm
from pytest_kvm.boot_cache.inventory import Inventory
from pytest_kvm.plugin.session import settings_stashed
from tests.guest_specs import SMALL


@kvm.network(scope="module")
def lan():
    return kvm.NetworkSpec(subnet="10.1.0.0/24", subnet6="fd00:1::/64")


@kvm.guest(scope="module")
def left(lan):
    return replace(SMALL, nics=[kvm.Nic(lan, address="10.1.0.5", address6="fd00:1::5")])


@kvm.guest(scope="module")
def right(lan):
    return replace(SMALL, nics=[kvm.Nic(lan)])


@pytest.fixture
def pair(left, right):
    return left, right


def _ping(guest, target):
    guest.run(["ping", "-c", "1", "-W", "20", target])


def test_guests_reach_each_other_by_address_and_by_name(lan, pair):
    left, right = pair
    assert lan.guests == [left, right]
    assert (left.address(lan), left.address(lan, version=6)) == ("10.1.0.5", "fd00:1::5")
    assert (lan.address_of(right), lan.address_of(right, version=6)) == ("10.1.0.10", "fd00:1::a")
    for here, there in (pair, pair[::-1]):
        for target in (there.address(lan), there.address(lan, version=6), there.name, f"{there.name}.lan"):
            _ping(here, target)
    assert len({guest.read_text("/etc/machine-id") for guest in pair}) == 2
    assert len({guest.nics[0].mac for guest in pair}) == 2


def test_a_guest_that_joins_late_is_known_to_all(lan, pair, kvm_guests):
    late = kvm_guests.boot(replace(SMALL, nics=[kvm.Nic(lan)]), name="late")
    for guest in pair:
        _ping(guest, "late")
        _ping(late, guest.name)
    assert lan.counters["late"]["out"]["frames"] > 0


def test_both_go_back_to_one_moment(lan, pair):
    with kvm.lab(lan).savepoint():
        for guest in pair:
            guest.write_text("/run/late", "x")
    for guest in pair:
        guest.wait_for_file("/run/late", absent=True)
    _ping(pair[0], "right")


def test_what_a_test_does_to_a_card(pair):
    left, right = pair
    _ping(right, "left")
    left.run(["ip", "address", "flush", "dev", left.nics[0].device])
    assert not right.run(["ping", "-c", "1", "-W", "2", "left"], check=False).ok


def test_is_undone_before_the_next(pair):
    for here, there in (pair, pair[::-1]):
        _ping(here, there.name)


SERVE = """
import socket
for line in socket.create_server(("", 7000)).accept()[0].makefile():
    with open("/run/heard", "a") as file:
        file.write(line)
"""
SPEAK = """
import socket, time
server = socket.create_connection(("right", 7000))
while True:
    server.sendall(b"word\\n")
    time.sleep(0.1)
"""


@kvm.lab_template(scope="class")
def talk(lan, left, right):
    right.run(["systemd-run", "--quiet", "python3", "-c", SERVE])
    right.wait_until("ss -Hltn 'sport = 7000' | grep .")
    left.run(["systemd-run", "--quiet", "python3", "-c", SPEAK])
    right.wait_for_file("/run/heard")


class TestLabTemplate:
    def test_the_guests_go_on_where_they_were_frozen(self, talk, left, right, pytestconfig):
        assert talk.guests == (left, right)
        cached = Inventory.of(settings_stashed(pytestconfig)).list()
        summaries = [each.manifest.summary for each in cached if each.manifest is not None]
        assert len([each for each in summaries if each.startswith("lab template talk, ")]) >= 2
        heard = right.run(["wc", "-l", "/run/heard"]).stdout.split()[0]
        right.wait_until(["sh", "-c", 'test "$(wc -l </run/heard)" -gt "$1"', "sh", heard])
        _ping(right, "left")
