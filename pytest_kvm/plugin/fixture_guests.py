"""Knows which guests a fixture has by its arguments, whether or not a test has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvm.plugin.session import existing_run

if TYPE_CHECKING:
    from pytest_kvm.handles.guest import Guest

_GUESTS = pytest.StashKey[dict[str, "frozenset[Guest]"]]()
"""The guests of each fixture that was set up last under a name."""


def guests_of_arguments(definition: pytest.FixtureDef[Any], config: pytest.Config) -> frozenset[Guest]:
    """Return the guests that a fixture has by its arguments, and by theirs."""
    known = config.stash.setdefault(_GUESTS, {})
    return frozenset[Any]().union(*(known.get(name, ()) for name in definition.argnames))


def note_value(definition: pytest.FixtureDef[Any], value: object, *, config: pytest.Config) -> None:
    """Note that a fixture is set up and has a value."""
    run = existing_run(config)
    if run is not None:
        own = {value} if run.holds(value) else set[Any]()
        guests = guests_of_arguments(definition, config) | own
        config.stash[_GUESTS][definition.argname] = guests
