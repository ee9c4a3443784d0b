"""Links of guests whose QEMU is a socket, on a real switch."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace
from typing import Any

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import DomainFailed, SnapshotFailed, SwitchFailed
from pytest_kvm.hypervisor.protocol import DomainState
from pytest_kvm.machine.carriers import Carriers
from pytest_kvm.provision import guest_links
from pytest_kvm.provision.guest_links import GuestLinks
from pytest_kvm.provision.machine_plan import port_path
from tests.unit.switch.conftest import EVERYBODY, Card, frame, mac


class FakeDomain:
    """Does as QEMU does: reads while it runs, and drops frames if its link is down then."""

    def __init__(self, card: Card | None = None) -> None:
        self.running = True
        self.done: list[str] = []
        self.fails = ""
        """The step at which the monitor fails."""
        self.clock = time.monotonic
        self._card = card
        self._has_link = True

    def state(self) -> DomainState:
        return DomainState.RUNNING if self.running else DomainState.PAUSED

    def qmp(self, command: str, arguments: dict[str, Any]) -> None:
        self._do(f"{command} {arguments['name']} {'up' if arguments['up'] else 'down'}")
        self._has_link = arguments["up"]
        self._read()

    def suspend(self) -> None:
        self._do("suspend")
        self.running = False

    def resume(self) -> None:
        self._do("resume")
        self.running = True
        self._read()

    def _read(self) -> None:
        if self.running and not self._has_link and self._card is not None:
            self._card.drain(timeout=0.05)

    def _do(self, step: str) -> None:
        self.done.append(step)
        if step == self.fails:
            raise DomainFailed(f"{step} failed")


@pytest.fixture
def join(switch, segments, tmp_path):
    """Return a function that makes a guest on a segment, with its links and what QEMU is to the switch."""
    lan = segments.make("lan", kvm.NetworkSpec(subnet="10.1.0.0/24"))
    cards: list[Card] = []

    def join(name, *links):
        spec = kvm.GuestSpec(nics=[kvm.Nic(lan, link=each) for each in links])
        guest: Any = SimpleNamespace(name=name)
        guest.nics = nics = segments.join(guest, spec, declared_name=name)
        machine: Any = SimpleNamespace(name=name, folder=tmp_path / name, carriers=Carriers())
        machine.folder.mkdir()
        own: list[Card] = []
        for index, _ in enumerate(links):
            switch.get().open_port(port_path(machine.folder, index))
            own.append(Card(port_path(machine.folder, index)))
        cards.extend(own)
        machine.domain = FakeDomain(own[0])
        links = GuestLinks(nics)
        links.attach(machine)
        return links, machine, own

    yield join
    for card in cards:
        card.close()


def test_no_frame_passes_while_links_are_detached(join):
    links, machine, (card,) = join("web", "up")
    _, _, (other,) = join("db", "up")
    links.detach()
    other.send(frame(EVERYBODY, mac(2), b"lost"))
    card.send(frame(EVERYBODY, mac(1), b"lost"))
    links.drop_frames(machine)
    links.attach(machine)
    machine.domain.resume()
    other.send(frame(EVERYBODY, mac(2), b"next"))
    card.send(frame(EVERYBODY, mac(1), b"next"))
    assert card.receive() == frame(EVERYBODY, mac(2), b"next")
    assert other.receive() == frame(EVERYBODY, mac(1), b"next")
    assert links.traffic().reached == 1


@pytest.mark.parametrize(("runs", "first"), [(True, []), (False, ["resume"])])
def test_frames_for_a_machine_are_dropped_before_it_is_loaded(join, runs, first):
    links, machine, (card, second) = join("web", "up", "up")
    machine.domain.running = runs
    links.detach()
    second.drain(timeout=0.05)
    down, up = ([f"set_link kvmsegment{number} {to}" for number in (1, 2)] for to in ("down", "up"))
    links.drop_frames(machine)
    assert machine.domain.done == [*down, *first, "suspend", *up]
    assert not machine.domain.running
    links.attach(machine)
    assert card.drain(timeout=0.05) == []


def test_frames_that_qemu_does_not_read_are_an_error(join, monkeypatch):
    monkeypatch.setattr(guest_links, "_TAKEN_WITHIN", 0.05)
    links, machine, _ = join("web", "up")
    _, _, (other,) = join("db", "up")
    machine.domain = FakeDomain()
    other.send(frame(EVERYBODY, mac(2), b"stays"))
    while not links.traffic().reached:
        pass
    with pytest.raises(SnapshotFailed, match="QEMU of web to drop the frames for its card on lan"):
        links.drop_frames(machine)
    assert not machine.domain.running


def test_a_paused_guest_stays_paused_when_the_switch_has_ended(join, switch):
    links, machine, _ = join("web", "up")
    machine.domain = FakeDomain()
    machine.domain.running = False
    os.kill(switch.get().pid, signal.SIGKILL)
    with pytest.raises(SwitchFailed, match="has ended"):
        links.drop_frames(machine)
    assert machine.domain.done == ["set_link kvmsegment1 down", "resume", "suspend"]


@pytest.mark.parametrize("step", ["set_link kvmsegment1 down", "suspend", "set_link kvmsegment1 up"])
def test_a_monitor_that_fails_is_an_error_of_the_savepoint(join, step):
    links, machine, _ = join("web", "up")
    machine.domain.fails = step
    with pytest.raises(SnapshotFailed, match=f"the frames for web cannot be dropped: {step} failed"):
        links.drop_frames(machine)


def test_cables_that_are_unplugged_stay_so_when_a_machine_is_attached_again(join):
    links, machine, (card, unplugged) = join("web", "up", "down")
    _, _, (other,) = join("db", "up")
    assert machine.domain.done == ["set_link kvmsegment2-card down"]
    links.detach()
    links.drop_frames(machine)
    machine.domain.done.clear()
    links.attach(machine)
    assert machine.domain.done == [], "the savepoint that is loaded decides, and who loads it"
    other.send(frame(EVERYBODY, mac(2), b"next"))
    assert card.receive() == frame(EVERYBODY, mac(2), b"next")
    assert unplugged.drain(timeout=0.05) == []


def test_a_guest_without_cards_on_segments_needs_no_switch():
    links = GuestLinks([])
    machine: Any = None
    links.detach()
    links.drop_frames(machine)
    links.attach(machine)
    assert links.traffic().reached == 0
