"""Faults of a segment, as guests see them, and their end after the test or fixture that set them."""

from __future__ import annotations

import re
import statistics

import pytest

CARRIERS: dict[str, str] = {}


def ping(guest, target, *, count=1, interval=0.2):
    """Send echo requests; return how many were answered, and the shortest time in milliseconds."""
    argv = ["ping", "-c", str(count), "-i", str(interval), "-W", "1", target.address(guest.nics[0].segment)]
    said = guest.run(argv, check=False).stdout
    times = [float(each) for each in re.findall(r"time=([\d.]+) ms", said)]
    return len(times), min(times, default=None)


def reaches(guest, target):
    return ping(guest, target, count=2)[0] > 0


def carrier(guest):
    """Return what the guest's kernel says of its cable, without a use of the network."""
    return guest.run(["cat", f"/sys/class/net/{guest.nics[0].device}/carrier"]).stdout.strip()


def test_a_partition(lan, speaker, listener, bystander):
    assert reaches(speaker, listener)
    with lan.partition({speaker}, {listener, bystander}):
        assert not reaches(speaker, listener)
        assert reaches(bystander, listener)
    assert reaches(speaker, listener)


def test_guests_are_isolated(lan, speaker, listener):
    lan.isolate(listener)
    assert not reaches(speaker, listener)


def test_the_isolation_has_ended_with_its_test(lan, speaker, listener):
    assert lan.faults == ()
    assert reaches(speaker, listener)


@pytest.mark.parametrize("kind", ["while it runs", "over a reboot", "while it is off"])
def test_a_cable_that_is_pulled_out(lan, speaker, listener, kind):
    with lan.unplug(listener):
        if kind == "over a reboot":
            listener.reboot(hard=True)
        elif kind == "while it is off":
            listener.power_off()
            listener.power_on()
        assert carrier(listener) == "0"
        assert not reaches(speaker, listener)
    listener.wait_until(f"grep -q 1 /sys/class/net/{listener.nics[0].device}/carrier")
    listener.wait_until(["ping", "-c", "1", "-W", "1", speaker.address(lan)])


def test_a_savepoint_brings_no_cable_back(lan, speaker, listener):
    savepoint = listener.savepoint()
    with lan.unplug(listener):
        pulled_out = listener.savepoint()
        savepoint.restore()
        assert carrier(listener) == "0"
        assert not reaches(speaker, listener)
    pulled_out.restore()
    listener.wait_until(f"grep -q 1 /sys/class/net/{listener.nics[0].device}/carrier")
    listener.wait_until(["ping", "-c", "1", "-W", "1", speaker.address(lan)])


def test_the_guests_change_by_a_fault_is_undone(lan, listener):
    """The next test sees no change of the carrier in the guest's log: it is as it was."""
    CARRIERS["changes before"] = listener.read_text(
        f"/sys/class/net/{listener.nics[0].device}/carrier_changes"
    )
    with lan.unplug(listener):
        pass


def test_it_is_undone(lan, listener):
    changes = listener.read_text(f"/sys/class/net/{listener.nics[0].device}/carrier_changes")
    assert changes == CARRIERS["changes before"]


@pytest.fixture(scope="class")
def unplugged(lan, listener):
    with lan.unplug(listener):
        yield


class TestUnderAFaultOfAFixture:
    """The fault ends with the class."""

    @pytest.mark.parametrize("time", [1, 2])
    def test_it_holds_for_all_tests_and_over_resets(self, unplugged, speaker, listener, time):
        assert carrier(listener) == "0"
        assert not listener.run(["test", "-e", "/root/was-here"], check=False).ok
        listener.write_text("/root/was-here", "")
        assert not reaches(speaker, listener)

    @pytest.mark.parametrize("time", [1, 2])
    def test_a_test_may_plug_the_cable_in(self, lan, unplugged, speaker, listener, time):
        assert carrier(listener) == "0"
        lan.plug(listener)
        listener.wait_until(["ping", "-c", "1", "-W", "1", speaker.address(lan)])


