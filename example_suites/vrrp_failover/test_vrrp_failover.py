"""The gateway moves when its cable is pulled, comes back, and is never in two places."""

from __future__ import annotations

import re
from itertools import count, cycle, groupby

import pytest

import pytest_kvm as kvm


def gateways(router: kvm.Guest) -> set[str]:
    """Return which of the shared addresses a router has."""
    return set(re.findall(r" (10\.[23]\.0\.1)/", router.run(["ip", "-4", "-oneline", "address"]).stdout))


def never_two_gateways(first: kvm.Guest, second: kvm.Guest) -> kvm.polling:
    """Watch over the shared addresses, each of which only one router may have.

    A router gives its addresses up when it hears of a better router. While that
    message is under way, both have them. What is found once is looked at once
    more, therefore: a mistake lasts longer.
    """

    def shared() -> set[str]:
        return gateways(first) & gateways(second)

    def two_gateways() -> None:
        assert not (shared() and shared())

    return kvm.polling(two_gateways, every=0.2)


def wait_for_answer(client: kvm.Guest, address: str, *, by: kvm.GuestNic) -> None:
    """Ping an address until an answer comes by a router's card."""
    with by.segment.capture() as crossed, client.start(["ping", address]):
        crossed.wait_for_packet(f"icmp[icmptype] == icmp-echoreply and ether src {by.mac}", timeout=120)


def wait_for_announcements(segment: kvm.Segment, router: kvm.Guest, *, times: int = 3) -> list[str]:
    """Wait until a router has announced itself so many times; return who announced itself in this time."""
    announcements = count(1)

    def is_last(packet: kvm.Packet) -> bool:
        return packet.protocol == "vrrp" and packet.link == router.name and next(announcements) == times

    with segment.capture() as crossed:
        crossed.wait_for_packet(is_last, timeout=120)
        return announcers(crossed)


def announcers(crossed: kvm.Capture) -> list[str]:
    """Return who announced itself as the master, in turns: announcements in a row count as one."""
    return [link for link, _ in groupby(packet.link for packet in crossed if packet.protocol == "vrrp")]


def test_the_gateway_moves_and_comes_back(inside, outside, client, server, first, second):
    address = server.address(outside)
    with never_two_gateways(first, second), outside.capture() as crossed:
        wait_for_answer(client, address, by=first.nics[0])
        with inside.unplug(first):
            wait_for_answer(client, address, by=second.nics[0])
            wait_for_announcements(outside, second)
        wait_for_answer(client, address, by=first.nics[0])
        wait_for_announcements(outside, first)
    # Two masters would announce themselves in turns. Only at a change, two announcements may cross.
    assert announcers(crossed) in (
        ["first", "second", "first"],
        ["first", "second", "first", "second", "first"],
    )


def test_half_of_the_announcements_are_enough(inside, first):
    """The second router takes over when it has not heard three in a row."""
    losses = cycle([True, False])
    with inside.drop(lambda packet: packet.protocol == "vrrp" and next(losses), link=first, direction="out"):
        assert wait_for_announcements(inside, first) == ["first"]
    assert first.nics[0].counters["out"]["dropped"]["drop"] >= 3


def test_two_gateways_would_be_seen(inside, outside, first, second):
    """The second router does not hear the first any more, and has to think that it is gone."""
    for segment in (inside, outside):
        segment.drop("vrrp", link=first, direction="out")
    with pytest.raises(AssertionError, match=r"10\.2\.0\.1"), never_two_gateways(first, second):
        second.wait_until("ip -4 -oneline address | grep -F ' 10.2.0.1/'")
    assert gateways(first) == gateways(second)
