"""Segments that are a network of the host, too: each guest's link has an uplink to it."""

from __future__ import annotations

import os
import struct
from contextlib import suppress

import pytest

from pytest_kvm.switch import echoes
from tests.unit.switch.conftest import EVERYBODY, Card, frame, mac

A, B, HOST, STRANGER = mac(1), mac(2), mac(3), mac(4)


class Joined:
    """A guest's card and its tap device, each with a port for either direction."""

    def __init__(self, lab, name, *, header=None):
        self.lab, self.name = lab, name
        self.ports = {
            each: lab.folder / f"{name}.{each}" for each in ("from_card", "to_card", "from_tap", "to_tap")
        }
        if header is None:
            for port in self.ports.values():
                lab.switch.open_port(port)
        else:
            lab.switch.open_redirected_ports(list(self.ports.values()), header=header)
        ends = {each: Card(port) for each, port in self.ports.items()}
        lab.cards += ends.values()
        self.send, self.send_from_host = ends["from_card"].send, ends["from_tap"].send
        self.card, self.tap = ends["to_card"], ends["to_tap"]
        self.from_card, self.from_tap = ends["from_card"], ends["from_tap"]
        lab.switch.add_link("lan", name)
        lab.switch.add_uplink("lan", f"{name}.uplink", guest=name)
        self.attach()

    def attach(self):
        ports, switch = self.ports, self.lab.switch
        switch.attach("lan", f"{self.name}.uplink", port=ports["to_tap"], source=ports["from_tap"])
        switch.attach("lan", self.name, port=ports["to_card"], source=ports["from_card"])

    def settle(self):
        """Wait until the switch has passed on what was sent.

        It reads what is there in the turn of its loop in which it reads an order, and
        sends at the end of a turn; one turn earlier it has accepted connections.
        """
        for _ in range(3):
            self.lab.switch.counters("lan")


@pytest.fixture
def joined(lab):
    return Joined(lab, "a"), Joined(lab, "b")


def got(a, b):
    """Return what each card and each tap device has got."""
    return [[each[14:] for each in drained(a, end)] for end in (a.card, b.card, a.tap, b.tap)]


def drained(joined, end):
    """Return all frames that have come to a card or a tap device."""
    joined.settle()
    return end.drain(timeout=0.05)


def test_what_goes_to_everybody_goes_to_the_host_once(joined):
    a, b = joined
    a.send(frame(EVERYBODY, A, b"hello"))
    assert got(a, b) == [[], [b"hello"], [b"hello"], []]


@pytest.fixture
def met(joined):
    """Return two guests whose addresses the switch has learned."""
    a, b = joined
    a.send(frame(EVERYBODY, A))
    b.send(frame(EVERYBODY, B))
    assert got(a, b) == [[b"hello"]] * 4
    return joined


def test_what_guests_send_each_other_stays_on_the_segment(met):
    a, b = met
    a.send(frame(B, A, b"to b"))
    b.send(frame(A, B, b"to a"))
    assert got(a, b) == [[b"to a"], [b"to b"], [], []]


def test_what_the_host_has_for_a_guest_goes_to_that_guest_only(met):
    a, b = met
    b.send_from_host(frame(B, HOST, b"to b"), frame(A, HOST, b"flooded"), frame(EVERYBODY, HOST, b"to all"))
    assert got(a, b) == [[], [b"to b", b"to all"], [], []]


def test_each_guest_answers_the_host_by_its_own_uplink(met):
    a, b = met
    a.send_from_host(frame(A, HOST, b"ask"))
    assert a.card.receive() is not None
    b.send(frame(HOST, B, b"answer"))
    a.send(frame(HOST, A, b"mine"), frame(STRANGER, A, b"to nobody known"))
    assert got(a, b) == [[], [b"to nobody known"], [b"mine", b"to nobody known"], [b"answer"]]


