"""Guests on a segment between two tests: what frames changed is undone, no frame reaches the next test."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

import pytest_kvm as kvm
from pytest_kvm.handles.guest import running_machine
from pytest_kvm.provision.guest_state import GuestState
from tests.guest_specs import SMALL

KIND = "0x88b5"
"""The type of frames for local experiments (IEEE 802), which no kernel answers."""
LISTEN = f"""
import socket, sys
heard = set()
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons({KIND})) as card:
    card.bind((sys.argv[1], {KIND}))
    print("listening", flush=True)
    while True:
        word = card.recv(2000)[14:].rstrip(b"\\0").decode()
        if word not in heard:
            heard.add(word)
            with open("/run/heard", "a") as log:
                print(word, file=log)
"""
SAY = f"""
import socket, sys
frame = b"\\xff" * 6 + bytes(6) + bytes.fromhex("{KIND[2:]}") + sys.argv[2].encode()
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as card:
    card.bind((sys.argv[1], 0))
    times = int(sys.argv[3])
    while times:
        card.send(frame.ljust(1400, b"\\0"))
        times -= 1
"""
"""Sends a word to everybody; a negative number of times is for ever."""
MACHINES: dict[str, str] = {}
RESETS: list[tuple[set[str], float, float]] = []
"""Guests that were reset together, with the seconds that each took, in sum, and the seconds of all."""


@pytest.fixture(scope="module", autouse=True)
def resets_are_noted():
    real = GuestState.restore_all

    def restore_all(state, points):
        begun = time.monotonic()
        outcomes = real(state, points)
        took = time.monotonic() - begun
        names = {each.machines.current.request.name for each, _ in points}
        RESETS.append((names, sum(outcome.seconds for outcome in outcomes), took))
        return outcomes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GuestState, "restore_all", restore_all)
        yield


@pytest.fixture(scope="module")
def listener(listener):
    """Listens since before each test's savepoint, so it hears whatever comes after a reset."""
    listener.write_text("/run/heard", "")
    listener.write_text("/run/listen.py", LISTEN)
    device = listener.nics[0].device
    listener.run(["sh", "-c", f"nohup python3 /run/listen.py {device} >/run/listener 2>&1 &"])
    listener.wait_until("grep -q listening /run/listener")
    return listener


def say(guest, word, *, times=1):
    guest.run(["python3", "-c", SAY, guest.nics[0].device, word, str(times)])


def say_for_ever(guest, word):
    guest.write_text("/run/say.py", SAY)
    command = f"nohup python3 /run/say.py {guest.nics[0].device} {word} -1 >/dev/null 2>&1 &"
    guest.run(["sh", "-c", command])


def machine_of(guest):
    """Return which machine a guest is, without using the guest."""
    machine = running_machine(guest)
    return machine.domain.uuid


def test_a_neighbour_hears_a_word(speaker, listener):
    say(speaker, "hello")
    listener.wait_until("grep -q hello /run/heard")


def test_it_is_undone_also_if_the_test_has_not_used_the_neighbour(speaker, bystander, listener):
    assert listener.read_text("/run/heard") == ""
    before = listener.nics[0].counters["in"]["frames"]
    say(speaker, "again")
    assert listener.nics[0].counters["in"]["frames"] > before


def test_all_guests_of_a_test_are_reset_at_the_same_time(speaker, bystander, listener):
    names, one_by_one, together = RESETS[-1]
    assert names == {"speaker", "bystander", "listener"}
    assert together < one_by_one
    say(speaker, "and again")


def test_it_is_undone_by_a_use_of_the_speaker(speaker, listener):
    say(speaker, "once more")
    listener.wait_until("test -s /run/heard")
    assert listener.read_text("/run/heard") == "once more\n"


def test_a_paused_guest_is_flooded(speaker, listener):
    listener.pause()
    say_for_ever(speaker, "flood")
    while not listener.nics[0].counters["in"]["dropped"].get("guest too slow"):
        speaker.run(["true"])


def test_no_frame_of_the_flood_reaches_the_next_test(speaker, listener):
    say(speaker, "after")
    listener.wait_until("grep -q after /run/heard")
    assert listener.read_text("/run/heard") == "after\n"


def test_a_guest_that_runs_is_flooded(speaker, listener):
    say_for_ever(speaker, "flood")
    listener.wait_until("grep -q flood /run/heard")


def test_the_flood_goes_on_and_gets_nowhere(lan):
    before = dict(lan.counters)
    assert set(before) == {"speaker", "bystander", "listener"}
    for _ in range(1000):
        assert dict(lan.counters) == before


def test_no_frame_of_that_flood_reaches_the_next_test_either(speaker, listener):
    say(speaker, "after")
    listener.wait_until("grep -q after /run/heard")
    assert listener.read_text("/run/heard") == "after\n"


def test_a_guest_that_is_used(bystander):
    bystander.run(["true"])
    MACHINES["bystander"] = machine_of(bystander)


def test_it_is_put_back_before_another_joins(lan, kvm_guests):
    """The boot of the other may need it."""
    late = kvm_guests.start(replace(SMALL, nics=[kvm.Nic(lan)]), name="late")
    (guest,) = [each for each in lan.guests if each.name == "bystander"]
    assert machine_of(guest) != MACHINES["bystander"]
    late.run(["ping", "-c", "1", "-W", "20", "bystander"])


def test_guests_on_a_segment_of_which_one_is_used(speaker, bystander):
    speaker.run(["true"])
    MACHINES.update({guest.name: machine_of(guest) for guest in (speaker, bystander)})


def test_the_other_is_not_reset(speaker, bystander):
    assert machine_of(speaker) != MACHINES["speaker"]
    assert machine_of(bystander) == MACHINES["bystander"]