def test_after_the_fixture_the_cable_is_in(lan, speaker, listener):
    listener.wait_until(["ping", "-c", "1", "-W", "1", speaker.address(lan)])
    assert carrier(listener) == "1"


def test_a_delay_is_what_was_asked_for(lan, speaker, listener):
    """A busy host delays frames, too, but not each of ten."""
    _, usual = ping(speaker, listener, count=10)
    with lan.delay(0.2, link=listener, direction="in"):
        _, one_way = ping(speaker, listener, count=10)
    with lan.delay(0.2, link=listener):
        _, both_ways = ping(speaker, listener, count=10)
    assert 200 <= one_way < usual + 250
    assert 400 <= both_ways < usual + 450


def test_loss_duplicates_and_corruption_are_seen_by_the_guest(lan, speaker, listener):
    with lan.loss(0.5, link=listener, direction="in"):
        answered, _ = ping(speaker, listener, count=40, interval=0.05)
    assert 5 <= answered <= 35
    with lan.duplicate(1.0, link=speaker, direction="in"):
        said = speaker.run(["ping", "-c", "3", "-i", "0.2", listener.address(lan)]).stdout
    assert said.count("(DUP!)") >= 2
    with lan.corrupt(1.0, link=listener, direction="in"):
        assert ping(speaker, listener, count=5)[0] < 5


def test_frames_overtake_each_other_where_some_are_held_back(lan, speaker, listener):
    argv = ["ping", "-c", "40", "-i", "0.02", "-W", "2", listener.address(lan)]
    usual = re.findall(r"icmp_seq=(\d+)", speaker.run(argv).stdout)
    with lan.reorder(0.5, hold=0.2, link=listener, direction="in"):
        seen = re.findall(r"icmp_seq=(\d+)", speaker.run(argv).stdout)
    assert sorted(seen, key=int) == usual
    assert seen != usual


def test_jitter_varies_delays(lan, speaker, listener):
    def times():
        argv = ["ping", "-c", "15", "-i", "0.5", listener.address(lan)]
        return [float(each) for each in re.findall(r"time=([\d.]+) ms", speaker.run(argv).stdout)]

    usual = statistics.pstdev(times())
    with lan.jitter(0.4, link=listener, direction="in"):
        assert statistics.pstdev(times()) > usual + 40


def is_syn_to_5432(packet):
    return packet.dport == 5432 and packet.tcp_flags == {"SYN"}


@pytest.mark.parametrize(
    "condition", [is_syn_to_5432, "dst port 5432 and tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn"]
)
def test_only_some_packets_are_dropped(lan, speaker, listener, condition):
    connect = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3)"
    argv = ["python3", "-c", connect, listener.address(lan)]
    before = lan.counters["speaker"]["out"]["dropped"].get("drop", 0)
    with lan.drop(condition):
        assert "timed out" in speaker.run([*argv, "5432"], check=False).stderr
        assert "refused" in speaker.run([*argv, "5433"], check=False).stderr
    assert lan.counters["speaker"]["out"]["dropped"]["drop"] >= before + 2


SERVE = """
import socket, sys
with socket.create_server(("", 5001)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    with connection:
        while connection.recv(1 << 16):
            pass
"""
SEND = """
import socket, sys, time
data = bytes(1 << 16)
with socket.create_connection((sys.argv[1], 5001)) as connection:
    begun = time.monotonic()
    for _ in range(int(sys.argv[2])):
        connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)
    print(time.monotonic() - begun)
"""


def test_a_rate_limits_what_tcp_gets_through(lan, speaker, listener):
    """2 Mbit/s pass at most; TCP's own headers and pauses leave a little less to the data."""
    server = listener.start(["python3", "-c", SERVE])
    next(iter(server.lines()))
    with lan.rate("2Mbit", queue="32KiB", link=listener, direction="in"):
        seconds = float(speaker.run(["python3", "-c", SEND, listener.address(lan), "16"]).stdout)
    server.wait()
    assert 1.2e6 < 16 * 65536 * 8 / seconds < 2.05e6
