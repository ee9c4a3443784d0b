"""Segments that are libvirt networks, on a hypervisor that makes none."""

from __future__ import annotations

import json
import os
import signal
import struct
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import ConnectionFailed, DomainFailed, NetworkFailed, SpecError, SwitchFailed
from pytest_kvm.handles.segment_backend import MachineCard
from pytest_kvm.host.undo_notes import UndoNotes
from pytest_kvm.hypervisor.protocol import CardFrames
from pytest_kvm.provision import redirected_segment
from pytest_kvm.provision.run_resources import Lazy
from pytest_kvm.provision.segments import Segments
from pytest_kvm.provision.tap_link import tap_name
from pytest_kvm.render.qemu_args import segment_card_ids
from pytest_kvm.settings import Timeouts
from pytest_kvm.waiting import NotYet, wait_until
from tests.fakes_hypervisor import FakeHypervisor
from tests.unit.switch.conftest import Card, frame

LAN = kvm.NetworkSpec(backend="libvirt", subnet="10.1.0.0/24", subnet6=None)
IDS = segment_card_ids(1, is_tap=True)
BARRIER = {"path": "/objects/ua-kvmsegment1-barrier", "property": "status"}


@pytest.fixture
def hypervisor():
    commands = ("qom-set", "query-status", "chardev-add", "chardev-remove", "object-add", "object-del")
    return FakeHypervisor(qmp={"qom-get": "virtio-net-pci", **{each: {} for each in commands}})


@pytest.fixture
def resources(hypervisor, tmp_path):
    folder = tmp_path / "0123abcd"
    folder.mkdir()
    opened = SimpleNamespace(
        folder=folder,
        session=folder.name,
        hypervisor=hypervisor,
        is_system=True,
        timeouts=Timeouts(),
        undo_notes=UndoNotes(folder),
    )
    return Lazy(lambda: nullcontext(opened))


@pytest.fixture
def new_segments(switch, faults, captures, removed):
    """Return a function that returns the segments of a run with these resources."""

    def new_segments(resources):
        segments: Any = Segments(
            switch,
            resources,
            faults=faults,
            captures=captures,
            before_removal=removed.append,
        )
        return segments

    return new_segments


@pytest.fixture
def segments(new_segments, resources):
    made = new_segments(resources)
    yield made
    remove_all(made)


@pytest.fixture
def other_run(new_segments, resources):
    """Return the segments of another run on this host."""
    opened = SimpleNamespace(**{**vars(resources.get()), "session": "89ef4567"})
    made = new_segments(Lazy(lambda: nullcontext(opened)))
    yield made
    remove_all(made)


def remove_all(segments):
    """Give back the names that segments on bridges have locked."""
    for each in segments.all():
        segments.remove(each)


@pytest.fixture
def removed():
    """Return the networks whose spare clones had to go."""
    return []


