"""A segment with many guests, of which some misbehave: the others reach each other all the same."""

from __future__ import annotations

from dataclasses import replace

import psutil
import pytest

import pytest_kvm as kvm
from pytest_kvm.plugin.session import run_of
from tests.guest_specs import SMALL

MANY = 12
"""As few that there is room for them beside the guests of this session, where there are two processors."""
MOST_MEMORY = 100 << 20
"""Bytes that the switch may need; its queues are 1 MiB for each guest."""
SEND = """
import random, socket, sys
kind, card_name, neighbour = sys.argv[1:]
chance = random.Random(0)
everybody, nobody = b"\\xff" * 6, b"\\x02" + bytes(5)
spoofed = bytes.fromhex(neighbour.replace(":", ""))
frames = {
    "flood": [everybody + nobody + b"\\x88\\xb5" + bytes(1400)] * 100,
    "garbage": [everybody[:6] + chance.randbytes(chance.randrange(8, 1500)) for _ in range(100)],
    "short": [everybody + nobody + b"\\x81\\x00", everybody + nobody + b"\\x86\\xdd\\x60"] * 50,
    "spoof": [everybody + spoofed + b"\\x88\\xb5"] * 100,
}[kind]
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as card:
    card.bind((card_name, 0))
    print("sending", flush=True)
    while True:
        for frame in frames:
            card.send(frame)
"""
"""Sends frames of a kind without end."""


@kvm.network(scope="module")
def lan():
    return kvm.NetworkSpec(subnet="10.1.0.0/24", subnet6="fd00:1::/64")


@kvm.guest(scope="module")
def villain(lan):
    return replace(SMALL, nics=[kvm.Nic(lan)])


@kvm.guest(scope="module")
def asker(lan):
    return replace(SMALL, nics=[kvm.Nic(lan)])


@kvm.guest(scope="module")
def answerer(lan):
    return replace(SMALL, nics=[kvm.Nic(lan)])


def memory_of_switch(config):
    """Return the bytes of memory that the run's switch has."""
    switch = run_of(config)._switch.get()
    return psutil.Process(switch.pid).memory_info().rss


def test_many_guests_on_a_segment_reach_each_other_by_name(kvm_networks, kvm_guests):
    wide = kvm_networks.make(name="wide")
    names = [f"member{number}" for number in range(MANY)]
    spec = replace(SMALL, nics=[kvm.Nic(wide)])
    members = kvm_guests.boot_all(*[spec] * MANY, names=names)
    assert wide.guests == members
    for here, there in zip(members, [*members[1:], members[0]], strict=True):
        here.run(["ping", "-c", "1", "-W", "20", there.name])
    assert len({nic.mac for nic in wide.nics}) == len({nic.address for nic in wide.nics}) == MANY


@pytest.mark.parametrize("kind", ["flood", "garbage", "short", "spoof"])
def test_a_guest_that_misbehaves(pytestconfig, lan, villain, asker, answerer, kind):
    argv = ["python3", "-c", SEND, kind, villain.nics[0].device, answerer.nics[0].mac]
    with villain.start(argv) as process:
        assert next(process.lines()) == "sending"
        sent = villain.nics[0].counters["out"]["frames"]
        if kind == "spoof":
            # Its frames claim the address all the time, so those for it may go astray.
            asker.run(["ping", "-c", "1", "-W", "1", "answerer"], check=False)
        else:
            asker.run(["ping", "-c", "3", "-W", "20", "answerer"])
        assert villain.nics[0].counters["out"]["frames"] > sent
        assert memory_of_switch(pytestconfig) < MOST_MEMORY
    asker.wait_until(["ping", "-c", "1", "-W", "2", "answerer"])


def test_what_a_guest_does_not_take_is_dropped_and_counted(pytestconfig, villain, asker, answerer):
    argv = ["python3", "-c", SEND, "flood", villain.nics[0].device, answerer.nics[0].mac]
    answerer.pause()
    with villain.start(argv) as process:
        assert next(process.lines()) == "sending"
        while not answerer.nics[0].counters["in"]["dropped"].get("guest too slow"):
            asker.run(["ping", "-c", "1", "-W", "20", "villain"])
        assert memory_of_switch(pytestconfig) < MOST_MEMORY
    answerer.resume()
    asker.run(["ping", "-c", "1", "-W", "20", "answerer"])
