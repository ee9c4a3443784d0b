"""Filter expressions: which frames they match, and what the switch drops by them."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from random import Random

import dpkt
import pytest

from pytest_kvm.errors import MissingDependency, SpecError
from pytest_kvm.switch import filters
from pytest_kvm.switch.filters import FrameFilter, compile_filter, split
from pytest_kvm.switch.frames import BrokenStreamError, to_wire
from tests.unit.switch.conftest import EVERYBODY, frame, mac

IPV4, IPV6 = b"\x08\x00", b"\x86\xdd"


def tcp(*, dport=80, flags=dpkt.tcp.TH_ACK, vlan=None):
    segment = dpkt.tcp.TCP(sport=1234, dport=dport, flags=flags)
    packet = dpkt.ip.IP(p=6, src=bytes([10, 0, 0, 1]), dst=bytes([10, 0, 0, 2]), data=segment)
    packet.len = len(packet)
    tag = b"" if vlan is None else b"\x81\x00" + struct.pack(">H", vlan)
    return mac(2) + mac(1) + tag + IPV4 + bytes(packet)


def vrrp(*, v6=False):
    if v6:
        packet = dpkt.ip6.IP6(nxt=112, src=bytes(16), dst=b"\xff\x02" + bytes(13) + b"\x12", data=bytes(20))
        return EVERYBODY + mac(1) + IPV6 + bytes(packet)
    packet = dpkt.ip.IP(p=112, src=bytes([10, 0, 0, 1]), dst=bytes([224, 0, 0, 18]), data=bytes(20))
    return EVERYBODY + mac(1) + IPV4 + bytes(packet)


SYN = tcp(dport=5432, flags=dpkt.tcp.TH_SYN)
STRANGE = frame(mac(2), mac(1))


def is_matched(expression, data):
    return FrameFilter(compile_filter(expression)).matches(data)


@pytest.mark.parametrize(
    ("expression", "matched", "others"),
    [
        ("tcp and dst port 5432", [SYN], [tcp(), STRANGE, vrrp(), b""]),
        ("tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn", [SYN], [tcp(dport=5432), vrrp()]),
        ("vrrp", [vrrp()], [tcp()]),
        ("ip6 proto 112", [vrrp(v6=True)], [vrrp()]),
        ("host 10.0.0.2", [SYN, tcp()], [vrrp(), STRANGE]),
        ("ether src 52:54:00:00:00:01 and ether proto 0x88b5", [STRANGE], [SYN]),
        ("vlan 7 and tcp", [tcp(vlan=7)], [tcp(vlan=8), tcp()]),
        ("greater 1000", [frame(mac(2), mac(1), bytes(1400))], [SYN]),
        ("len >= 0", [SYN, STRANGE, b""], []),
        ("tcp or (vlan and tcp)", [tcp(), tcp(vlan=7)], [STRANGE]),
        ("(vlan and tcp) or tcp", [tcp(vlan=7)], [tcp()]),
        ("not tcp", [STRANGE, tcp(vlan=7)], [tcp()]),
    ],
)
def test_frames_that_an_expression_matches(expression, matched, others):
    assert [is_matched(expression, each) for each in matched] == [True] * len(matched)
    assert [is_matched(expression, each) for each in others] == [False] * len(others)


def test_no_frame_is_read_beyond_its_end():
    for end in range(len(SYN)):
        assert is_matched("tcp and dst port 5432", SYN[:end]) == (end >= 14 + 20 + 4)


@pytest.mark.parametrize(
    ("expression", "mistake"),
    [
        ("tcp and", "'tcp and': .*syntax error"),
        ("tcp port 70000", "illegal port number 70000 > 65535"),
        ("udp and tcp", "expression rejects all packets"),
        ("tcp\0port 1", "'tcp.x00port 1': it has a zero byte"),
        (" \n", r"' .n': it is empty; 'len >= 0' means all frames"),
        ("port 1 or " * 200 + "port 1", "'port 1 or .*…': it is longer than 2000 characters; use a function"),
        ("größer", "syntax error|illegal character"),
        ("ip6 and tcp[tcpflags] & tcp-syn != 0", "expression rejects all packets"),
        ("ip protochain 6", "a guest can send frames for which 'protochain' never ends"),
        ("tcp or ip6 protochain 6", "a guest can send frames for which 'protochain' never ends"),
        ("inbound", "'inbound', 'outbound' and 'ifindex' cannot be told from a frame"),
        ("tcp or not outbound", "use the arguments link and direction, or a function"),
        ("ifindex 2", "cannot be told from a frame"),
    ],
)
def test_mistakes(expression, mistake):
    with pytest.raises(SpecError, match=f"(?s)the filter expression .*{mistake}") as caught:
        compile_filter(expression)
    assert "pcap-filter(7)" in str(caught.value)


def test_threads_compile_at_the_same_time():
    with ThreadPoolExecutor(8) as pool:
        programs = set(pool.map(compile_filter, ["tcp and dst port 5432"] * 64))
    assert programs == {compile_filter("tcp and dst port 5432")}


def test_a_host_without_libpcap(monkeypatch):
    monkeypatch.setattr(filters, "_LIBRARIES", ("libpcap.so.missing",))
    for function in (filters._compiler, filters._bpf_filter):
        monkeypatch.setattr(filters, function.__name__, function.__wrapped__)
    with pytest.raises(MissingDependency, match="need libpcap, which cannot be loaded") as caught:
        compile_filter("tcp")
    assert "libpcap.so.missing: cannot open shared object file" in caught.value.details
    assert "libpcap" in caught.value.resolution


def test_runs_are_the_frames_in_their_order():
    chance = Random(1)
    both = [FrameFilter(compile_filter(each)) for each in ("tcp", "vrrp")]
    for _ in range(200):
        frames = chance.choices([SYN, STRANGE, vrrp(), b""], k=chance.randrange(6))
        rest = to_wire(SYN)[: chance.randrange(5)]
        for used, matching in ((both[:1], [SYN]), (both, [SYN, vrrp()])):
            runs = list(split(b"".join(map(to_wire, frames)) + rest, used))
            flags = [run.is_matched for run in runs for _ in range(run.frames)]
            assert flags == [each in matching for each in frames]
            assert b"".join(run.data for run in runs) == b"".join(map(to_wire, frames))
            assert [run.is_matched for run in runs] == [
                flag for flag, before in zip(flags, [None, *flags], strict=False) if flag is not before
            ]


def test_runs_of_what_cannot_be_frames():
    with pytest.raises(BrokenStreamError):
        list(split(b"\xff" * 8, [FrameFilter(compile_filter("tcp"))]))


# ------------------------------------------------------------ in the switch


@pytest.fixture
def pair(lab):
    """Two cards that know each other."""
    a, b = lab.plug("a"), lab.plug("b")
    a.send(frame(EVERYBODY, mac(1)))
    b.receive()
    b.send(frame(mac(1), mac(2)))
    a.receive()
    return a, b


MIXED = [STRANGE, SYN, SYN, vrrp(), STRANGE, SYN, tcp(), SYN]


@pytest.mark.parametrize(
    ("place", "counted"),
    [
        ({}, ("a", "out")),
        ({"link": "a", "direction": "out"}, ("a", "out")),
        ({"link": "b", "direction": "in"}, ("b", "in")),
    ],
)
@pytest.mark.parametrize("also", [None, "loss", "capture"])
def test_a_filter_drops_what_it_matches(lab, tmp_path, pair, place, counted, also):
    """Alone the filter leaves the switch's fast way as it is; with a fault of another kind it does not."""
    a, b = pair
    number = lab.switch.filter("lan", compile_filter("tcp dst port 5432"), **place)
    if also == "loss":
        lab.switch.fault("lan", "loss", seed="1", settings={"probability": 0.0})
    elif also == "capture":
        lab.switch.capture("lan", tmp_path / "lan.pcapng")
    before = lab.switch.counters("lan")
    a.send(*MIXED)
    assert b.drain() == [each for each in MIXED if each != SYN]
    link, direction = counted
    assert lab.dropped(link, direction) == {"drop": 4}
    after = lab.switch.counters("lan")
    assert after["a"]["out"]["frames"] - before["a"]["out"]["frames"] == len(MIXED)
    assert after["a"]["out"]["bytes"] - before["a"]["out"]["bytes"] == sum(map(len, MIXED))
    assert after["b"]["in"]["frames"] - before["b"]["in"]["frames"] == len(MIXED) - 4
    b.send(frame(mac(1), mac(2)), mac(1) + mac(2) + SYN[12:])
    assert len(a.drain()) == (1 if not place else 2)
    lab.switch.undo(number)
    a.send(*MIXED)
    assert b.drain() == MIXED


