"""Labs: three guests on a segment, saved and put back at one moment while they talk."""

from __future__ import annotations

import json

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import SavepointGone, SavepointRefused
from pytest_kvm.hypervisor.protocol import DomainState

GOSSIP = r"""
import json, pathlib, socket, sys, time

me, own, *others = sys.argv[1:]
peers = dict(each.split("=") for each in others)
line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
line.bind((own, 7000))
sent, heard, lies = 0, dict.fromkeys(peers, 0), 0
state = pathlib.Path("/run/gossip.json")
while True:
    sent += 1
    for address in peers.values():
        line.sendto(json.dumps({"from": me, "number": sent, "heard": heard}).encode(), (address, 7000))
    line.settimeout(0.01)
    try:
        while True:
            told = json.loads(line.recv(2000))
            heard[told["from"]] = max(heard[told["from"]], told["number"])
            lies += told["heard"][me] > sent
    except TimeoutError:
        pass
    state.with_suffix(".new").write_text(json.dumps({"sent": sent, "heard": heard, "lies": lies}))
    state.with_suffix(".new").rename(state)
"""
"""Sends numbers, and says which numbers it has heard.

It counts as a lie if it is told that a number was heard which it has yet to send.
"""

COUNTING = r"""
import pathlib, socket, sys

role, address = sys.argv[1:]
state = pathlib.Path("/run/counting")
if role == "client":
    with socket.create_connection((address, 7001)) as server:
        number = 0
        while True:
            number += 1
            server.sendall(f"{number}\n".encode())
            assert server.recv(1)
else:
    listener = socket.create_server((address, 7001))
    client, _ = listener.accept()
    expected = 1
    for line in client.makefile():
        assert int(line) == expected, line
        state.with_suffix(".new").write_text(line)
        state.with_suffix(".new").rename(state)
        expected += 1
        client.sendall(b"+")
"""
"""A TCP connection with numbers, of which none may be missing."""


def start_unit(guest, unit, script, *arguments):
    """Start a script as a unit of the guest: no process of the test, which would be in a savepoint's way."""
    guest.write_text(f"/run/{unit}.py", script)
    guest.run(["systemd-run", f"--unit={unit}", "--quiet", "python3", f"/run/{unit}.py", *arguments])


def gossip(lan, *guests):
    """Have guests talk to each other."""
    for guest in guests:
        peers = [f"{peer.name}={peer.address(lan)}" for peer in guests if peer is not guest]
        start_unit(guest, "gossip", GOSSIP, guest.name, guest.address(lan), *peers)
    for guest in guests:
        guest.wait_for_file("/run/gossip.json")


def count(client, server, *, address):
    """Have one guest send another one numbers over TCP."""
    start_unit(server, "counting", COUNTING, "server", address)
    server.wait_until("ss -Hltn 'sport = 7001' | grep .")
    start_unit(client, "counting", COUNTING, "client", address)
    server.wait_for_file("/run/counting")


def wait_for_more(server):
    """Wait until twenty more numbers have come."""
    goal = int(server.read_text("/run/counting")) + 20
    server.wait_until(f"test $(cat /run/counting) -ge {goal}")


@pytest.fixture
def gossips(lan, speaker, listener, bystander):
    gossip(lan, speaker, listener, bystander)
    return speaker, listener, bystander


def lies_after_more_talk(guests):
    """Wait until each guest has sent fifty more numbers; return how many lies each has been told."""
    for guest in guests:
        goal = json.loads(guest.read_text("/run/gossip.json"))["sent"] + 50
        enough = f"json.load(open('/run/gossip.json'))['sent'] >= {goal}"
        guest.wait_until(["python3", "-c", f"import json, sys; sys.exit(not {enough})"])
    return [json.loads(guest.read_text("/run/gossip.json"))["lies"] for guest in guests]


def test_no_guest_hears_of_what_another_has_yet_to_send(gossips):
    assert lies_after_more_talk(gossips) == [0, 0, 0]
    savepoint = kvm.lab(*gossips).savepoint()
    for _ in range(3):
        assert lies_after_more_talk(gossips) == [0, 0, 0]
        savepoint.restore()
    assert lies_after_more_talk(gossips) == [0, 0, 0]


def test_guests_that_are_saved_one_after_the_other_do(gossips):
    savepoints = []
    for guest in gossips:
        savepoints.append(guest.savepoint())
        lies_after_more_talk(gossips)
    for savepoint in savepoints:
        savepoint.restore()
    assert sum(lies_after_more_talk(gossips)) > 0


