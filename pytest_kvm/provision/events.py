"""What happened to a run's guests and how long it took, for reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["boot", "clone", "savepoint", "reset", "reboot", "failure", "image"]
WORDS: dict[Kind, str] = {
    "image": "image build",
    "boot": "cold boot",
    "failure": "failed boot",
    "clone": "clone",
    "savepoint": "savepoint",
    "reset": "reset",
    "reboot": "reboot",
}
"""What people call the kinds, in the order in which a report has them."""
Tier = Literal["cold", "cow", "snapshot", "pool", "load"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that was done to a guest and took time."""

    guest: str
    """Its name; empty for an image that was built for nobody yet."""
    kind: Kind
    """``boot``: from power on; ``clone``: from a template; ``savepoint``: one was
    taken; ``reset``: the guest was put back to one; ``reboot``: a test had it
    restart; ``failure``: it never became ready; ``image``: one was built for it."""
    tier: Tier | None = None
    """How it was done: ``cold`` boot, ``cow`` clone of a template's memory,
    ``snapshot`` in a new domain, a spare clone of the ``pool``, ``load`` in
    place; None for all other kinds."""
    seconds: float
    why: str = ""
    """What made this tier the one, or this event necessary; a phrase for people."""
    spec: str = ""
    """Of a boot, also one that failed: what the guest is made of."""


Listener = Callable[[Event], None]
"""Is told of every event, from whatever thread it happens in."""


def ignore(event: Event) -> None:
    """Stand in for nobody who listens."""
    del event