def test_several_filters_and_one_for_a_predicate(lab, pair):
    a, b = pair
    seen = []

    def judge(data):
        seen.append(data)
        return data == STRANGE

    lab.switch.filter("lan", compile_filter("vrrp"))
    lab.switch.filter("lan", compile_filter("tcp dst port 5432"), link="a", direction="out")
    lab.switch.ask("lan", judge)
    a.send(*MIXED)
    assert b.drain() == [tcp()]
    assert seen == [STRANGE, STRANGE, tcp()]
    assert lab.dropped("a", "out") == {"drop": 7}


def test_frames_to_several_guests_are_filtered_for_each(lab, pair):
    a, b = pair
    c = lab.plug("c")
    lab.switch.filter("lan", compile_filter("ether broadcast"), link="b", direction="in")
    a.send(frame(EVERYBODY, mac(1)), STRANGE)
    assert c.drain() == [frame(EVERYBODY, mac(1))]
    assert b.drain() == [STRANGE]


def test_a_card_that_sends_no_frames_is_hung_up_under_a_filter(lab, pair):
    a, b = pair
    lab.switch.filter("lan", compile_filter("tcp"))
    a.send(SYN, STRANGE)
    assert b.receive() == STRANGE
    a.socket.sendall(b"\xff" * 8)
    with pytest.raises(EOFError):
        a.receive()