def test_a_tcp_connection_goes_on_from_the_same_point(lan, speaker, listener):
    count(speaker, listener, address=listener.address(lan))
    wait_for_more(listener)
    with kvm.lab(speaker, listener).savepoint():
        wait_for_more(listener)
        speaker.run(["systemctl", "stop", "counting"])
        listener.wait_until("! systemctl is-active --quiet counting")
    wait_for_more(listener)
    for guest in (speaker, listener):
        assert guest.run(["systemctl", "is-active", "counting"]).stdout == "active\n"


def test_frames_that_are_on_their_way_are_lost_at_both_points(lan, speaker, listener):
    def send_one():
        """Return once a frame is on its way, with how many were lost by then."""
        with lan.capture(link=speaker) as sent:
            speaker.run(["ping", "-c", "1", "-W", "1", listener.address(lan)], check=False)
            sent.wait_for_packet(lambda packet: packet.direction == "out")
        return lost()

    def lost():
        return lan.counters["speaker"]["out"]["dropped"].get("unplugged", 0)

    with lan.delay(600, link=speaker, direction="out"):
        before = send_one()
        savepoint = kvm.lab(lan).savepoint()
        assert lost() > before
        before = send_one()
        savepoint.restore()
        assert lost() > before


def test_it_stands_still_and_goes_on(speaker, listener):
    lab = kvm.lab(speaker, listener)
    lab.pause()
    machines = [guest.machine for guest in lab.guests]
    assert [machine.domain.state() for machine in machines] == [DomainState.PAUSED] * 2
    with lab.savepoint():
        lab.resume()
        for guest in lab.guests:
            guest.write_text("/run/late", "x")
    assert [machine.domain.state() for machine in machines] == [DomainState.PAUSED] * 2
    lab.resume()
    for guest in lab.guests:
        guest.wait_for_file("/run/late", absent=True)


def test_one_that_cannot_be_saved_is_named_and_all_go_on(speaker, listener):
    lab = kvm.lab(speaker, listener)
    with listener.start(["sleep", "1000"]), pytest.raises(SavepointRefused, match=r"listener: .*sleep 1000"):
        lab.savepoint()
    for guest in lab.guests:
        guest.run(["true"])
    with pytest.raises(SavepointGone, match="<Lab of speaker, listener> has no savepoint"):
        lab.restore()


def test_the_newest_savepoint_is_restored(lan, speaker):
    lab = kvm.lab(lan)
    assert lab.guests == tuple(lan.guests)
    for text in ("one", "two", "three"):
        speaker.write_text("/run/text", text)
        newest = lab.savepoint(text)
    newest.drop()
    speaker.write_text("/run/text", "four")
    lab.restore()
    assert speaker.read_text("/run/text") == "two"


def test_a_guest_that_was_switched_off_leaves_the_others_as_they_are(speaker, listener):
    savepoint = kvm.lab(speaker, listener).savepoint("in the morning")
    speaker.write_text("/run/late", "x")
    listener.power_off()
    with pytest.raises(SavepointGone, match="listener has ended"):
        savepoint.restore()
    assert speaker.read_text("/run/late") == "x"


@pytest.fixture(scope="module")
def prepared(speaker):
    """Return a guest that a fixture has changed, so that resets load a savepoint, and a list for tests."""
    speaker.write_text("/run/prepared", "x")
    return speaker, []


@pytest.mark.parametrize("number", [1, 2])
def test_a_savepoint_goes_with_the_test_that_has_taken_it(prepared, number):
    speaker, taken = prepared
    for savepoint in taken:
        with pytest.raises(SavepointGone, match="was reset, or switched off, meanwhile"):
            savepoint.restore()
    taken.append(speaker.savepoint(f"of test {number}"))
    speaker.write_text("/run/late", "x")
    taken[-1].restore()
    assert speaker.run(["ls", "/run/prepared", "/run/late"], check=False).stdout == "/run/prepared\n"


@pytest.fixture(scope="module")
def formed(lan, speaker, listener, bystander):
    """A cluster that talks by itself, with an open connection."""
    gossip(lan, speaker, listener, bystander)
    count(speaker, listener, address=listener.address(lan))
    return speaker, listener, bystander


@pytest.mark.parametrize("number", range(4))
def test_a_cluster_that_a_fixture_has_formed_is_the_same_in_each_test(formed, number):
    *counting, bystander = formed
    for guest in formed:
        guest.wait_for_file("/run/mark", absent=True)
    assert lies_after_more_talk(formed) == [0, 0, 0]
    wait_for_more(counting[1])
    for guest in counting:
        assert guest.run(["systemctl", "is-active", "counting"]).stdout == "active\n"
    if number % 2:
        bystander.write_text("/run/mark", "x")
    else:
        for guest in formed:
            guest.write_text("/run/mark", "x")
