"""Asks for room for a test's guests before its fixtures run, as far as collection knows them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvm.plugin.collection import planned_guests, uses_guests
from pytest_kvm.plugin.session import existing_run, run_of, scopes_of

if TYPE_CHECKING:
    from pytest_kvm.provision.admission_rules import Amount
    from pytest_kvm.spec.guest import GuestSpec

_PEAK = pytest.StashKey["Amount"]()


class Reservation:
    """A plugin that lets a test's set-up begin once there is room for all guests that it will start.

    It is apart from the plugin's other hooks, because these run before the hooks that skip
    a test: nobody waits for room for a test that a marker or a ``conftest.py`` skips.
    """

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Wait for room.

        Raises:
            NoCapacity: There is never room for all of them, or there was none in time.
        """
        if not uses_guests(item) or item.config.getoption("setupplan", default=False):
            return
        scopes_of(item.config).finish_outdated(item)
        # Guests of wider scopes that live already have theirs.
        missing = [each for each in planned_guests(item) if each.definition.cached_result is None]
        run_of(item.config).reserve(
            [each.spec for each in missing],
            peak=_peak_of(item.session),
            is_wide=any(each.definition.scope != "function" for each in missing),
        )


def end_reservation(config: pytest.Config) -> None:
    """Give back what was reserved for a test's set-up and not used by it."""
    run = existing_run(config)
    if run is not None:
        run.end_reservation()


def _peak_of(session: pytest.Session) -> Amount:
    """Return the most that guests of a session's tests take at a time."""
    stash = session.config.stash
    if _PEAK not in stash:
        stash[_PEAK] = _peak(item for item in session.items if uses_guests(item))
    return stash[_PEAK]


def _peak(items: Iterable[pytest.Item]) -> Amount:
    from pytest_kvm.provision.admission_rules import NOTHING, USUAL, total  # noqa: PLC0415 - only with guests

    tests: list[tuple[Amount, set[object]]] = []
    """Of each test what its own guests take, and the places whose guests live meanwhile."""
    shared: dict[object, dict[object, Amount]] = defaultdict(dict)
    """What guests of wider scopes take, by the place that they live as long as."""
    for item in items:
        own = [USUAL] if "kvm_guests" in getattr(item, "fixturenames", ()) else []
        places: set[object] = {item.session}
        for planned in planned_guests(item):
            amount = _amount(planned.spec)
            place = _place(planned.definition, item)
            if place is item:
                own.append(amount)
            else:
                places.add(place)
                guests = shared[place]
                guests[planned.definition] = amount.or_more(guests.get(planned.definition, NOTHING))
        tests.append((total(own), places | _around(item)))
    wider = {place: total(guests.values()) for place, guests in shared.items()}
    peak = NOTHING
    for own_amount, places in tests:
        peak = peak.or_more(total([own_amount, *(wider.get(place, NOTHING) for place in places)]))
    return peak


def _amount(spec: GuestSpec | None) -> Amount:
    from pytest_kvm.provision.admission_rules import USUAL, Amount  # noqa: PLC0415 - only with guests

    return USUAL if spec is None else Amount.of(spec)


def _around(item: pytest.Item) -> set[object]:
    """Return the places of wider scopes that a test is in."""
    nodes = (item.getparent(pytest.Class), item.getparent(pytest.Module))
    return {node for node in nodes if node is not None}


def _place(definition: Any, item: pytest.Item) -> object:  # noqa: ANN401 - pytest's FixtureDef
    """Return what the value of a fixture lives as long as."""
    match definition.scope:
        case "class":
            return item.getparent(pytest.Class) or item
        case "module":
            return item.getparent(pytest.Module) or item
        case "package" | "session":  # a package's ends with the session at the latest
            return item.session
        case _:
            return item
