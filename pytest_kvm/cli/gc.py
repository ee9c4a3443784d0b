"""``pytest-kvm gc``: says what dead runs have left on this host, and removes it if told to."""

from __future__ import annotations

import argparse
import sys

from pytest_kvm.cli.amounts import size
from pytest_kvm.errors import KvmError, NoCapacity
from pytest_kvm.host.resources import disk_taken_below
from pytest_kvm.host.run_survey import survey
from pytest_kvm.plaintext import one_line
from pytest_kvm.provision.leftovers import Leftover, left_alone, leftovers
from pytest_kvm.settings import Settings


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser; it sets ``handler``."""
    parser = subparsers.add_parser(
        "gc",
        help="show what dead runs have left, and remove it",
        description="Show what runs that were killed have left on this host, and why nobody owns it: their "
        "folders, processes, networks, and unfinished files of the cache. What a live run owns is never "
        "among it. Exit code 1 if something cannot be removed.",
    )
    parser.add_argument("--yes", action="store_true", help="remove it")
    parser.set_defaults(handler=_gc)


def _gc(arguments: argparse.Namespace, settings: Settings) -> int:
    seen = survey(settings.run_dir)
    for line in left_alone(settings, seen):
        print(one_line(f"left alone: {line}"))
    found = list(leftovers(settings, seen))  # the removal of one may take others with it
    failed = 0
    for leftover in found:
        _tell(leftover)
        failed += arguments.yes and not _is_removed(leftover)
    noun = "leftover" if len(found) == 1 else "leftovers"
    if not found:
        print("nothing is left of dead runs")
    elif arguments.yes:
        print(f"{len(found) - failed} of {len(found)} {noun} removed")
    else:
        print(f"{len(found)} {noun}; remove with: pytest-kvm gc --yes")
    return 1 if failed else 0


def _tell(leftover: Leftover) -> None:
    where = "" if leftover.path is None else f" in {leftover.path}, {size(disk_taken_below(leftover.path))}"
    print(one_line(f"{leftover.what}{where}: {leftover.why}"))
    for part in leftover.parts:
        print(one_line(f"    {part}"))


def _is_removed(leftover: Leftover) -> bool:
    sys.stdout.flush()  # what a removal has to tell is on standard error
    try:
        leftover.remove()
    except NoCapacity:
        print("    another process removes it")
    except (KvmError, OSError) as problem:
        why = problem.brief if isinstance(problem, KvmError) else str(problem)
        print(one_line(f"    NOT removed: {why}"))
        return False
    return True
