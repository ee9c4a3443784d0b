"""Segments that are libvirt networks, on a hypervisor that makes none."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import ConnectionFailed, DomainFailed, NetworkFailed, SpecError, SwitchFailed
from pytest_kvm.handles.segment_backend import MachineCard
from pytest_kvm.host.undo_notes import UndoNotes
from pytest_kvm.hypervisor.protocol import CardFrames
from pytest_kvm.provision import libvirt_segment
from pytest_kvm.provision.libvirt_segment import tap_name
from pytest_kvm.provision.run_resources import Lazy
from pytest_kvm.provision.segments import Segments
from pytest_kvm.render.qemu_args import segment_card_ids
from tests.fakes_hypervisor import FakeHypervisor

LAN = kvm.NetworkSpec(backend="libvirt", subnet="10.1.0.0/24", subnet6=None)
IDS = segment_card_ids(1, is_tap=True)
BARRIER = {"path": "/objects/ua-kvmsegment1-barrier", "property": "status"}


@pytest.fixture
def hypervisor():
    return FakeHypervisor(qmp={"qom-set": {}, "query-status": {}})


@pytest.fixture
def resources(hypervisor, tmp_path):
    folder = tmp_path / "0123abcd"
    folder.mkdir()
    opened = SimpleNamespace(
        folder=folder,
        session=folder.name,
        hypervisor=hypervisor,
        is_system=True,
        undo_notes=UndoNotes(folder),
    )
    return Lazy(lambda: nullcontext(opened))


@pytest.fixture
def new_segments(faults, captures, removed):
    """Return a function that returns the segments of a run with these resources."""

    def new_segments(resources):
        no_switch: Any = None
        segments: Any = Segments(
            no_switch,
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
    monkeypatch.setattr(libvirt_segment, "_END_IS_TOLD_WITHIN", 0.0)
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

    monkeypatch.setattr(libvirt_segment, "_END_IS_TOLD_WITHIN", 0.0)
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


@pytest.mark.parametrize(
    ("verb", "use"),
    [
        ("delay", lambda lan, web: lan.delay(1, link=web)),
        ("a partition", lambda lan, web: lan.isolate(web)),
        ("drop", lambda lan, web: lan.drop("tcp")),
        ("a capture", lambda lan, web: lan.capture()),
    ],
    ids=["delay", "isolate", "drop", "capture"],
)
def test_what_only_the_switch_can_is_refused(segments, verb, use):
    lan = segments.make("lan", LAN)
    web = join(segments, lan)
    with pytest.raises(SpecError, match=f"lan: {verb} needs the run's switch") as refused:
        use(lan, web)
    assert refused.value.resolution.endswith("for all else leave out backend=")
    assert lan.faults == ()
