"""A file of events: each event is one line of JSON, appended when it happens.

Several processes may write to one file, as xdist's workers do: each line is
appended to the end of the file by one write (``O_APPEND``, open(2)).
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from pytest_kvm.errors import HostError
from pytest_kvm.provision.events import Event

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
