"""Finds what dead runs have left on this host, and removes it; a live run's things are never among it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pytest_kvm.boot_cache import ram_file
from pytest_kvm.boot_cache.layout import Layout
from pytest_kvm.errors import HostError, KvmError
from pytest_kvm.host import run_folder, undo_notes
from pytest_kvm.host.lost_processes import lost_processes
from pytest_kvm.host.run_survey import SeenRun, survey
from pytest_kvm.images.image_store import ImageStore
from pytest_kvm.settings import Settings

_log = logging.getLogger("pytest_kvm.run")


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """Something that nobody owns any more."""

    what: str
    why: str
    """Why nobody owns it."""
    remove: Callable[[], object]
    """Removes it; raises KvmError or OSError if it cannot be removed."""
    parts: tuple[str, ...] = ()
    """What else goes with it."""
    path: Path | None = None


def leftovers(settings: Settings) -> Iterator[Leftover]:
    """Yield what dead runs of this user have left: folders, processes, and files of the cache."""
    for run in survey(settings.run_dir).runs:
        if not run.is_live and run.owner == os.geteuid() and not run.may_be_elsewhere:
            yield _of_run(run)
    for lost in lost_processes():
        yield Leftover(what=f"{lost.what} (pid {lost.process.pid})", why=lost.why, remove=lost.end)
    yield from cache_leftovers(settings)


def left_alone(settings: Settings) -> Iterator[str]:
    """Yield what looks like a leftover and is not removed, each with the reason."""
    seen = survey(settings.run_dir)
    for run in seen.runs:
        if run.is_live:
            continue
        if run.owner != os.geteuid():
            yield f"{run.folder}: it is another user's"
        elif run.may_be_elsewhere:
            yield f"{run.folder}: it is on a shared file system, and was made on {run.about.get('host')}"
    for folder, reason in seen.closed.items():
        yield f"{folder}: {reason}"


def cache_leftovers(settings: Settings) -> Iterator[Leftover]:
    """Yield the files of the cache that killed runs have left there."""
    layout, images = Layout.of(settings), ImageStore.of(settings)
    if layout.entries_without_link():
        with layout.index():
            entries = layout.garbage()
        for entry in entries:
            yield Leftover(
                what="a template that was not finished, or was replaced",
                why="no process holds it",
                path=entry,
                remove=partial(_sweep_templates, layout, entry),
            )
    for folder in ram_file.garbage():
        yield Leftover(
            what="a template's memory",
            why="the template is gone",
            path=folder,
            remove=partial(_sweep_memory, folder),
        )
    for work in images.killed_builds():
        yield Leftover(
            what="an unfinished image",
            why="whoever built it has ended",
            path=work,
            remove=partial(images.remove_killed_build, work),
        )


def sweep_cache(settings: Settings) -> None:
    """Remove what killed runs have left in the cache; a problem is logged and stops no run.

    What they have left elsewhere is removed when a run's folder is made (:func:`run_folder.sweep`).
    """
    try:
        for leftover in cache_leftovers(settings):
            _log.info("removing %s, %s: %s", leftover.what, leftover.path, leftover.why)
            leftover.remove()
    except (KvmError, OSError) as problem:
        _log.warning("what killed runs have left stays: %s", problem)


def _of_run(run: SeenRun) -> Leftover:
    boot = run_folder.host_facts()["boot"]
    is_of_this_boot = run.about.get("boot", boot) == boot
    parts = [f"guest {machine.record.guest}" for machine in run.machines]
    parts += [f"QEMU {machine.process.pid}" for machine in run.machines if machine.process is not None]
    parts += undo_notes.kinds(run.folder)
    return Leftover(
        what=f"run {run.name}",
        why=f"its process {run.about.get('pid')} has ended"
        if is_of_this_boot
        else "the host was booted since",
        path=run.folder,
        parts=tuple(parts),
        remove=partial(_sweep_run, run.folder),
    )


def _sweep_run(folder: Path) -> None:
    run_folder.sweep(folder.parent.parent)
    _check_gone(folder, "the lines above say why")


def _sweep_templates(layout: Layout, entry: Path) -> None:
    with layout.index():
        layout.sweep()
    _check_gone(entry, "somebody may use it again")


def _sweep_memory(folder: Path) -> None:
    ram_file.sweep()
    _check_gone(folder, "it may be in use")


def _check_gone(path: Path, why: str) -> None:
    if os.path.lexists(path):
        raise HostError(f"{path} is still there: {why}")