def test_the_echo_of_a_guests_own_frames_is_dropped(lab, joined):
    a, b = joined
    asked = []
    lab.switch.ask("lan", lambda frame: asked.append(frame[14:]) or False)
    a.send(frame(EVERYBODY, A, b"hello"), frame(EVERYBODY, STRANGER, b"of another", vlan=5))
    sent = [a.tap.receive(), a.tap.receive()]
    assert drained(b, b.card) == sent
    b.send_from_host(*sent)  # as the host's bridge does for each tap device
    b.send_from_host(frame(EVERYBODY, HOST, b"new"))
    assert got(a, b) == [[], [b"new"], [], []]
    assert len(asked) == 3
    assert lab.switch.counters("lan")["b"]["in"]["frames"] == 3


def test_what_only_looks_like_an_echo_is_not_dropped(joined):
    a, b = joined
    a.send(frame(EVERYBODY, A, b"hello"))
    b.send_from_host(a.tap.receive(), frame(EVERYBODY, A, b"hello"), frame(EVERYBODY, A, b"another"))
    assert got(a, b) == [[], [b"hello", b"hello", b"another"], [], []]


def test_an_echo_comes_soon_or_never(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(echoes.time, "monotonic", lambda: now[0])
    expected = echoes.Echoes()
    expected.expect(b"frame")
    expected.expect(b"frame")
    assert [expected.take(b"frame") for _ in range(3)] == [True, True, False]
    expected.expect(b"frame")
    now[0] += 10
    assert not expected.take(b"frame")
    for number in range(10_000):
        expected.expect(number.to_bytes(4, "big"))
    assert expected.take((0).to_bytes(4, "big"))
    assert not expected.take((9_999).to_bytes(4, "big")), "so many are kept at most"
    for _ in range(20_000):
        expected.expect((1).to_bytes(4, "big"))
    assert sum(expected.take((1).to_bytes(4, "big")) for _ in range(20_000)) < 10_000
    now[0] += 10
    expected.expect(b"later")
    assert expected.take(b"later")


def test_an_address_may_go_from_a_guest_to_the_hosts_side_and_back(met):
    a, b = met
    b.send(frame(EVERYBODY, STRANGER, b"mine"))
    a.send(frame(STRANGER, A, b"to b"))
    assert got(a, b) == [[b"mine"], [b"to b"], [], [b"mine"]]
    a.send_from_host(frame(EVERYBODY, STRANGER, b"now mine"))
    assert got(a, b)[0] == [b"now mine"]
    for each in (a, b):
        each.send(frame(STRANGER, A if each is a else B, b"to the host"))
    assert got(a, b) == [[], [], [b"to the host"], [b"to the host"]]
    a.send(frame(EVERYBODY, STRANGER, b"mine again"))
    b.send(frame(STRANGER, B, b"to a"))
    assert got(a, b) == [[b"to a"], [b"mine again"], [b"mine again"], []]


def test_a_move_of_one_link_leaves_what_is_known_of_others(lab, met):
    a, _ = met
    third = Joined(lab, "c")
    a.send(frame(EVERYBODY, B, b"b's address"))
    third.attach()
    third.send(frame(B, HOST, b"to a"))
    assert [each[14:] for each in drained(a, a.card)] == [b"to a"]


def test_until_all_are_redirected_guests_meet_on_the_hosts_network(lab, joined):
    a, b = joined
    lab.switch.set_direct("lan", direct=False)
    a.send(frame(EVERYBODY, A, b"to all"))
    b.send_from_host(frame(EVERYBODY, A, b"to all"))
    b.send(frame(A, B, b"to a"))
    a.send_from_host(frame(A, B, b"to a"))
    assert got(a, b) == [[b"to a"], [b"to all"], [b"to all"], [b"to a"]]
    lab.switch.set_direct("lan", direct=True)
    a.send(frame(EVERYBODY, A, b"and now"))
    assert got(a, b) == [[], [b"and now"], [b"and now"], []]


def test_a_partition_cuts_guests_off_from_the_host(lab, joined):
    a, b = joined
    number = lab.switch.cut("lan", [["a", "b"]])
    a.send(frame(EVERYBODY, A, b"hello"))
    a.send_from_host(frame(A, HOST, b"hello"))
    assert got(a, b) == [[], [b"hello"], [], []]
    assert lab.dropped("a", "out") == lab.dropped("a", "in") == {"partition": 1}
    lab.switch.undo(number)
    a.send(frame(EVERYBODY, A, b"again"))
    assert got(a, b) == [[], [b"again"], [b"again"], []]


def test_an_isolated_guest_leaves_the_others_with_the_host(lab, joined):
    a, b = joined
    lab.switch.cut("lan", [["a"]], joins_others=True)
    a.send(frame(EVERYBODY, A, b"alone"))
    b.send(frame(EVERYBODY, B, b"hello"))
    a.send_from_host(frame(A, HOST, b"to a"))
    b.send_from_host(frame(B, HOST, b"to b"))
    assert got(a, b) == [[], [b"to b"], [], [b"hello"]]


def test_faults_of_the_segment_meet_what_comes_from_the_host(lab, joined):
    a, b = joined
    lab.switch.fault("lan", "loss", seed="", settings={"probability": 1.0})
    a.send_from_host(frame(A, HOST, b"lost"))
    a.send(frame(HOST, A, b"lost, too"))
    assert got(a, b) == [[], [], [], []]
    assert lab.dropped("a", "in") == lab.dropped("a", "out") == {"loss": 1}


def test_an_unplugged_guest_has_no_uplink(lab, joined):
    a, b = joined
    lab.switch.set_link("lan", "a", up=False)
    a.send(frame(EVERYBODY, A, b"hello"))
    a.send_from_host(frame(A, HOST, b"hello"))
    assert got(a, b) == [[], [], [], []]
    assert lab.dropped("a", "in") == lab.dropped("a", "out") == {"unplugged": 1}


def test_what_a_card_has_sent_before_it_is_attached_is_lost(lab, joined):
    a, b = joined
    lab.switch.attach("lan", "a", port=None)
    a.send(frame(EVERYBODY, A, b"too early"))
    a.send_from_host(frame(A, HOST, b"to nobody"))
    assert got(a, b) == [[], [], [], []]
    a.attach()
    a.send(frame(EVERYBODY, A, b"hello"))
    assert got(a, b) == [[], [b"hello"], [b"hello"], []]


def test_no_uplink_is_left_of_a_link(lab, joined):
    a, b = joined
    lab.switch.remove_link("lan", "a")
    assert list(lab.switch.counters("lan")) == ["b"]
    a.send_from_host(frame(A, HOST, b"to nobody"))
    b.send(frame(A, B, b"whom the host may know"))
    assert got(a, b) == [[], [], [], [b"whom the host may know"]]
    lab.switch.add_link("lan", "a")
    lab.switch.add_uplink("lan", "a.uplink", guest="a")
    lab.switch.remove_segment("lan")
    lab.switch.add_segment("lan")
    assert lab.switch.counters("lan") == {}


def test_captures_name_the_uplink(lab, joined):
    a, b = joined
    path = lab.folder / "lan.pcapng"
    number = lab.switch.capture("lan", path)
    a.send(frame(EVERYBODY, A, b"from a guest"))
    b.send_from_host(frame(B, HOST, b"from the host"))
    got(a, b)
    assert lab.switch.end_capture(number).frames == 2
    assert b"b.uplink" in path.read_bytes()


# ---------------------------------------------------------------- headers


def behind(header, *frames):
    """Return frames as QEMU redirects them."""
    return b"".join(
        struct.pack(">II", header + len(each), header) + os.urandom(header) + each for each in frames
    )


def messages(joined, end):
    """Return what was sent to a card or a tap device: each frame with its header."""
    joined.settle()
    data, found = b"".join(_pieces(end.socket, timeout=0.05)), []
    while data:
        size, header = struct.unpack_from(">II", data)
        assert data[8 : 8 + header] == bytes(header)
        found.append((header, data[8 + header : 8 + size]))
        data = data[8 + size :]
    return found


def _pieces(connection, *, timeout):
    connection.settimeout(timeout)
    with suppress(TimeoutError):
        while piece := connection.recv(1 << 20):
            yield piece


@pytest.fixture
def redirected(lab):
    return Joined(lab, "a", header=12), Joined(lab, "b")


def test_redirected_frames_have_a_header_in_front(redirected):
    a, b = redirected
    b.send(frame(EVERYBODY, B, b"to a"), frame(A, B, b"again"))
    assert messages(a, a.card) == [(12, frame(EVERYBODY, B, b"to a")), (12, frame(A, B, b"again"))]
    a.from_card.socket.sendall(behind(12, frame(B, A, b"to b"), frame(EVERYBODY, A, b"to all")))
    assert [each[14:] for each in drained(b, b.card)] == [b"to b", b"to all"]
    assert messages(a, a.tap) == [(12, frame(EVERYBODY, A, b"to all"))]


@pytest.mark.parametrize("header", [0, 10, 24])
def test_the_header_is_as_long_as_that_of_the_last_frame(redirected, header):
    a, b = redirected
    a.from_tap.socket.sendall(behind(header, frame(EVERYBODY, HOST, b"hello")))
    assert messages(a, a.card) == [(header, frame(EVERYBODY, HOST, b"hello"))]
    b.send(frame(EVERYBODY, B, b"to a"))
    assert messages(a, a.card) == [(header, frame(EVERYBODY, B, b"to a"))]


def test_a_frame_behind_a_header_may_come_in_pieces(redirected):
    a, b = redirected
    raw = behind(12, frame(EVERYBODY, A, b"in pieces"))
    for piece in (raw[:2], raw[2:6], raw[6:10], raw[10:30], raw[30:] + raw):
        a.from_card.socket.sendall(piece)
        a.lab.switch.counters("lan")  # the switch has read the piece
    assert [each[14:] for each in drained(b, b.card)] == [b"in pieces"] * 2


def test_a_frame_of_which_a_part_came_too_early_is_lost_as_a_whole(redirected):
    a, b = redirected
    raw = behind(12, frame(EVERYBODY, A, b"too early"))
    a.lab.switch.attach("lan", "a", port=None)
    a.from_card.socket.sendall(raw + raw[:20])
    a.attach()
    a.from_card.socket.sendall(raw[20:] + behind(12, frame(EVERYBODY, A, b"hello")))
    assert [each[14:] for each in drained(b, b.card)] == [b"hello"]


def test_a_header_without_a_frame_is_dropped(redirected):
    a, b = redirected
    a.from_card.socket.sendall(behind(12, b"", frame(EVERYBODY, A, b"whole")))
    assert [each[14:] for each in drained(b, b.card)] == [b"whole"]
    assert a.lab.dropped("a", "out") == {"malformed": 1}


@pytest.mark.parametrize(
    "raw", [b"\xff" * 64, struct.pack(">II", 10, 11) + bytes(10)], ids=["size", "header"]
)
def test_what_cannot_be_frames_ends_the_connection(redirected, raw):
    a, b = redirected
    a.from_card.socket.sendall(raw)
    with pytest.raises(EOFError):
        a.from_card.receive()
    b.send(frame(EVERYBODY, B, b"the switch goes on"))
    assert messages(a, a.card) == [(12, frame(EVERYBODY, B, b"the switch goes on"))]


def test_frames_behind_a_header_are_withdrawn_by_a_cut(redirected):
    a, b = redirected
    size = 60_000
    for _ in range(20):  # more than the sockets and the queue take
        b.send(frame(A, B, bytes(size)))
    before = a.lab.switch.counters("lan")["a"]["in"]
    a.lab.switch.cut("lan", [["a"], ["b"]])
    after = a.lab.switch.counters("lan")["a"]["in"]
    gone = after["dropped"]["partition"]
    assert gone
    assert before["frames"] - after["frames"] == gone
    assert before["bytes"] - after["bytes"] == gone * (size + 14)
    received = messages(a, a.card)
    assert len(received) == after["frames"]
    assert {len(each) for _, each in received} == {14 + size}


def test_frames_for_the_host_are_withdrawn_by_a_cut(redirected):
    a, b = redirected
    for _ in range(20):
        a.from_card.socket.sendall(behind(12, frame(HOST, A, bytes(60_000))))
        b.card.drain(timeout=0.01)
    a.lab.switch.cut("lan", [["a"]])
    gone = a.lab.dropped("a", "out")["partition"]
    assert gone
    assert len(messages(a, a.tap)) + gone + a.lab.dropped("a", "out").get("guest too slow", 0) == 20
