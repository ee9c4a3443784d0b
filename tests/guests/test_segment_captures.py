"""What captures show of guests: which packets pass, and that none passes a partition."""

from __future__ import annotations

import time

import pytest

from pytest_kvm.errors import WaitTimeout

CONNECT = """
import socket, sys
with socket.socket() as connection:
    connection.settimeout(1)
    print(connection.connect_ex((sys.argv[1], 5432)))
"""


def test_packets_of_a_connection_that_is_refused(lan, speaker, listener):
    with lan.capture() as crossed, listener.nics[0].capture() as at_listener:
        speaker.run(["python3", "-c", CONNECT, listener.address(lan)])
        syn = crossed.wait_for_packet(lambda packet: packet.dport == 5432)
        refused = crossed.wait_for_packet("tcp[tcpflags] & tcp-rst != 0")
    assert (syn.tcp_flags, syn.link, str(syn.src)) == ({"SYN"}, "speaker", speaker.address(lan))
    assert (refused.link, refused.sport, refused.dst_mac) == ("listener", 5432, speaker.nics[0].mac)
    assert syn.time < refused.time
    [seen] = [packet for packet in at_listener if packet.dport == 5432]
    assert (seen.raw, seen.direction) == (syn.raw, "in")


def test_no_frame_passes_a_partition_from_the_moment_on_that_it_was_made(lan, speaker, listener):
    speaker.start(["ping", "-q", "-i", "0.01", listener.address(lan)])
    with listener.nics[0].capture() as at_listener:
        at_listener.wait_for_packet(lambda packet: packet.protocol == "icmp")
        with lan.partition({speaker}, {listener}):
            made = time.time()
            sent = speaker.nics[0].counters["out"]["frames"]
            at_listener.assert_no_packet(
                lambda packet: packet.time > made and packet.direction == "in", during=1
            )
            assert speaker.nics[0].counters["out"]["frames"] > sent
        at_listener.wait_for_packet(lambda packet: packet.time > made and packet.direction == "in")


def test_a_packet_that_does_not_come(lan, speaker, listener):
    with lan.capture() as crossed:
        speaker.run(["ping", "-c", "1", "-W", "5", listener.address(lan)])
        with pytest.raises(WaitTimeout, match="lan: no packet matched <lambda> within 0.5 s") as caught:
            crossed.wait_for_packet(lambda packet: packet.dport == 1, timeout=0.5)
    assert "<Packet icmp 10.1.0." in caught.value.details


def test_a_capture_goes_on_over_a_reboot_and_a_savepoint(lan, speaker, listener):
    with speaker.nics[0].capture() as at_speaker:
        savepoint = speaker.savepoint()
        speaker.reboot(hard=True)
        speaker.run(["ping", "-c", "1", "-W", "5", listener.address(lan)])
        savepoint.restore()
        listener.run(["ping", "-c", "1", "-W", "5", speaker.address(lan)])
        assert [packet.direction for packet in at_speaker if packet.protocol == "icmp"] == [
            "out",
            "in",
            "in",
            "out",
        ]


@pytest.fixture(scope="module")
def of_all_tests(lan, speaker):
    """Begun once, for the tests that follow."""
    return lan.capture(link=speaker)


@pytest.mark.parametrize("number", [1, 2])
def test_a_fixtures_capture_goes_on_over_resets(of_all_tests, speaker, listener, lan, number):
    assert not speaker.run(["ls", "/root"]).stdout, "it was reset"
    speaker.write_text("/root/changed", "")
    speaker.run(["ping", "-c", "1", "-W", "5", listener.address(lan)])
    assert [packet.direction for packet in of_all_tests if packet.protocol == "icmp"] == [
        "out",
        "in",
    ] * number
