"""Events: what was done to a run's guests and how long it took, for reports."""

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
"""The name of each kind in reports, in the order in which a report lists them."""
Tier = Literal["cold", "cow", "snapshot", "pool", "load"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that was done to a guest and took time."""

    guest: str
    """The guest's name; empty for an image that was built without a guest (``pytest-kvm images build``)."""
    kind: Kind
    """``boot``: the guest was booted from power on; ``clone``: it was started from a
    template; ``savepoint``: a savepoint was taken; ``reset``: changes were undone;
    ``reboot``: a test restarted the guest; ``failure``: the guest never became
    ready; ``image``: an image was built for the guest."""
    tier: Tier | None = None
    """How a boot, clone or reset was done: ``cold`` boot; ``cow``: a clone that maps
    the template's memory; ``snapshot``: a new domain from a snapshot in the disks;
    ``pool``: a spare clone; ``load``: a savepoint was restored in place. None for
    all other kinds."""
    seconds: float
    why: str = ""
    """Why this tier was used, or why the event was necessary; a phrase for people."""
    spec: str = ""
    """The guest's spec as text, for a boot and a failed boot only."""


Listener = Callable[[Event], None]
"""Called with every event, in the thread in which the event happens."""


def ignore(event: Event) -> None:
    """Do nothing with an event: the listener where there is no other."""
    del event
