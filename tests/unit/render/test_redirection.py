"""The filters by which QEMU leads a card's frames through the switch."""

from __future__ import annotations

from pathlib import Path

from pytest_kvm.render.qemu_args import segment_card_ids
from pytest_kvm.render.redirection import RedirectionPorts, redirection


def test_ports_are_beside_the_cards_own_and_no_longer():
    ports = RedirectionPorts.of(Path("/run/web/nic1.sock"))
    assert [port.name for port in ports] == ["nic1.fc", "nic1.tc", "nic1.ft", "nic1.tt"]


def test_each_command_has_one_that_undoes_it():
    ports = RedirectionPorts.of(Path("/run/web/nic1.sock"))
    devices, filters = redirection(segment_card_ids(1, is_tap=True), ports)
    begun, undone = zip(*devices, *filters, strict=True)
    assert [(name, asked["id"]) for name, asked in begun] == [
        ("chardev-add", "ua-kvmsegment1-from-card"),
        ("chardev-add", "ua-kvmsegment1-to-card"),
        ("chardev-add", "ua-kvmsegment1-from-tap"),
        ("chardev-add", "ua-kvmsegment1-to-tap"),
        ("object-add", "ua-kvmsegment1-tx"),
        ("object-add", "ua-kvmsegment1-rx"),
    ]
    to_card, to_tap = (asked for name, asked in begun if name == "object-add")
    assert to_card == {
        "qom-type": "filter-redirector",
        "id": "ua-kvmsegment1-tx",
        "netdev": "hostua-kvmsegment1",
        "queue": "tx",
        "outdev": "ua-kvmsegment1-from-tap",
        "indev": "ua-kvmsegment1-to-card",
        "vnet_hdr_support": True,
    }
    assert (to_tap["queue"], to_tap["outdev"], to_tap["indev"]) == (
        "rx",
        "ua-kvmsegment1-from-card",
        "ua-kvmsegment1-to-tap",
    )
    assert [(name, asked["id"]) for name, asked in undone] == [
        ("chardev-remove" if name == "chardev-add" else "object-del", asked["id"]) for name, asked in begun
    ]
