"""``pytest-kvm ps``: what runs on this host, for which test, what it takes, and how to connect."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.live import Live
from rich.text import Text

from pytest_kvm.cli.amounts import duration, size
from pytest_kvm.host.resources import cpus_available, memory_available_mib
from pytest_kvm.host.run_records import seconds_since
from pytest_kvm.host.run_survey import SeenMachine, SeenRun, Survey, survey, user_name
from pytest_kvm.plaintext import one_line
from pytest_kvm.settings import Settings
from pytest_kvm.ssh.access import Access

_MIB = 1024**2
_FIRST_LOOK = 0.3
"""Seconds over which the use of processors is measured."""
_NEXT_LOOK = 2.0
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_WORDS = {
    "starting": "starting",
    "running": "running",
    "spare": "spare, for the next start",
    "template": "boots to become a template",
    "off": "off",
    "stopped": "stopped by a signal",
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser; it sets ``handler``."""
    parser = subparsers.add_parser(
        "ps",
        help="show the guests of all runs on this host",
        description="Show the guests of all runs on this host that you may see: of which run and test they "
        "are, what they do and since when, the processor time and memory that they take now, and how to "
        "log in.",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON document with everything known")
    form.add_argument("--watch", action="store_true", help="look again every 2 seconds, until Ctrl-C")
    parser.set_defaults(handler=_ps)


def _ps(arguments: argparse.Namespace, settings: Settings) -> int:
    views = _views(settings)
    if arguments.json:
        print(json.dumps(_to_json(next(views)), indent=2))
    elif arguments.watch:
        _watch(views)
    else:
        print(_text(next(views)))
    return 0


def _watch(views: Iterator[_View]) -> None:
    console = Console()
    if not console.is_terminal:
        for view in views:
            print(_text(view), end="\n\n", flush=True)
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for view in views:
            live.update(Text(_text(view), no_wrap=True, overflow="ellipsis"), refresh=True)


@dataclass(frozen=True, kw_only=True)
class _Usage:
    """What a machine takes now; None: it cannot be known."""

    pid: int | None = None
    state: str
    seconds: float | None = None
    """Since the state began."""
    cpu_percent: float | None = None
    """Of one processor."""
    memory_used_mib: int | None = None
    """Its share of memory: what several guests of a template share is counted once."""


@dataclass(frozen=True, kw_only=True)
class _View:
    """All runs at one moment."""

    seen: Survey
    usage: dict[SeenMachine, _Usage]
    processors: int
    busy_percent: float
    """Of all processors of this host."""
    memory_available_mib: int


def _views(settings: Settings) -> Generator[_View]:
    """Yield what runs, again and again."""
    known: dict[psutil.Process, psutil.Process] = {}
    """Processes that were seen before: the use of a processor is measured from one look to the next."""
    interval = _FIRST_LOOK
    _usages(survey(settings.run_dir), known)
    while True:
        busy = psutil.cpu_percent(interval=interval)
        seen = survey(settings.run_dir)
        usage = _usages(seen, known)
        running = {machine.process for machine in usage if machine.process is not None}
        known = {process: same for process, same in known.items() if process in running}
        yield _View(
            seen=seen,
            usage=usage,
            processors=cpus_available(),
            busy_percent=busy,
            memory_available_mib=memory_available_mib(),
        )
        interval = _NEXT_LOOK


def _usages(seen: Survey, known: dict[psutil.Process, psutil.Process]) -> dict[SeenMachine, _Usage]:
    return {machine: _usage(run, machine, known) for run in seen.runs for machine in run.machines}


def _usage(run: SeenRun, machine: SeenMachine, known: dict[psutil.Process, psutil.Process]) -> _Usage:
    if machine.process is None:
        return _Usage(state="off" if run.is_visible else machine.record.state)
    is_new = machine.process not in known
    process = known.setdefault(machine.process, machine.process)
    try:
        percent = process.cpu_percent()
        is_stopped = process.status() == psutil.STATUS_STOPPED
        return _Usage(
            pid=process.pid,
            state="stopped" if is_stopped else machine.record.state,
            seconds=None if is_stopped else seconds_since(machine.record.since),
            cpu_percent=None if is_new else percent,
            memory_used_mib=_memory(process) // _MIB,
        )
    except psutil.NoSuchProcess:
        return _Usage(state="off")


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)


