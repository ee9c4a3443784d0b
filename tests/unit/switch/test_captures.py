from __future__ import annotations

import contextlib
import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dpkt
import pytest

from pytest_kvm.errors import SwitchFailed
from pytest_kvm.switch.packets import Packet
from pytest_kvm.switch.pcapng import CaptureFile, CaptureReader
from tests.unit.switch.conftest import EVERYBODY, Card, Lab, frame, mac


def content(path):
    with path.open("rb") as file:
        return [(each.frame, each.link, each.direction) for each in CaptureReader(file)]


def test_a_links_capture_has_what_passed_it_in_both_directions(lab, tmp_path):
    a, b, c = lab.plug("a"), lab.plug("b"), lab.plug("c")
    path = tmp_path / "b.pcapng"
    number = lab.switch.capture("lan", path, links=["b"])
    first, second = frame(EVERYBODY, mac(1)), frame(mac(1), mac(2), b"x" * 9000)
    a.send(first)
    assert b.receive() == first
    b.send(second)
    assert a.receive() == second
    c.send(frame(mac(1), mac(3), b"not for b"))
    assert a.receive()
    lab.switch.fault("lan", "loss", seed="1", settings={"probability": 1.0}, link="b", direction="in")
    a.send(first)
    c.receive()
    c.receive()
    lab.switch.wait_capture(number, frames=1, timeout=5)
    assert lab.switch.flush_capture(number) == (2, "")
    lab.switch.wait_capture(number, frames=2, timeout=0.1)
    passed = [(first, "b", "in"), (second, "b", "out")]
    assert content(path) == passed
    assert lab.switch.end_capture(number) == (2, "")
    a.send(first)
    assert content(path) == passed


def test_a_segments_capture_has_what_crossed_it_once(lab, tmp_path):
    a, b, c = lab.plug("a"), lab.plug("b"), lab.plug("c")
    path = tmp_path / "lan.pcapng"
    number = lab.switch.capture("lan", path, comment="the segment lan")
    before = time.time()
    for card, sender in ((a, 1), (b, 2), (c, 3)):
        card.send(frame(EVERYBODY, mac(sender)))
    assert [len(card.drain()) for card in (a, b, c)] == [2, 2, 2]
    lab.switch.cut("lan", [])
    a.send(frame(EVERYBODY, mac(1), b"nobody hears it"))
    assert b.drain(timeout=0.1) == []
    sent = {(frame(EVERYBODY, mac(sender)), link, "out") for sender, link in ((1, "a"), (2, "b"), (3, "c"))}
    assert len(content(path)) == 3
    assert set(content(path)) == sent
    with path.open("rb") as file:
        assert all(before <= each.time <= time.time() for each in CaptureReader(file))
    with path.open("rb") as file:  # another's reader
        read = list(dpkt.pcapng.Reader(file))
    assert {raw for _, raw in read} == {each for each, *_ in sent}
    assert all(before <= moment <= time.time() for moment, _ in read)
    assert b"the segment lan" in path.read_bytes()
    assert lab.switch.end_capture(number).frames == 3


def test_a_file_is_read_while_it_is_written(tmp_path):
    """Whatever part of a block is there, the reader waits for the rest."""
    path, growing = tmp_path / "whole.pcapng", tmp_path / "growing.pcapng"
    file = CaptureFile(path, comment="", limit=1 << 20)
    frames = [frame(EVERYBODY, mac(sender), bytes(sender)) for sender in (1, 2, 3)]
    for each, link in zip(frames, "aba", strict=True):
        file.take(each, link=link, direction="in")
    file.close()
    whole = path.read_bytes()
    seen = []
    with growing.open("wb") as target, growing.open("rb") as source:
        reader = CaptureReader(source)
        for byte in whole:
            target.write(bytes([byte]))
            target.flush()
            seen += reader
    assert [(each.frame, each.link) for each in seen] == list(zip(frames, "aba", strict=True))


def test_a_file_has_a_limit(lab, tmp_path):
    a, b = lab.plug("a"), lab.plug("b")
    number = lab.switch.capture("lan", tmp_path / "lan.pcapng", limit=5000)
    for _ in range(5):
        a.send(frame(EVERYBODY, mac(1), bytes(1400)))
        assert b.receive()
    lab.switch.wait_capture(number, frames=9, timeout=5)
    problem = "the file has reached its limit of 5000 bytes"
    assert lab.switch.flush_capture(number) == (3, problem)
    assert lab.switch.end_capture(number) == (3, problem)
    assert len(content(tmp_path / "lan.pcapng")) == 3
    assert (tmp_path / "lan.pcapng").stat().st_size <= 5000


def test_a_capture_that_is_ended_is_waited_for_no_longer(lab, tmp_path):
    number = lab.switch.capture("lan", tmp_path / "lan.pcapng")
    with ThreadPoolExecutor() as pool:
        waits = pool.submit(lab.switch.wait_capture, number, frames=0, timeout=30)
        lab.switch.end_capture(number)
        waits.result(10)


def test_nobody_is_waited_for_any_longer_than_asked(lab, tmp_path):
    """An order that is not waited for any more is forgotten; else each turn of the loop looks at it."""
    number = lab.switch.capture("lan", tmp_path / "lan.pcapng")
    for _ in range(3):
        lab.switch.wait_capture(number, frames=0, timeout=0.01)
    assert lab.switch._answers == {}
    assert lab.switch.counters("lan") == {}


