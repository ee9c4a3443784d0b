"""Captures of segments on a real switch, between cards that are sockets."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from pytest_kvm.errors import SpecError, SwitchFailed, WaitTimeout
from pytest_kvm.provision.segment_captures import SegmentCaptures
from pytest_kvm.provision.segments import Segments
from pytest_kvm.provision.undo_log import Owner
from tests.unit.provision.joined_cards import JoinedGuests
from tests.unit.switch.conftest import frame, mac


@pytest.fixture
def pair(guests):
    return [guests.join(name) for name in "ab"]


def is_from_a(packet):
    return packet.src_mac == "52:54:00:00:00:00"


def is_from_b(packet):
    return packet.src_mac == "52:54:00:00:00:01"


def test_a_segments_capture_has_each_frame_with_its_senders_link(guests, pair):
    with guests.lan.capture() as capture:
        assert capture.packets == []
        guests.reaches("a", "b")
        assert [(packet.link, packet.direction) for packet in capture] == [("a", "out")]
        guests.reaches("b", "a")
        assert [packet.link for packet in capture] == ["a", "b"]
        assert repr(capture) == f"<Capture of lan: {capture.path}>"
    guests.reaches("a", "b")
    assert len(capture.packets) == 2
    capture.flush()
    capture.stop()
    assert "stopped" in repr(capture)


def test_a_links_capture_has_what_comes_before_all_faults_and_what_goes_after_all(guests, pair):
    a, b = pair
    with (
        a.nics[0].capture() as at_a,
        b.nics[0].capture() as at_b,
        guests.lan.loss(1.0, link=a, direction="out"),
    ):
        guests.reaches("a", "b")
        guests.reaches("b", "a")
    assert [(packet.link, packet.direction) for packet in at_a] == [("a", "out"), ("a", "in")]
    assert [(packet.link, packet.direction) for packet in at_b] == [("b", "out")]


def test_a_guests_capture_has_what_passes_each_of_its_links(guests):
    double = guests.join("d", "up", "up")
    guests.join("a")
    with guests.lan.capture(link=double) as capture:
        guests.reaches("a", "d")
    assert sorted((packet.link, packet.direction) for packet in capture) == [("d", "in"), ("d.2", "in")]
    assert "lan, d and d.2" in repr(capture)


def test_a_packet_is_waited_for_that_was_captured_or_will_be(guests, pair):
    with guests.lan.capture() as capture, ThreadPoolExecutor() as pool:
        guests.reaches("a", "b")
        assert is_from_a(capture.wait_for_packet(is_from_a, timeout=0))
        later = pool.submit(capture.wait_for_packet, is_from_b)
        guests.reaches("b", "a")
        assert is_from_b(later.result(10))
        with pytest.raises(WaitTimeout) as caught:
            capture.wait_for_packet(lambda packet: False, timeout=0.1)
    assert caught.value.brief == "lan: no packet matched <lambda> within 0.1 s; captured: 2"
    assert caught.value.details.count("<Packet ") == 2
    with pytest.raises(WaitTimeout, match="captured: 2"):
        capture.wait_for_packet(lambda packet: False)


def test_a_packet_that_is_not_to_pass(guests, pair):
    with guests.lan.capture() as capture, ThreadPoolExecutor() as pool:
        capture.assert_no_packet(is_from_a, during=0.05)
        guests.reaches("b", "a")
        capture.assert_no_packet(is_from_a)
        watch = pool.submit(capture.assert_no_packet, is_from_a, during=30)
        guests.reaches("a", "b")
        with pytest.raises(AssertionError, match="lan: a packet matched is_from_a: <Packet 0x88b5"):
            watch.result(10)
        with pytest.raises(AssertionError) as caught:
            capture.assert_no_packet(is_from_a)
    shown = caught.traceback.filter(caught)
    assert [entry.name for entry in shown] == ["test_a_packet_that_is_not_to_pass"], "the reader's own lines"


@pytest.mark.parametrize("verb", ["wait_for_packet", "assert_no_packet"])
def test_a_guest_that_sends_all_the_time_holds_up_no_deadline(guests, pair, verb):
    """It sends faster than packets are read."""
    is_over = threading.Event()
    guests.reaches("b", "a")
    card, other = guests.cards["a"], guests.cards["b"]
    card.socket.settimeout(None)
    other.socket.settimeout(0.1)

    def send():
        while not is_over.is_set():
            card.send(*[frame(mac(1), mac(0))] * 200)

    def take():
        while not is_over.is_set():
            with contextlib.suppress(TimeoutError):
                other.socket.recv(1 << 20)

    with guests.lan.capture() as capture, ThreadPoolExecutor() as pool:
        busy = [pool.submit(send), pool.submit(take)]
        try:
            if verb == "assert_no_packet":
                capture.assert_no_packet(is_from_b, during=0.2)
            else:
                with pytest.raises(WaitTimeout):
                    capture.wait_for_packet(is_from_b, timeout=0.2)
        finally:
            is_over.set()
        assert [each.exception(10) for each in busy] == [None, None]


def test_packets_until_now_are_not_those_that_come_while_they_are_looked_at(guests, pair):
    capture = guests.lan.capture()
    guests.reaches("a", "b")
    for packet in capture:
        assert is_from_a(packet)
        guests.reaches("b", "a")
    assert len(capture.packets) == 2


def test_a_packet_that_passes_at_the_last_moment_is_seen(guests, pair):
    capture = guests.lan.capture()
    source = capture._source

    def wait(*, frames, timeout):
        guests.reaches("a", "b")
        source.wait(frames=100, timeout=timeout)

    capture._source = SimpleNamespace(wait=wait, flush=source.flush)
    with pytest.raises(AssertionError, match="a packet matched is_from_a"):
        capture.assert_no_packet(is_from_a, during=0.1)


def test_a_capture_that_is_stopped_is_waited_for_no_longer(guests, pair):
    capture = guests.lan.capture()
    with ThreadPoolExecutor() as pool:
        waits = pool.submit(capture.wait_for_packet, is_from_b, timeout=300)
        guests.reaches("a", "b")
        capture.stop()
        with pytest.raises(
            WaitTimeout, match="no packet matched is_from_b until the capture was stopped; captured: 1"
        ):
            waits.result(10)
    capture.assert_no_packet(is_from_b, during=300)


def fill(guests):
    """Send more than a small capture can hold."""
    for _ in range(20):
        guests.cards["a"].send(frame(mac(9), mac(0), bytes(200)))
    guests.reaches("a", "b")


def test_packets_are_told_by_filter_expressions(guests, pair):
    with guests.lan.capture() as capture:
        guests.reaches("a", "b")
        assert is_from_a(capture.wait_for_packet("ether broadcast"))
        capture.assert_no_packet("ip or ip6")
        with pytest.raises(AssertionError, match="a packet matched 'ether src 52:54"):
            capture.assert_no_packet("ether src 52:54:00:00:00:00")
        with pytest.raises(SpecError, match="the filter expression 'ipv6': "):
            capture.wait_for_packet("ipv6")
        with pytest.raises(SpecError, match="lan: assert_no_packet: None is neither a filter expression"):
            capture.assert_no_packet(None)


def test_a_capture_that_breaks_off_says_so(guests, pair, coordinator):
    with coordinator.at_work(test := Owner("test")):
        capture = guests.lan.capture(limit="1KiB")
        fill(guests)
        for use in (
            lambda: capture.wait_for_packet(is_from_b),
            lambda: capture.assert_no_packet(is_from_b),
            lambda: capture.packets,
            capture.flush,
        ):
            with pytest.raises(SwitchFailed, match="has broken off: .* its limit of 1024 bytes"):
                use()
        assert is_from_a(capture.wait_for_packet(is_from_a)), "what was written before can be used"
    with pytest.raises(SwitchFailed, match="the capture of lan has broken off"):
        test.end()
    assert not capture.path.exists()
    with pytest.raises(SpecError, match="the capture of lan has no file any more"):
        capture.assert_no_packet(is_from_b)


@pytest.mark.parametrize("body_fails", [False, True])
def test_the_end_of_a_block_says_so_too(guests, pair, body_fails):
    def block():
        with guests.lan.capture(limit="1KiB"):
            fill(guests)
            if body_fails:
                raise LookupError

    with pytest.raises(LookupError if body_fails else SwitchFailed) as caught:
        block()
    told = "".join(getattr(caught.value, "__notes__", [])) if body_fails else str(caught.value)
    assert "the capture of lan has broken off" in told


def test_captures_end_with_their_owner_and_their_files_with_them(guests, pair, coordinator, captures):
    fixture, test = Owner("fixture"), Owner("test")
    with coordinator.at_work(fixture):
        kept = guests.lan.capture()
    with coordinator.at_work(test):
        stopped, running = guests.lan.capture(), pair[0].nics[0].capture()
        stopped.stop()
        assert captures.at_work() == [("lan", stopped), ("lan-a", running)]
    test.end()
    assert "stopped" in repr(running)
    assert [each.path.exists() for each in (kept, stopped, running)] == [True, False, False]
    guests.reaches("a", "b")
    assert len(kept.packets) == 1
    guests.segments.remove(guests.lan)
    assert len(kept.packets) == 1
    fixture.end()
    assert not kept.path.exists()


def test_the_end_of_the_switch_is_no_second_error_at_the_end_of_a_test(guests, pair, coordinator, switch):
    with coordinator.at_work(test := Owner("test")):
        capture = guests.lan.capture()
        os.kill(switch.get().pid, signal.SIGKILL)
        with pytest.raises(SwitchFailed):
            capture.wait_for_packet(is_from_a)
        with pytest.raises(SwitchFailed):
            list(capture)
    test.end()
    assert not capture.path.exists()


def test_mistakes(guests, pair, coordinator):
    with coordinator.at_work(test := Owner("test")):
        test.end()
        with pytest.raises(SpecError, match="lan: test has ended, and can begin no capture any more"):
            guests.lan.capture()
    with pytest.raises(SpecError, match="lan.capture: limit: '5' is not a size"):
        guests.lan.capture(limit="5")
    guests.segments.remove(guests.lan)
    for begin in (guests.lan.capture, pair[0].nics[0].capture):
        with pytest.raises(SpecError, match="the segment lan was removed"):
            begin()


def test_a_run_that_captures_everything(resources, switch, coordinator, faults, tmp_path, caplog):
    captures = SegmentCaptures(resources, coordinator, records=True)
    segments = Segments(switch, resources, faults=faults, captures=captures, before_removal=str)
    guests = JoinedGuests(segments, switch, tmp_path)
    for name in "ab":
        guests.join(name)
    assert captures.at_work() == []
    with coordinator.at_work(test := Owner("test")):
        captures.record(segments.all())
        guests.reaches("a", "b")
        with coordinator.at_work(fixture := Owner("fixture")):
            segments.make("late", guests.lan.spec)
        (name, capture), (late, _) = captures.at_work()
        assert (name, late) == ("lan", "late")
        assert len(capture.packets) == 1
        (tmp_path / "capture3.pcapng").touch()
        captures.record([guests.lan])
    assert "lan is not captured: the switch refused: FileExistsError" in caplog.text
    fixture.end()
    assert "stopped" not in repr(capture)
    test.end()
    assert [path.name for path in tmp_path.glob("*.pcapng")] == ["capture3.pcapng"]
    guests.close()
