from __future__ import annotations

import os
import signal
import socket
import struct
import threading

import psutil
import pytest

from pytest_kvm.errors import SwitchFailed
from pytest_kvm.waiting import NotYet, wait_until
from tests.unit.switch.conftest import EVERYBODY, Card, frame, mac


def test_unknown_and_group_addresses_go_everywhere_known_ones_to_one(lab):
    a, b, c = lab.plug("a"), lab.plug("b"), lab.plug("c")
    first = frame(mac(2), mac(1), b"who is there")
    a.send(first)
    assert (b.receive(), c.receive()) == (first, first)
    answer = frame(mac(1), mac(2), b"me")
    b.send(answer)
    assert a.receive() == answer
    again = frame(mac(2), mac(1), b"you then")
    everybody = frame(EVERYBODY, mac(1), b"all")
    a.send(again, everybody)
    assert (b.receive(), b.receive()) == (again, everybody)
    assert c.drain() == [everybody]
    assert a.drain(timeout=0.05) == []


def test_many_frames_arrive_in_order_to_whom_they_are_meant(lab):
    cards = {number: lab.plug(f"guest{number}") for number in (1, 2, 3)}
    for number, card in cards.items():
        card.send(frame(EVERYBODY, mac(number)))
    for card in cards.values():
        assert len(card.drain()) == 2
    sent = [frame(mac(2 + (n // 7) % 2), mac(1), f"{n}".encode() * (1 + n % 300)) for n in range(600)]
    cards[1].send(*sent)
    for number in (2, 3):
        assert cards[number].drain() == [each for each in sent if each[:6] == mac(number)]
    counted = lab.switch.counters("lan")
    assert counted["guest1"]["out"] == {
        "frames": 601,
        "bytes": 19 + sum(map(len, sent)),
        "dropped": {},
    }
    assert counted["guest2"]["in"]["frames"] + counted["guest3"]["in"]["frames"] == 604


def test_frames_come_in_pieces(lab):
    a, b = lab.plug("a"), lab.plug("b")
    whole = b"".join(
        struct.pack(">I", len(each)) + each for each in (frame(mac(2), mac(1), b"x" * n) for n in (0, 9000))
    )
    for at in range(0, len(whole), 1000):
        a.socket.sendall(whole[at : at + 1000])
    assert [len(each) for each in b.drain()] == [14, 9014]


def test_vlan_tags_and_jumbo_frames_pass_and_each_vlan_has_stations_of_its_own(lab):
    a, b, c = lab.plug("a"), lab.plug("b"), lab.plug("c")
    a.send(frame(EVERYBODY, mac(1), vlan=10))
    c.send(frame(EVERYBODY, mac(1), vlan=20))
    for card in (a, b, c):
        card.drain(timeout=0.1)
    jumbo = frame(mac(1), mac(2), b"j" * 65000, vlan=10)
    other = frame(mac(1), mac(2), b"o", vlan=20)
    b.send(jumbo, other)
    assert a.drain() == [jumbo]
    assert c.drain() == [other]


def test_a_frames_priority_makes_no_other_station(lab):
    """The tag's upper four bits are priority and drop eligibility, IEEE 802.1Q."""
    a, b, c = lab.plug("a"), lab.plug("b"), lab.plug("c")
    a.send(frame(EVERYBODY, mac(1), vlan=10))
    assert b.receive()
    assert c.receive()
    urgent = frame(mac(1), mac(2), b"urgent", vlan=0xE000 | 10)
    b.send(urgent)
    assert a.receive() == urgent
    assert c.receive(timeout=0.2) is None


def test_a_frame_that_ends_before_its_tag_harms_nobody(lab):
    a, b = lab.plug("a"), lab.plug("b")
    cut_off = frame(EVERYBODY, mac(1), b"", vlan=10)[:14]
    a.send(cut_off, frame(EVERYBODY, mac(1)))
    assert b.receive() == cut_off
    assert b.receive() == frame(EVERYBODY, mac(1))


@pytest.mark.parametrize("length", [0, 1, 13])
def test_malformed_frames_are_counted_and_harm_nobody(lab, length):
    a, b = lab.plug("a"), lab.plug("b")
    good = frame(EVERYBODY, mac(1))
    a.send(good, b"\xff" * length, good)
    assert b.drain() == [good, good]
    assert lab.dropped("a", "out") == {"malformed": 1}


def test_what_cannot_be_frames_ends_its_own_connection_only(lab):
    a, b, c = lab.plug("a"), lab.plug("b"), lab.plug("c")
    a.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(EOFError):
        a.receive()
    assert list(lab.dropped("a", "out").values()) == [1]
    b.send(frame(EVERYBODY, mac(2)))
    assert c.receive() == frame(EVERYBODY, mac(2))


def test_a_guest_that_does_not_listen_loses_frames_and_holds_up_nobody(lab):
    deaf, b, c = lab.plug("deaf"), lab.plug("b"), lab.plug("c")
    sent = [frame(EVERYBODY, mac(2), bytes(1400)) for _ in range(3000)]
    for at in range(0, len(sent), 100):
        b.send(*sent[at : at + 100])
        assert len([c.receive() for _ in range(100)]) == 100
    lost = lab.dropped("deaf", "in")["guest too slow"]
    assert 0 < lost < 3000
    assert len(deaf.drain()) == 3000 - lost


def test_a_card_without_a_cable_sends_in_vain_and_is_in_step_when_it_gets_one(lab):
    path = lab.port("early")
    early = Card(path)
    lab.cards.append(early)
    b = lab.plug("b")
    whole = struct.pack(">I", 19) + frame(EVERYBODY, mac(1))
    early.socket.sendall(whole + whole[:10])
    b.send(frame(EVERYBODY, mac(2)))
    lab.switch.add_link("lan", "early")
    while lab.switch.counters("lan")["b"]["out"]["frames"] < 1:
        pass
    lab.switch.attach("lan", "early", port=path)
    early.socket.sendall(whole[10:] + whole)
    assert b.drain() == [frame(EVERYBODY, mac(1))]


def test_frames_to_a_guest_that_has_ended_are_not_delivered(lab):
    a, b = lab.plug("a"), lab.plug("b")
    b.close()

    def lost():
        a.send(frame(EVERYBODY, mac(1)))
        if lab.dropped("b", "in").get("unplugged", 0) == 0:
            raise NotYet("delivered")

    wait_until(lost, describe="frames to be lost", timeout=5, every=0.01)
    before = lab.switch.counters("lan")["b"]["in"]["frames"]
    a.send(*[frame(EVERYBODY, mac(1))] * 5)
    wait_until(lost, describe="frames to be lost", timeout=5, every=0.01)
    assert lab.switch.counters("lan")["b"]["in"]["frames"] == before


def test_a_cable_stays_where_it_is_if_it_cannot_be_moved(lab):
    a, b = lab.plug("a"), lab.plug("b")
    with pytest.raises(SwitchFailed, match=r"gone\.sock"):
        lab.switch.attach("lan", "a", port=lab.folder / "gone.sock")
    a.send(frame(EVERYBODY, mac(1)))
    assert b.receive() == frame(EVERYBODY, mac(1))


def test_a_cable_moves_to_another_card(lab):
    former, b = lab.plug("a"), lab.plug("b")
    former.send(frame(EVERYBODY, mac(1)))
    b.receive()
    fresh = lab.plug("a", port="a2")
    b.send(frame(mac(1), mac(2)))
    assert fresh.receive() == frame(mac(1), mac(2))
    assert former.drain(timeout=0.05) == []
    lab.switch.close_port(lab.folder / "a.sock")
    with pytest.raises(EOFError):
        former.receive()
    assert lab.switch.counters("lan")["a"]["out"]["frames"] == 1, "the link's numbers go on"


def test_a_flood_of_addresses_does_not_fill_the_switch(lab):
    a, b = lab.plug("a"), lab.plug("b")
    before = psutil.Process(lab.switch.pid).memory_info().rss
    for _ in range(200):
        a.send(*(frame(mac(9), b"\x02" + os.urandom(5)) for _ in range(500)))
        assert len([b.receive() for _ in range(500)]) == 500
    assert psutil.Process(lab.switch.pid).memory_info().rss - before < 32 << 20


def test_names_are_unique_and_orders_say_what_is_wrong(lab):
    lab.plug("a")
    for order, wrong in (
        (lambda: lab.switch.add_segment("lan"), "a segment lan"),
        (lambda: lab.switch.add_link("lan", "a"), "a link a on lan"),
        (lambda: lab.switch.add_link("wan", "a"), "wan"),
        (lambda: lab.switch.open_port(lab.folder / "missing" / "a.sock"), "No such file"),
        (lambda: lab.switch.open_port(lab.folder / ("x" * 120)), "too long"),
    ):
        with pytest.raises(SwitchFailed, match=wrong):
            order()


def test_removed_links_and_segments_are_gone(lab):
    a, b = lab.plug("a"), lab.plug("b")
    lab.switch.remove_link("lan", "b")
    a.send(frame(EVERYBODY, mac(1)))
    assert b.drain(timeout=0.1) == []
    lab.switch.remove_segment("lan")
    a.send(frame(EVERYBODY, mac(1)))
    with pytest.raises(SwitchFailed):
        lab.switch.counters("lan")


def test_the_process_ends_with_its_connection_and_leaves_no_sockets(lab):
    lab.port("never-used")
    process = psutil.Process(lab.switch.pid)
    assert process.num_threads() == 1
    lab.switch.close()
    assert not process.is_running()
    with pytest.raises(SwitchFailed, match="has ended"):
        lab.switch.counters("lan")


def test_ports_that_come_and_go_at_once_are_not_taken_for_each_other(lab):
    """A descriptor that was closed is given to the next port, in the same turn of the loop."""
    b = lab.plug("b")
    for number in range(100):
        path = lab.port(f"short{number}")
        with socket.socket(socket.AF_UNIX) as card:
            card.connect(str(path))
            lab.switch.close_port(path)
            lab.port(f"next{number}")
    assert lab.plug("a").drain(timeout=0.05) == []
    b.send(frame(EVERYBODY, mac(2)))
    assert lab.cards[-1].receive() == frame(EVERYBODY, mac(2))


def test_what_cannot_be_frames_does_not_end_the_switch_when_its_card_gets_a_cable(lab):
    path = lab.port("broken")
    broken, b, c = Card(path), lab.plug("b"), lab.plug("c")
    lab.cards.append(broken)
    lab.switch.add_link("lan", "broken")
    os.kill(lab.switch.pid, signal.SIGSTOP)
    broken.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
    threading.Timer(0.01, os.kill, [lab.switch.pid, signal.SIGCONT]).start()
    lab.switch.attach("lan", "broken", port=path)
    with pytest.raises(EOFError):
        broken.receive()
    b.send(frame(EVERYBODY, mac(2)))
    assert c.receive() == frame(EVERYBODY, mac(2))


def test_the_switch_knows_when_a_card_has_taken_everything(lab):
    a, b = lab.plug("a"), lab.plug("b")
    path = lab.folder / "b.sock"
    sent = 0
    for count in (1, 1000):  # the second time more than the socket holds
        a.send(*[frame(EVERYBODY, mac(1), bytes(1000))] * count)
        sent += count
        while lab.switch.counters("lan")["a"]["out"]["frames"] < sent:
            pass
        assert not lab.switch.is_drained(path)
        b.drain()
        assert lab.switch.is_drained(path)
    assert lab.switch.is_drained(lab.port("nobody"))


def ipv6(header, payload):
    return b"\x86\xdd" + bytes(6) + bytes([header, 255]) + bytes(32) + payload


LISTENER_REPORT = ipv6(0, bytes([58, 0, 5, 2, 0, 0, 1, 0]) + bytes([143]) + bytes(7))
ASKS_WHO_IS_THERE = {
    "rarp": b"\x80\x35" + bytes(46),
    "arp": b"\x08\x06" + bytes(28),
    "igmp": b"\x08\x00" + bytes([0x46, *bytes(8), 2]) + bytes(22),
    "neighbour": ipv6(58, bytes([135]) + bytes(23)),
    "listener": LISTENER_REPORT,
    "tagged": b"\x81\x00\x00\x05" + LISTENER_REPORT,
}
CHANGES = {
    "ping": b"\x08\x00" + bytes([0x45, *bytes(8), 1]) + bytes(22),
    "ping6": ipv6(58, bytes([128]) + bytes(7)),
    "router": ipv6(58, bytes([134]) + bytes(15)),
    "udp6": ipv6(17, bytes([135]) + bytes(23)),
    "tagged": b"\x81\x00\x00\x05" + ipv6(17, bytes(8)),
    "short": ipv6(58, b""),
    "other": b"\x88\xb5",
}


@pytest.mark.parametrize("to", [mac(2), EVERYBODY])
@pytest.mark.parametrize(
    ("kind", "count"),
    [*((each, 0) for each in ASKS_WHO_IS_THERE.values()), *((each, 1) for each in CHANGES.values())],
    ids=[*ASKS_WHO_IS_THERE, *CHANGES],
)
def test_frames_that_can_have_changed_a_guest_are_counted(lab, to, kind, count):
    a, b = lab.plug("a"), lab.plug("b")
    for vlan in (None, 5):
        b.send(frame(EVERYBODY, mac(2), b"here", vlan=vlan))
        a.receive()
    lab.plug("c")
    for _ in range(2):
        a.send(to + mac(1) + kind)
        assert b.receive() == to + mac(1) + kind
    at_c = 2 * count if to == EVERYBODY else 0
    assert lab.switch.traffic("lan", "a") == (2, 2 * count + at_c)
    assert lab.switch.traffic("lan", "b") == (2 * count, 2)
    assert lab.switch.traffic("lan", "c") == (at_c, 0)


def udp(port):
    return bytes(2) + port.to_bytes(2, "big") + bytes(4)


NAME_OF = {
    "mdns": b"\x08\x00" + bytes([0x45, *bytes(8), 17]) + bytes(10) + udp(5353),
    "mdns, options": b"\x08\x00" + bytes([0x46, *bytes(8), 17]) + bytes(14) + udp(5353),
    "mdns6": ipv6(17, udp(5353)),
    "llmnr6": ipv6(17, udp(5355)),
}
A_GROUP = b"\x01\x00\x5e\x00\x00\xfb"


@pytest.mark.parametrize("to", [A_GROUP, mac(2)])
@pytest.mark.parametrize("kind", NAME_OF.values(), ids=NAME_OF)
def test_names_that_everybody_is_asked_for_change_nobody(lab, to, kind):
    a, b = lab.plug("a"), lab.plug("b")
    a.send(to + mac(1) + kind)
    assert b.receive() == to + mac(1) + kind
    assert lab.switch.traffic("lan", "b") == (0 if to == A_GROUP else 1, 0)


def test_other_messages_to_the_same_group_change_guests(lab):
    a, b = lab.plug("a"), lab.plug("b")
    sent = A_GROUP + mac(1) + ipv6(17, udp(5000))
    a.send(sent)
    assert b.receive() == sent
    assert lab.switch.traffic("lan", "b") == (1, 0)