# ------------------------------------------------------------ text


def _text(view: _View) -> str:
    processors, memory = view.processors, size(view.memory_available_mib * _MIB)
    lines = [
        f"this host: {view.busy_percent:.0f} % of {processors} processors in use, {memory} of memory free"
    ]
    for run in view.seen.runs:
        lines += ["", *_run_lines(run, view)]
    if not view.seen.runs:
        lines.append("no runs")
    lines += [f"{folder}: {reason}" for folder, reason in view.seen.closed.items()]
    return "\n".join(map(one_line, lines))


def _run_lines(run: SeenRun, view: _View) -> Iterator[str]:
    about = run.about
    where = "" if run.is_visible else f" on {about.get('host')}, in another container"
    worker = f", worker {about['worker']}" if about.get("worker") else ""
    yield f"run {run.name} of {user_name(run.owner)}{where}: pid {about.get('pid')}{worker}, {_since(run)}"
    if about.get("command"):
        yield f"  {about['command']}  in {about.get('started_in')}"
    if not run.is_live and run.may_be_elsewhere:
        yield f"  in {run.folder.parent.parent}, which other hosts may use: whether it runs is not known here"
    elif not run.is_live:
        yield f"  left in {run.folder.parent.parent}: the run has ended, and the next one there removes it"
    elif run.current is not None and run.current.test:
        waits = f" is {run.current.waits_for}," if run.current.waits_for else ""
        yield f"  {run.current.test}{waits} for {duration(seconds_since(run.current.since))}"
    for machine in run.machines:
        yield from _machine_lines(machine, view.usage[machine])


def _since(run: SeenRun) -> str:
    return f"for {duration(run.seconds)}" if run.seconds is not None else f"since {run.about.get('time')}"


def _machine_lines(machine: SeenMachine, usage: _Usage) -> Iterator[str]:
    record = machine.record
    facts = [_WORDS[usage.state]]
    if usage.seconds is not None:
        facts[0] += f" for {duration(usage.seconds)}"
    if usage.cpu_percent is not None:
        facts.append(f"{usage.cpu_percent:.0f} % of a processor")
    used = "" if usage.memory_used_mib is None else f"{usage.memory_used_mib} of "
    facts += [f"{used}{record.memory_mib} MiB", f"vcpus={record.vcpus}", record.image]
    if usage.pid is not None:
        facts.append(f"QEMU {usage.pid}")
    yield f"  {record.guest}: {', '.join(facts)}"
    if (command := _ssh_command(machine, usage)) is not None:
        yield f"      {command}"


def _ssh_command(machine: SeenMachine, usage: _Usage) -> str | None:
    """Return what logs in to a machine; None if it is no guest of a test yet, or off."""
    record = machine.record
    # Records of other users are theirs to write, so an option of ssh is not taken for a user.
    if usage.state != "running" or not _USER.fullmatch(record.user):
        return None
    return Access(
        port=record.port,
        key_file=Path(record.key_file),
        host_key=record.host_key,
        known_hosts=Path(record.known_hosts),
        user=record.user,
    ).ssh_command()


# ------------------------------------------------------------ JSON


def _to_json(view: _View) -> dict[str, Any]:
    return {
        "processors": view.processors,
        "busy_percent": view.busy_percent,
        "memory_available_mib": view.memory_available_mib,
        "runs": [_run_to_json(run, view) for run in view.seen.runs],
        "closed": {str(folder): reason for folder, reason in view.seen.closed.items()},
    }


def _run_to_json(run: SeenRun, view: _View) -> dict[str, Any]:
    current = run.current
    return {
        **run.about,
        "run": run.name,
        "folder": str(run.folder),
        "user": user_name(run.owner),
        "is_live": None if run.may_be_elsewhere and not run.is_live else run.is_live,
        "is_visible": run.is_visible,
        "seconds": run.seconds,
        "test": current.test if current else "",
        "waits_for": current.waits_for if current else "",
        "test_seconds": seconds_since(current.since) if current and current.test else None,
        "guests": [_machine_to_json(machine, view.usage[machine]) for machine in run.machines],
    }


def _machine_to_json(machine: SeenMachine, usage: _Usage) -> dict[str, Any]:
    return {
        **asdict(machine.record),
        **asdict(usage),
        "folder": str(machine.folder),
        "ssh_command": _ssh_command(machine, usage),
    }