@pytest.fixture
def left(tmp_path):
    """Return the notes that a killed run would leave."""
    return lambda: [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*/.undo/*.json"))]


class Guest:
    def __init__(self, name):
        self.name = name
        self.nics = ()


def join(segments, lan, name="web", **fields):
    guest: Any = Guest(name)
    guest.nics = segments.join(guest, kvm.GuestSpec(nics=[kvm.Nic(lan, **fields)]), declared_name=name)
    return guest


@pytest.fixture
def card(hypervisor, tmp_path):
    """Return a function that starts a machine and returns its card, by the machine's name."""

    def card(name):
        domain = hypervisor.create(f"<domain><name>{name}</name></domain>")
        (tmp_path / name).mkdir(exist_ok=True)
        return MachineCard(domain=domain, port=tmp_path / name / "nic1.sock", ids=IDS)

    return card


def passes(card, received, sent=0):
    frames = CardFrames(received=received, received_bytes=60 * received, sent=sent, sent_bytes=60 * sent)
    card.domain.frames[tap_name(card.port)] = frames


def test_a_network_is_made_and_removed_with_its_segment(segments, hypervisor, left, removed):
    lan = segments.make("lan", LAN)
    [xml] = hypervisor.networks
    assert "<name>kvm-0123abcd-lan-1</name>" in xml
    assert '<bridge name="kb0123abcd-1"' in xml
    [[kind, uri, uuid]] = left()
    assert (kind, uri) == ("network", "fake:///default")
    assert f"<uuid>{uuid}</uuid>" in xml
    segments.remove(lan)
    assert (hypervisor.networks, left()) == ([], [])
    assert removed == ["kvm-0123abcd-lan-1"]


def test_a_network_that_libvirt_refuses_leaves_nothing(segments, hypervisor, left):
    hypervisor.network_failures = [NetworkFailed("no firewall")]
    with pytest.raises(NetworkFailed, match="no firewall"):
        segments.make("lan", LAN)
    assert left() == []
    assert segments.all() == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ConnectionFailed("the daemon is away")], ids=repr)
def test_what_may_have_been_made_is_undone_in_the_end(segments, hypervisor, left, failure, monkeypatch):
    def create(xml):
        hypervisor.networks.append(xml)
        raise failure

    monkeypatch.setattr(hypervisor, "create_network", create)
    with pytest.raises(type(failure)):
        segments.make("lan", LAN)
    assert len(left()) == 1


TAKEN = NetworkFailed("libvirt could not make a network: Network is already in use by interface virbr0")
NAT = kvm.NetworkSpec(forward="nat", subnet6=None)


def test_a_subnet_that_the_host_has_already_is_not_insisted_on(segments, hypervisor):
    first = segments.make("out", NAT)
    hypervisor.network_failures = [TAKEN, TAKEN]
    other = segments.make("out", NAT)
    assert int(other.subnet.network_address) == int(first.subnet.network_address) + 3 * 256
    hypervisor.network_failures = [TAKEN] * 8
    with pytest.raises(NetworkFailed, match="already in use"):
        segments.make("any", NAT)
    assert hypervisor.network_failures == []


@pytest.mark.parametrize(
    ("spec", "failure"),
    [
        (kvm.NetworkSpec(forward="nat", subnet="10.9.0.0/24"), TAKEN),
        (NAT, NetworkFailed("libvirt could not make a network: no firewall")),
    ],
    ids=["a subnet of the spec", "another failure"],
)
def test_what_another_subnet_would_not_mend_is_tried_once(segments, hypervisor, spec, failure):
    hypervisor.network_failures = [failure, failure]
    with pytest.raises(NetworkFailed, match="could not make a network"):
        segments.make("mine", spec)
    assert hypervisor.network_failures == [failure]


def test_a_subnet_that_libvirt_does_not_compare_is_the_runs_own(segments):
    out = segments.make("out", kvm.NetworkSpec(forward="nat"))
    assert str(out.subnet6).startswith("fd6b:123:abcd:")
    lan = segments.make("lan", kvm.NetworkSpec(backend="libvirt"))
    assert str(lan.subnet6).startswith("fd6b:766d:0:"), "the host is not on it"


WIDE = kvm.NetworkSpec(bridge="br0", subnet="10.4.0.0/24", subnet6=None)


def test_a_bridge_of_the_host_has_addresses_of_this_run(segments, other_run):
    own, its = (
        each.make("wide", kvm.NetworkSpec(bridge=bridge))
        for each, bridge in zip((segments, other_run), ("br0", "br1"), strict=True)
    )
    assert not own.subnet.overlaps(its.subnet)
    assert not own.subnet6.overlaps(its.subnet6)
    assert own.gateways == ()
    [mine], [other] = join(segments, own).nics, join(other_run, its).nics
    assert mine.mac != other.mac
    assert mine.mac == join(segments, segments.make("wide", kvm.NetworkSpec(bridge="br1"))).nics[0].mac


@pytest.mark.parametrize("other", ["10.4.0.0/16", "10.4.0.128/25", "10.4.0.0/24"])
def test_subnets_that_overlap_are_not_on_one_bridge(segments, other_run, other):
    segments.make("wide", WIDE)
    with pytest.raises(NetworkFailed, match=r"wide: 10.4.0.0/24 is already in use by another segment or run"):
        other_run.make("wide", replace(WIDE, subnet=other))
    other_run.make("wide", replace(WIDE, subnet="10.5.0.0/24"))


def test_a_subnet_that_the_run_chooses_overlaps_none_on_the_bridge(segments, other_run):
    usual = segments.make("wide", kvm.NetworkSpec(bridge="br1")).subnet
    taken = other_run.make("wide", kvm.NetworkSpec(bridge="br0", subnet=str(usual.supernet()))).subnet
    assert not segments.make("wide", kvm.NetworkSpec(bridge="br0")).subnet.overlaps(taken)


def test_a_subnet_on_a_bridge_is_one_segments_alone(segments, other_run, hypervisor, left):
    wide = segments.make("wide", WIDE)
    for theirs in (other_run, segments):
        with pytest.raises(NetworkFailed, match="10.4.0.0/24 is already in use by another segment or run"):
            theirs.make("wide", WIDE)
    assert len(hypervisor.networks) == len(left()) == 1
    for unlike in (replace(WIDE, bridge="br1"), replace(WIDE, vlan=5)):
        other_run.make("wide", unlike)
    segments.remove(wide)
    hypervisor.network_failures = [NetworkFailed("no")]
    with pytest.raises(NetworkFailed, match="no"):
        segments.make("wide", WIDE)
    other_run.make("wide", WIDE)


def test_no_network_is_asked_of_another_connection(segments, resources):
    resources.get().is_system = False
    with pytest.raises(SpecError, match="only libvirt's system daemon makes networks"):
        segments.make("lan", LAN)


def test_no_guest_is_given_the_hosts_address(segments):
    out = segments.make("out", kvm.NetworkSpec(forward="nat", subnet="10.1.0.0/29", subnet6=None))
    given = [str(join(segments, out, f"guest{number}").nics[0].address) for number in range(5)]
    assert given == [f"10.1.0.{number}" for number in range(2, 7)]
    assert [str(each) for each in out.nics[0].gateways] == ["10.1.0.1"]
    with pytest.raises(SpecError, match="no address is free"):
        join(segments, out, "one too many")


OPEN, CLOSED = ({**BARRIER, "value": value} for value in ("off", "on"))


def moves(card):
    """Return how a card's barrier was moved; it is closed at first."""
    return [asked for command, asked in card.domain.asked if command == "qom-set"]


def test_links_stay_as_they_were_set(segments, card):
    lan = segments.make("lan", LAN)
    join(segments, lan)
    join(segments, lan, "db", link="down")
    assert lan.backend.attach("web", card("web"))
    assert not lan.backend.attach("db", card("db"))
    assert lan.backend.set_link("web", up=False)
    assert not lan.backend.attach("web", card("web2"))


def test_a_card_that_is_not_attached_is_behind_a_barrier(segments, card):
    lan = segments.make("lan", LAN)
    join(segments, lan)
    first, second = card("web"), card("web+1")
    lan.backend.attach("web", None)
    lan.backend.attach("web", first)
    lan.backend.attach("web", None)
    lan.backend.attach("web", first)
    lan.backend.attach("web", second)
    assert moves(first) == [OPEN, CLOSED, OPEN, CLOSED]
    assert moves(second) == [OPEN]


def test_a_cable_can_be_pulled_before_a_guest_sees_it(segments, card):
    lan = segments.make("lan", LAN)
    join(segments, lan)
    lan.backend.set_link("web", up=False)
    lan.backend.attach("web", web := card("web"))
    lan.backend.set_link("web", up=True)
    lan.backend.set_link("web", up=False)
    assert moves(web) == [CLOSED, OPEN, CLOSED]


def test_a_machine_that_has_ended_needs_no_barrier(segments, card):
    lan = segments.make("lan", LAN)
    join(segments, lan)
    first, second = card("web"), card("web+1")
    lan.backend.attach("web", first)
    first.domain.destroy()
    lan.backend.attach("web", second)
    lan.backend.attach("web", None)
    assert moves(first) == [OPEN]


def test_libvirt_tells_late_that_a_machine_has_ended(segments, card, monkeypatch):
    lan = segments.make("lan", LAN)
    join(segments, lan)
    lan.backend.attach("web", first := card("web"))
    passes(first, 3, 2)
    assert lan.backend.traffic("web") == (3, 2)

    def end(*_arguments):
        first.domain.end("QEMU died")
        raise DomainFailed("Cannot find a device of that name")

    monkeypatch.setattr(first.domain, "card_frames", end)
    assert lan.backend.traffic("web") == (3, 2), "what was seen last"


@pytest.mark.parametrize("call", ["qmp", "card_frames"])
def test_a_card_that_cannot_be_controlled_is_a_failure_of_the_segment(segments, card, monkeypatch, call):
    monkeypatch.setattr(redirected_segment, "_END_IS_TOLD_WITHIN", 0.0)
    lan = segments.make("lan", LAN)
    join(segments, lan)
    lan.backend.attach("web", first := card("web"))

    def fail(*_arguments):
        raise DomainFailed("the monitor hangs")

    monkeypatch.setattr(first.domain, call, fail)
    use = {"qmp": lambda: lan.backend.attach("web", None), "card_frames": lambda: lan.backend.traffic("web")}
    with pytest.raises(SwitchFailed, match="a card on a libvirt network: the monitor hangs"):
        use[call]()
    monkeypatch.undo()


def test_what_cannot_be_cut_off_keeps_no_network(segments, card, monkeypatch, hypervisor, left):
    wide = segments.make("wide", WIDE)
    for name in ("web", "db"):
        join(segments, wide, name)
        wide.backend.attach(name, card(name))

    def fail(*_arguments):
        raise DomainFailed("the monitor hangs")

    monkeypatch.setattr(redirected_segment, "_END_IS_TOLD_WITHIN", 0.0)
    web, _ = hypervisor.created
    monkeypatch.setattr(web, "qmp", fail)
    with pytest.raises(SwitchFailed, match="the monitor hangs"):
        segments.remove(wide)
    assert (hypervisor.networks, left()) == ([], [])
    monkeypatch.undo()
    segments.make("wide", WIDE)


def test_guests_are_off_a_network_that_is_removed(segments, card):
    wide = segments.make("wide", WIDE)
    join(segments, wide)
    wide.backend.attach("web", web := card("web"))
    segments.remove(wide)
    assert web.domain.asked[-1] == ("qom-set", BARRIER | {"value": "on"})
    with pytest.raises(SwitchFailed, match="the guest or the segment was removed"):
        wide.backend.attach("web", web)


def test_frames_of_all_machines_of_a_guest_are_counted(segments, card):
    lan = segments.make("lan", LAN)
    join(segments, lan)
    assert lan.backend.traffic("web") == (0, 0)
    first, second = card("web"), card("web+1")
    lan.backend.attach("web", first)
    passes(first, 3, 2)
    assert lan.backend.traffic("web") == (3, 2)
    passes(second, 100, 100)  # behind the barrier, until it is attached
    lan.backend.attach("web", second)
    assert lan.backend.traffic("web") == (3, 2)
    passes(second, 110, 120)
    assert lan.backend.traffic("web") == (13, 22)
    assert lan.counters["web"] == {
        "out": {"frames": 22, "bytes": 22 * 60, "dropped": {}},
        "in": {"frames": 13, "bytes": 13 * 60, "dropped": {}},
    }
    second.domain.destroy()
    assert lan.backend.traffic("web") == (13, 22), "what was seen last"


def test_what_a_removed_guest_had_is_gone(segments):
    lan = segments.make("lan", LAN)
    web = join(segments, lan)
    segments.leave(web.nics)
    assert lan.counters == {}
    with pytest.raises(
        SwitchFailed, match="lan has no link web any more: the guest or the segment was removed"
    ):
        lan.backend.traffic("web")


# ---------------------------------------------------------------- by way of the switch


class QemuEnds:
    """What QEMU has connected to the switch for a card: the frames that it redirects."""

    def __init__(self, card):
        added = [asked for command, asked in card.domain.asked if command == "chardev-add"]
        paths = {
            each["id"].removeprefix("ua-kvmsegment1-"): each["backend"]["data"]["addr"]["data"]["path"]
            for each in added
        }
        self._ends = {name: Card(path) for name, path in paths.items()}
        self.from_card = self._ends["from-card"]

    def send_from_host(self, *frames):
        self._ends["from-tap"].socket.sendall(b"".join(frames))

    def received(self, *, timeout=5.0):
        """Return what has come to the card next."""
        self._ends["to-card"].socket.settimeout(timeout)
        try:
            return self._ends["to-card"].socket.recv(1 << 16)
        except TimeoutError:
            return None

    def close(self):
        for each in self._ends.values():
            each.close()


@pytest.fixture
def redirected():
    """Return a function that connects a card to the switch as QEMU does."""
    with ExitStack() as stack:
        yield lambda card: stack.enter_context(closing(QemuEnds(card)))


HOST = b"\x52\x54\x00\x00\x00\x99"


def from_host(nic, payload):
    """Return a frame as QEMU redirects it: behind two lengths and virtio's header."""
    sent = frame(bytes.fromhex(nic.mac.replace(":", "")), HOST, payload)
    return struct.pack(">II", 12 + len(sent), 12) + bytes(12) + sent


def test_no_frame_passes_the_switch_before_the_first_fault(segments, card):
    lan = segments.make("lan", LAN)
    join(segments, lan)
    lan.backend.attach("web", first := card("web"))
    assert {command for command, _ in first.domain.asked} == {"qom-set"}
    lan.backend.set_link("web", up=False)
    lan.backend.traffic("web")
    assert {command for command, _ in first.domain.asked} == {"qom-set"}


def test_a_fault_leads_all_cards_through_the_switch(segments, card, redirected):
    lan = segments.make("lan", LAN)
    web, db = join(segments, lan), join(segments, lan, "db")
    lan.backend.attach("web", first := card("web"))
    passes(first, 3, 2)
    fault = lan.drop("udp", link=web)
    lan.backend.attach("db", second := card("db"))
    ours, theirs = redirected(first), redirected(second)
    ours.send_from_host(from_host(web.nics[0], b"hello"))
    assert ours.received() == from_host(web.nics[0], b"hello")
    theirs.send_from_host(from_host(db.nics[0], b"hello"))
    assert theirs.received() == from_host(db.nics[0], b"hello")
    assert lan.counters["web"]["in"] == {"frames": 4, "bytes": 3 * 60 + 19, "dropped": {}}
    assert lan.backend.traffic("web") == (4, 2)
    passes(first, 4, 2)
    assert lan.backend.traffic("web") == (4, 2), "the switch has counted this one already"
    fault.undo()
    theirs.send_from_host(from_host(db.nics[0], b"still"))
    assert theirs.received() == from_host(db.nics[0], b"still")


def test_the_next_machine_of_a_guest_is_redirected_when_it_is_attached(segments, card, redirected):
    lan = segments.make("lan", LAN)
    web = join(segments, lan)
    lan.isolate(web).undo()
    lan.backend.attach("web", first := card("web"))
    redirected(first)
    lan.backend.attach("web", None)
    lan.backend.attach("web", second := card("web+1"))
    ends = redirected(second)
    ends.send_from_host(from_host(web.nics[0], b"hello"))
    assert ends.received() == from_host(web.nics[0], b"hello")
    lan.backend.attach("web", None)
    lan.backend.attach("web", second)
    ends.send_from_host(from_host(web.nics[0], b"again"))
    assert ends.received() == from_host(web.nics[0], b"again")
    added = [asked for command, asked in second.domain.asked if command == "object-add"]
    assert len(added) == 2, "once for each direction"


def test_a_pulled_cable_is_pulled_in_the_switch_too(segments, card, redirected):
    lan = segments.make("lan", LAN)
    web = join(segments, lan, link="down")
    lan.isolate(web).undo()
    lan.backend.attach("web", first := card("web"))
    ends = redirected(first)
    ends.send_from_host(from_host(web.nics[0], b"hello"))
    assert ends.received(timeout=0.1) is None
    lan.backend.set_link("web", up=True)
    ends.send_from_host(from_host(web.nics[0], b"again"))
    assert ends.received() == from_host(web.nics[0], b"again")


def test_a_bandwidth_holds_also_between_guests(segments, card, redirected):
    lan = segments.make("lan", replace(LAN, inbound="8kbit", outbound="8kbit"))
    web = join(segments, lan)
    lan.backend.attach("web", first := card("web"))
    lan.isolate(web).undo()
    ends = redirected(first)
    ends.send_from_host(*[from_host(web.nics[0], bytes(1000))] * 400)
    assert ends.received() is not None
    assert set(lan.counters["web"]["in"]["dropped"]) == {"rate"}


@pytest.mark.parametrize("failing", ["chardev-add", "object-add"])
def test_a_card_that_cannot_be_redirected_leaves_all_as_it_was(segments, card, monkeypatch, failing):
    monkeypatch.setattr(redirected_segment, "_END_IS_TOLD_WITHIN", 0.0)
    lan = segments.make("lan", LAN)
    web, _ = join(segments, lan), join(segments, lan, "db")
    lan.backend.attach("web", first := card("web"))
    lan.backend.attach("db", second := card("db"))
    passes(first, 3, 2)
    qmp = second.domain.qmp

    def fail(command, arguments=None):
        if command == failing:
            raise DomainFailed("permission denied")
        return qmp(command, arguments)

    monkeypatch.setattr(second.domain, "qmp", fail)
    with pytest.raises(SwitchFailed, match="a card on a libvirt network: permission denied"):
        lan.isolate(web)
    monkeypatch.undo()
    for each in (first, second):
        ends = {"object-add": "object-del", "chardev-add": "chardev-remove"}
        begun = [(ends[command], asked["id"]) for command, asked in each.domain.asked if command in ends]
        ended = [(command, asked["id"]) for command, asked in each.domain.asked if command in ends.values()]
        assert ended == begun[::-1]
    passes(first, 5, 2)
    assert lan.backend.traffic("web") == (5, 2)
    assert lan.faults == ()
    lan.isolate(web).undo()


def test_a_machine_that_ends_while_it_is_redirected_is_no_failure(segments, card, monkeypatch):
    lan = segments.make("lan", LAN)
    web = join(segments, lan)
    lan.backend.attach("web", first := card("web"))

    def end(*_arguments):
        first.domain.end("QEMU died")
        raise DomainFailed("the monitor is gone")

    monkeypatch.setattr(first.domain, "qmp", end)
    lan.isolate(web).undo()


def test_what_the_switch_had_to_do_with_a_network_goes_with_it(segments, card, redirected, switch):
    lan = segments.make("lan", LAN)
    join(segments, lan)
    lan.backend.attach("web", first := card("web"))
    lan.capture().stop()
    ends = redirected(first)
    segments.remove(lan)
    assert first.domain.asked[-1] == ("qom-set", BARRIER | {"value": "on"})
    switch.get().add_segment("lan-1")
    with pytest.raises(EOFError):
        ends.from_card.receive()


def test_a_link_may_go_back_to_a_former_machine(segments, card, redirected):
    lan = segments.make("lan", LAN)
    web = join(segments, lan)
    lan.isolate(web).undo()
    lan.backend.attach("web", first := card("web"))
    former = redirected(first)
    lan.backend.attach("web", second := card("web+1"))
    lan.backend.attach("web", first)
    former.send_from_host(from_host(web.nics[0], b"hello"))
    assert former.received() == from_host(web.nics[0], b"hello")
    added = [asked["id"] for command, asked in first.domain.asked if command == "chardev-add"]
    assert len(added) == len(set(added)), "QEMU knows these names already"
    second.domain.destroy()
    redirected(second)
    lan.backend.attach("web", third := card("web+1"))
    ends = redirected(third)
    ends.send_from_host(from_host(web.nics[0], b"hello"))
    assert ends.received() == from_host(web.nics[0], b"hello")


def test_frames_that_wait_in_the_switch_are_waited_for(segments, card, redirected):
    lan = segments.make("lan", LAN)
    web = join(segments, lan)
    lan.backend.attach("web", first := card("web"))
    lan.isolate(web).undo()
    ends = redirected(first)
    ends.send_from_host(from_host(web.nics[0], b"hello"))

    def check_arrived() -> None:
        if not lan.counters["web"]["in"]["frames"]:
            raise NotYet("no frame")

    wait_until(check_arrived, describe="the frame in the switch", timeout=20, every=0.01)
    assert not lan.backend.is_drained(first)
    assert ends.received() is not None
    assert lan.backend.is_drained(first)
    assert lan.backend.is_drained(card("other")), "which was never redirected"


def test_a_card_of_another_model_has_no_header(segments, card, redirected, monkeypatch):
    lan = segments.make("lan", LAN)
    web = join(segments, lan)
    lan.backend.attach("web", first := card("web"))
    qmp = first.domain.qmp

    def answer(command, arguments=None):
        return "e1000e" if command == "qom-get" else qmp(command, arguments)

    monkeypatch.setattr(first.domain, "qmp", answer)
    join(segments, lan, "db")
    lan.backend.attach("db", second := card("db"))
    lan.isolate(web).undo()
    ends, others = redirected(first), redirected(second)
    sent = frame(b"\xff" * 6, HOST, b"hello")
    others.from_card.socket.sendall(struct.pack(">II", 12 + len(sent), 12) + bytes(12) + sent)
    assert ends.received() == struct.pack(">II", len(sent), 0) + sent


def test_a_removed_guest_leaves_no_port(segments, card, redirected):
    lan = segments.make("lan", LAN)
    web = join(segments, lan)
    lan.backend.attach("web", first := card("web"))
    lan.isolate(web).undo()
    ends = redirected(first)
    segments.leave(web.nics)
    with pytest.raises(EOFError):
        ends.from_card.receive()


def test_the_end_of_the_switch_is_told_and_leaves_guests_cut_off(segments, card, switch):
    lan = segments.make("lan", LAN)
    web = join(segments, lan)
    lan.backend.attach("web", first := card("web"))
    lan.backend.check()
    lan.isolate(web).undo()
    lan.backend.check()
    os.kill(switch.get().pid, signal.SIGKILL)
    with pytest.raises(SwitchFailed, match="has ended"):
        lan.backend.traffic("web")
    with pytest.raises(SwitchFailed, match="has ended"):
        lan.backend.check()
    with pytest.raises(SwitchFailed, match="has ended"):
        segments.remove(lan)
    assert first.domain.asked[-1] == ("qom-set", BARRIER | {"value": "on"})
