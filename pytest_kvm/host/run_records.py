"""Records in a run's folder of what the run does now: its test, and each of its machines.

They are for those who look from outside (``pytest-kvm ps``); the run itself does not
depend on them. A record that cannot be written, because the disk is full for
instance, fails no test.
"""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pytest_kvm.host import json_file

TEST = "test.json"
"""In the run's folder."""
MACHINE = "machine.json"
"""In the folder of each machine."""
_LONGEST = 1000
"""Characters of a test's id, and of what it waits for."""
_log = logging.getLogger("pytest_kvm.run")

MachineState = Literal["starting", "running", "spare", "template"]
"""``spare``: a clone that waits for a start that needs it; ``template``: it boots to become a template."""


@dataclass(frozen=True, kw_only=True)
class MachineRecord:
    """A machine, as it is seen from outside."""

    guest: str
    """The guest's name."""
    state: MachineState
    since: float
    """When that began, in seconds of ``CLOCK_BOOTTIME``, which no change of the date moves."""
    domain: str
    """Name of its libvirt domain."""
    image: str
    memory_mib: int
    vcpus: int
    user: str
    """Who logs in by SSH."""
    port: int
    """Its SSH, on 127.0.0.1."""
    key_file: str
    host_key: str
    known_hosts: str


@dataclass(frozen=True, kw_only=True)
class CurrentTest:
    """What a run is busy with."""

    test: str
    """The test's id; empty between tests."""
    since: float
    """When that began, by the same clock."""
    waits_for: str
    """The room that the test waits for; empty if it waits for none."""


def now() -> float:
    """Return the time by the clock of the records."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def seconds_since(moment: float) -> float:
    """Return the seconds since a moment by the clock of the records."""
    return max(0.0, now() - moment)


def write_machine(folder: Path, record: MachineRecord) -> None:
    """Put a machine's record into its folder."""
    _write(folder / MACHINE, record)


def write_state(folder: Path, state: MachineState) -> None:
    """Change the state in a machine's record; do nothing if it has none."""
    record = read_machine(folder, owner=os.geteuid())
    if record is not None and record.state != state:
        write_machine(folder, replace(record, state=state, since=now()))


def write_test(folder: Path, test: str, *, waits_for: str = "") -> None:
    """Note in a run's folder which test has begun, or what it waits for.

    Args:
        folder: The run's folder.
        test: The test's id; empty when it has ended.
        waits_for: The room that it waits for, if it does.
    """
    _write(folder / TEST, CurrentTest(test=test[:_LONGEST], since=now(), waits_for=waits_for[:_LONGEST]))


def read_machine(folder: Path, *, owner: int) -> MachineRecord | None:
    """Return the record in a machine's folder; None if there is none that a user has written well."""
    return _read(folder / MACHINE, MachineRecord, owner=owner)


def read_test(folder: Path, *, owner: int) -> CurrentTest | None:
    """Return what a run is busy with; None if there is no record that a user has written well."""
    return _read(folder / TEST, CurrentTest, owner=owner)


def _write(path: Path, record: MachineRecord | CurrentTest) -> None:
    try:
        json_file.write(path, asdict(record))
    except OSError as failure:
        _log.debug("%s cannot be written: %s", path, failure)


T = TypeVar("T")


def _read(path: Path, kind: type[T], *, owner: int) -> T | None:
    content = json_file.read(path, owner=owner)
    types = get_type_hints(kind)
    if content is None or content.keys() != types.keys():
        return None
    if not all(_fits(content[name], wanted) for name, wanted in types.items()):
        return None
    return kind(**content)


def _fits(value: Any, wanted: Any) -> bool:  # noqa: ANN401 - what JSON holds, and a type
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    return type(value) is wanted and (wanted is not float or math.isfinite(value))
