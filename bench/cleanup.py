"""What it costs that nothing is left behind: milliseconds of a run and of a guest, and the watcher's memory.

Per run: its folder with marker and lock, the search for what dead runs left, the
watcher's start, and the end, alone and beside other runs. Per guest: its record as
``pytest-kvm ps`` reads it. Per network of libvirt: the note by which it is undone.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from pytest_kvm.host.run_folder import held_run_folder
from pytest_kvm.host.run_records import write_machine, write_state
from pytest_kvm.host.undo_notes import UndoNotes
from pytest_kvm.host.watcher import processes_of
from pytest_kvm.waiting import NotYet, wait_until
from tests.unit.host.machine_folders import RECORD

OTHERS = (0, 8)


class Stopwatch:
    """Takes the time of steps that are done many times."""

    def __init__(self) -> None:
        self._took: dict[str, list[float]] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Note the milliseconds of the block."""
        began = time.perf_counter()
        yield
        self._took.setdefault(name, []).append((time.perf_counter() - began) * 1000)

    def medians(self) -> dict[str, float]:
        """Return the median milliseconds of each step."""
        return {name: _median(each) for name, each in self._took.items()}


def measure_run(parent: Path, *, others: int, rounds: int) -> dict[str, float]:
    """Return the medians of a run's begin and end beside other runs, and of what its watcher takes."""
    watch = Stopwatch()
    memory: list[float] = []
    processor: list[float] = []
    with ExitStack() as stack:
        for _ in range(others):
            stack.enter_context(held_run_folder(parent))
        for _ in range(rounds):
            with ExitStack() as run:
                with watch.step("begin"):
                    folder = run.enter_context(held_run_folder(parent))
                watcher = _sleeping_watcher(folder)
                memory.append(watcher.memory_full_info().pss / 1024**2)
                processor.append(_processor_ms(watcher))
                with watch.step("end"):
                    run.close()
    of_watcher = {"watcher's processor time": _median(processor), "watcher's MiB": _median(memory)}
    return watch.medians() | of_watcher


def measure_guest(run_folder: Path, *, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of what is noted for each guest, and for each network of libvirt."""
    watch = Stopwatch()
    notes = UndoNotes(run_folder)
    for number in range(rounds):
        machine = run_folder / f"web-{number}"
        machine.mkdir()
        with watch.step("guest"):
            write_machine(machine, RECORD)
            write_state(machine, "spare")
            write_state(machine, "running")
        with watch.step("network"):
            forget = notes.add("network", "qemu:///system", "9e1b2e4a-0c0f-4a53-8d60-0d1ec2a3b6f1")
            forget()
    return watch.medians()


def main() -> None:
    """Print the table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as parent:
        for others in OTHERS:
            figures[f"beside {others}"] = measure_run(Path(parent), others=others, rounds=arguments.rounds)
        with held_run_folder(Path(parent)) as folder:
            figures["each"] = measure_guest(folder, rounds=arguments.rounds)
    alone, each = figures["beside 0"], figures["each"]
    figures["a run with one guest"] = {"all": round(alone["begin"] + each["guest"] + alone["end"], 2)}
    for name, steps in figures.items():
        print(f"{name}: " + ", ".join(f"{step} {figure}" for step, figure in steps.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def _sleeping_watcher(folder: Path) -> psutil.Process:
    """Return a run's watcher when it has loaded, as it has long before a real run ends."""

    def look() -> psutil.Process:
        for pid in processes_of(folder):
            ignored = re.search(r"SigIgn:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
            if ignored and int(ignored[1], 16) >> (signal.SIGHUP - 1) & 1:
                return psutil.Process(pid)
        raise NotYet("it loads")

    return wait_until(look, describe="the watcher", timeout=30, every=0.01)


def _processor_ms(process: psutil.Process) -> float:
    """Return the milliseconds that a process has computed (``proc(5)``, schedstat)."""
    return int(Path(f"/proc/{process.pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e6


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 2)


if __name__ == "__main__":
    main()