def test_names_of_any_length(lab, tmp_path):
    lab.switch.capture("lan", tmp_path / "lan.pcapng", comment="x" * 70_000 + "\udcff")
    a = lab.plug("a")
    lab.switch.add_link("lan", "b" * 5000)
    number = lab.switch.capture("lan", tmp_path / "b.pcapng", links=["b" * 5000])
    lab.switch.attach("lan", "b" * 5000, port=lab.port("b"))
    with contextlib.closing(Card(tmp_path / "b.sock")) as b:
        a.send(frame(EVERYBODY, mac(1)))
        assert b.receive()
    lab.switch.flush_capture(number)
    assert content(tmp_path / "b.pcapng")[0][1] == "b" * 4096


def test_a_capture_that_cannot_be_written_says_so(lab, tmp_path):
    a, b = lab.plug("a"), lab.plug("b")
    with pytest.raises(SwitchFailed, match="No such file"):
        lab.switch.capture("lan", tmp_path / "missing" / "lan.pcapng")
    (tmp_path / "lan.pcapng").touch()
    with pytest.raises(SwitchFailed, match="exists"):
        lab.switch.capture("lan", tmp_path / "lan.pcapng")
    a.send(frame(EVERYBODY, mac(1)))
    assert b.receive()


def tcp(flags, *, sport=1234, dport=80, data=b"", v6=False):
    segment = dpkt.tcp.TCP(sport=sport, dport=dport, flags=flags, data=data)
    if v6:
        inside = dpkt.ip6.IP6(
            nxt=6, src=b"\xfd" + bytes(14) + b"\x01", dst=b"\xfd" + bytes(14) + b"\x02", data=segment
        )
        inside.plen = len(segment)
        return mac(2) + mac(1) + b"\x86\xdd" + bytes(inside)
    inside = dpkt.ip.IP(p=6, src=bytes([10, 0, 0, 1]), dst=bytes([10, 0, 0, 2]), data=segment)
    inside.len = len(inside)
    return mac(2) + mac(1) + b"\x08\x00" + bytes(inside)


def test_a_packet_says_what_tests_ask_for():
    packet = Packet(tcp(dpkt.tcp.TH_SYN | dpkt.tcp.TH_ACK, data=b"hello"), 1.5)
    assert (packet.protocol, str(packet.src), str(packet.dst)) == ("tcp", "10.0.0.1", "10.0.0.2")
    assert (packet.sport, packet.dport, packet.tcp_flags) == (1234, 80, {"SYN", "ACK"})
    assert (packet.src_mac, packet.dst_mac, packet.vlan) == ("52:54:00:00:00:01", "52:54:00:00:00:02", None)
    assert packet.payload == b"hello"
    assert repr(packet) == "<Packet tcp 10.0.0.1 port 1234 > 10.0.0.2 port 80 ACK SYN, 59 bytes>"


def test_a_packet_of_ipv6_of_a_vlan_and_of_neither():
    packet = Packet(tcp(dpkt.tcp.TH_RST, v6=True), 0)
    assert (packet.protocol, str(packet.src), packet.dport, packet.tcp_flags) == (
        "tcp",
        "fd00::1",
        80,
        {"RST"},
    )
    whole = tcp(dpkt.tcp.TH_SYN)
    tagged = Packet(whole[:12] + b"\x81\x00\x00\x0a" + whole[12:], 0)
    assert (tagged.vlan, tagged.dport) == (10, 80)
    strange = Packet(frame(mac(2), mac(1)), 0)
    assert (strange.protocol, strange.src, strange.dport, strange.tcp_flags) == ("0x88b5", None, None, set())
    arp = dpkt.arp.ARP(spa=bytes([10, 0, 0, 1]), tpa=bytes([10, 0, 0, 2]))
    asked = Packet(EVERYBODY + mac(1) + b"\x08\x06" + bytes(arp), 0)
    assert (asked.protocol, str(asked.src), str(asked.dst)) == ("arp", "10.0.0.1", "10.0.0.2")


def test_what_is_cut_short_or_nonsense_is_a_packet_all_the_same():
    whole = tcp(dpkt.tcp.TH_SYN, data=b"data")
    for end in range(len(whole)):
        packet = Packet(whole[:end], 0)
        assert repr(packet)
        assert packet.payload is not None
    for seed in range(300):
        broken = bytearray(whole)
        broken[14 + seed % 40] = seed % 256
        packet = Packet(bytes(broken), 0)
        assert (repr(packet), packet.payload) is not None


def test_frames_that_could_not_be_written_are_not_counted_as_written(tmp_path):
    capture = CaptureFile(tmp_path / "lan.pcapng", comment="", limit=1 << 20)
    capture.take(frame(mac(1), mac(2)), link="a", direction="out")
    capture.flush()
    capture._file.close()
    with Path("/dev/full").open("wb") as full:
        capture._file = full
        capture.take(frame(mac(1), mac(2)), link="a", direction="out")
        capture.flush()
        assert capture.written.frames == 1
        assert "No space left" in capture.written.problem
        with contextlib.suppress(OSError):
            full.close()


def test_captures_and_cards_are_bounded_by_the_hard_limit_of_descriptors(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A thread that waits in accept(2) has a number that /proc does not show: room is what can be taken.
    room = [os.dup(0) for _ in range(50)]
    low = max(room) + 1
    for descriptor in room:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
    try:
        lab = Lab(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with contextlib.closing(lab):
        for number in range(low + 50):
            lab.switch.capture("lan", tmp_path / f"{number}.pcapng")
        a, b = lab.plug("a"), lab.plug("b")
        a.send(frame(EVERYBODY, mac(1)))
        assert b.receive()
