"""Guests on a segment of a real switch whose cards are sockets."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest_kvm as kvm
from pytest_kvm.handles.guest import Guest
from pytest_kvm.machine.carriers import Carriers
from tests.fakes_hypervisor import FakeDomain
from tests.unit.provision.started_machines import future_of
from tests.unit.switch.conftest import Card, frame, mac

SPEC = kvm.NetworkSpec(subnet="10.1.0.0/24", subnet6=None)


class JoinedGuests:
    """Guests on one segment, each with a card that is a socket."""

    def __init__(self, segments, switch, folder) -> None:
        self.segments = segments
        self.lan = segments.make("lan", SPEC)
        self.cards: dict[str, Card] = {}
        self.domains: dict[str, FakeDomain] = {}
        self._switch = switch
        self._folder = folder

    def join(self, name, *links):
        """Make a guest with a card for each link: "up" or "down"."""
        domain = FakeDomain("<domain/>", paused=False, qmp={"set_link": {}}, agent={})
        machine: Any = SimpleNamespace(domain=domain, carriers=Carriers())
        guest = Guest(name, future_of(machine))
        spec = kvm.GuestSpec(nics=[kvm.Nic(self.lan, link=each) for each in links or ("up",)])
        guest.nics = self.segments.join(guest, spec, declared_name=name)
        for nic in guest.nics:
            port = self._folder / f"{nic.link}.sock"
            self._switch.get().open_port(port)
            self.cards[nic.link] = Card(port)
            card: Any = SimpleNamespace(port=port)
            self.lan.backend.attach(nic.link, card)
        self.domains[name] = domain
        return guest

    def reaches(self, sender, target):
        """Say whether a frame to everybody that one card sends reaches another."""
        for card in self.cards.values():
            card.drain(timeout=0.05)
        before = self._ends_of_frames(sender)
        self.cards[sender].send(frame(b"\xff" * 6, mac(list(self.cards).index(sender)), b"hello"))
        deadline = time.monotonic() + 2  # a predicate may never answer
        while self._ends_of_frames(sender) - before < 1 and time.monotonic() < deadline:
            pass
        return bool(self.cards[target].drain(timeout=0.05))

    def _ends_of_frames(self, sender):
        """Return how many frames of a card were dropped before the others, or have come to an end at all."""
        counters = self.lan.counters
        got = sum(each["in"]["frames"] + sum(each["in"]["dropped"].values()) for each in counters.values())
        return got / (len(counters) - 1) + sum(counters[sender]["out"]["dropped"].values())

    def close(self):
        for card in self.cards.values():
            card.close()
