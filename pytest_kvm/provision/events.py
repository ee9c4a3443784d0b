"""Events: what was done to a run's guests and how long it took, for reports and for a file of events.

Several processes may write to one file, as xdist's workers do: each event is
one line of JSON, appended to the end of the file by one write (``O_APPEND``, open(2)).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pytest_kvm.errors import HostError

if TYPE_CHECKING:
    from pytest_kvm.spec.guest import GuestSpec

Kind = Literal[
    "wait", "boot", "template", "clone", "forming", "lab", "savepoint", "reset", "reboot", "failure", "image"
]
WORDS: dict[Kind, str] = {
    "wait": "room wait",
    "image": "image build",
    "boot": "cold boot",
    "failure": "failed boot",
    "template": "derived template",
    "clone": "clone",
    "forming": "forming",
    "lab": "lab start",
    "savepoint": "savepoint",
    "reset": "reset",
    "reboot": "reboot",
}
"""The name of each kind in reports, in the order in which a report lists them."""
STARTS: tuple[Kind, ...] = ("boot", "template", "clone")
"""What a guest's start consists of. The last event of a start is the one that is not for a template."""
Tier = Literal["cold", "cow", "snapshot", "pool", "load"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that was done to a guest and took time."""

    guest: str
    """The guest's name, or that of a lab template, or of a test that has waited; empty for an image that
    was built without a guest (``pytest-kvm images build``)."""
    kind: Kind
    """``boot``: the guest was booted from power on; ``template``: its template was derived from
    another, by plugging its cards in; ``clone``: it was started from a template; ``forming``: the
    function of a lab template was called; ``lab``: the guests of a lab were started as they were when
    it was formed; ``savepoint``: a savepoint was taken; ``reset``: changes were undone; ``reboot``: a
    test restarted the guest, or switched it on again; ``failure``: the guest never became ready;
    ``image``: an image was built for the guest; ``wait``: a test has waited for room for its guests."""
    tier: Tier | None = None
    """How a boot, clone or reset was done: ``cold`` boot; ``cow``: a clone that maps
    the template's memory; ``snapshot``: a new domain from a snapshot in the disks;
    ``pool``: a spare clone; ``load``: a savepoint was restored in place. None for
    all other kinds."""
    seconds: float
    why: str = ""
    """Why this tier was used, or why the event was necessary; a phrase for people."""
    spec: str = ""
    """The guest's spec as text, for a boot, a failed boot and a derived template only."""
    for_template: bool = False
    """Whether the guest's template was made by it: the guest's own start follows."""


def cold_boot_event(
    guest: str, *, spec: GuestSpec, seconds: float, why: str, for_template: bool = False
) -> Event:
    """Return the event of a boot from power on, of a guest or of what its template is made of."""
    return Event(
        guest=guest,
        kind="boot",
        tier="cold",
        seconds=seconds,
        why=why,
        spec=repr(spec),
        for_template=for_template,
    )


EventListener = Callable[[Event], None]
"""Called with every event, in the thread in which the event happens."""


def ignore(event: Event) -> None:
    """Do nothing with an event: the listener where there is no other."""
    del event


_log = logging.getLogger("pytest_kvm.events")


class EventLog:
    """Writes events to a file, each with its time, its test and its process.

    Args:
        file: The file; made if it does not exist, and never emptied.

    Raises:
        HostError: The file cannot be written.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._within = _current_test()
        """The test of an outer pytest run that started this process; empty if none did."""
        try:
            file.open("ab").close()
        except OSError as error:
            raise HostError(
                f"events cannot be written to {file}: {error.strerror}",
                resolution="name a file that you may write to: --kvm-events, PYTEST_KVM_EVENTS or kvm_events",
            ) from error

    def tell(self, event: Event) -> None:
        """Append an event, from any thread; if that fails (a full disk), only log a warning."""
        test = _current_test()
        line = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **asdict(event),
            "test": "" if test == self._within else test,
            "within": self._within,
            "worker": os.environ.get("PYTEST_XDIST_WORKER", ""),
            "pid": os.getpid(),
        }
        try:
            # Opened for each event: an event may come after the end of the session that would close the file.
            with self._file.open("ab", buffering=0) as sink:
                sink.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            _log.warning("an event is missing in %s: %s", self._file, error)


def _current_test() -> str:
    """Return the running test's id, as pytest tells it to the programs it starts."""
    return os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]
