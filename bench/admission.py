"""What asking for room costs a test when there is room: milliseconds, alone and beside other processes.

It is all that happens for a test with two guests, on real files: both are reserved
and handed over, their QEMUs are noted, and all is given back.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from pytest_kvm.host.limits import limits_of
from pytest_kvm.host.register import Register
from pytest_kvm.options import from_environment, settings_from
from pytest_kvm.provision.admission import Admission
from pytest_kvm.provision.admission_rules import Amount
from tests.admissions import OtherProcess

GUEST = Amount(memory=512, vcpus=1, guests=1)
OTHERS = (0, 2, 8)
EACH = 2
"""Guests that each of the other processes has."""


def measure(folder: Path, *, others: int, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each step beside a number of other processes."""
    took: dict[str, list[float]] = {"reserve": [], "note": [], "give back": []}
    limits = limits_of(settings_from([from_environment]))
    with ExitStack() as stack:
        for _ in range(others):
            other = OtherProcess(folder)
            stack.callback(other.close)
            other.take(EACH, memory=64)
        admission = Admission(Register(folder), limits, timeout=lambda: 1)
        stack.callback(admission.close)
        for _ in range(rounds):
            times = [time.perf_counter()]
            admission.reserve([GUEST, GUEST], tell=print)
            rooms = [admission.room(name, GUEST) for name in ("web", "database")]
            for room in rooms:
                room.take_reserved()
            admission.end_reservation()
            times.append(time.perf_counter())
            for room in rooms:
                room.note_process(os.getpid())
            times.append(time.perf_counter())
            for room in rooms:
                room.release()
            times.append(time.perf_counter())
            for step, begin, end in zip(took, times, times[1:], strict=False):
                took[step].append((end - begin) * 1000)
    return {step: round(statistics.median(each), 3) for step, each in took.items()}


def main() -> None:
    """Print the table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    for others in OTHERS:
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            steps = measure(Path(folder) / "limits", others=others, rounds=arguments.rounds)
        figures[f"beside {others}"] = steps | {"all": round(sum(steps.values()), 3)}
        told = ", ".join(f"{step} {each} ms" for step, each in figures[f"beside {others}"].items())
        print(f"two guests, beside {others} processes of {EACH} guests each: {told}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
