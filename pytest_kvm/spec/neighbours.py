"""Checks that guests can be on one segment together: their addresses, their names, and the subnet's size."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_kvm.errors import SpecError
from pytest_kvm.spec.guest import GuestSpec
from pytest_kvm.spec.network import Network, known_subnet
from pytest_kvm.spec.nic import Nic
from pytest_kvm.spec.subnets import count_hosts

_NOT_IN_HOSTNAMES = re.compile(r"[^a-zA-Z0-9-]+")
_LONGEST_LABEL = 63


def hostname_from(name: str) -> str:
    """Return a host name made of a guest's name ("web_1" → "web-1")."""
    return _NOT_IN_HOSTNAMES.sub("-", name).strip("-")[:_LONGEST_LABEL].strip("-") or "guest"


def check_neighbours(name: str, spec: GuestSpec, *, others: Mapping[str, GuestSpec]) -> None:
    """Check that a guest can join the segments of its spec, which other guests have joined.

    Args:
        name: The guest's name.
        spec: What the guest is made of.
        others: Specs of the other guests by name.

    Raises:
        SpecError: Two cards have one address, two guests have one name, or a subnet is too small.
    """
    earlier = [card for other, other_spec in others.items() for card in _cards(other, other_spec)]
    for card in _cards(name, spec):
        there = [each for each in earlier if each.segment is card.segment]
        for field in ("address", "address6", "mac"):
            _check_unlike(card, there, field=field)
        for guest in dict.fromkeys(each.guest for each in there if each.guest != name):
            _check_names(card, names_of(name, spec), guest, names_of(guest, others[guest]))
        _check_size(card, there)
        earlier.append(card)


def names_of(name: str, spec: GuestSpec) -> tuple[str, ...]:
    """Return the names by which other guests on a segment find a guest; the first is its host name."""
    hostname = spec.hostname or hostname_from(name)
    return tuple(dict.fromkeys([hostname, hostname.partition(".")[0], hostname_from(name)]))


@dataclass(frozen=True)
class _Card:
    """A card on a segment."""

    guest: str
    nic: Nic
    segment: Network


def _cards(guest: str, spec: GuestSpec) -> list[_Card]:
    return [_Card(guest, nic, nic.segment) for nic in spec.nics if nic.segment is not None]


def _check_unlike(card: _Card, there: Sequence[_Card], *, field: str) -> None:
    value: str | None = getattr(card.nic, field)
    holder = next((each for each in there if getattr(each.nic, field) == value), None)
    if value is not None and holder is not None:
        raise SpecError(
            f"Nic.{field} of {card.guest}: {value} is the address of {holder.guest} on {card.segment.name}",
            resolution="give each card its own address, or leave it out",
        )


def _check_names(card: _Card, names: Sequence[str], other: str, other_names: Sequence[str]) -> None:
    taken = {name.lower() for name in other_names}
    alike = [name for name in names if name.lower() in taken]
    if alike:
        raise SpecError(
            f"{card.guest} and {other} are both called {alike[0]!r} on {card.segment.name}",
            resolution="give each its own hostname=, or its fixture another name",
        )


def _check_size(card: _Card, there: Sequence[_Card]) -> None:
    fixed = sum(each.nic.has_fixed_address for each in [*there, card])
    for version in (4, 6):
        subnet = known_subnet(card.segment, version)
        if subnet is None:
            continue
        hosts = count_hosts(subnet) - sum(each in subnet for each in card.segment.gateways)
        if fixed > hosts:
            raise SpecError(
                f"{card.guest}: {card.segment.name} has addresses for {hosts} cards, "
                f"as its subnet is {subnet}, and the test's guests have {fixed} there",
                resolution="give the segment a larger subnet",
            )
