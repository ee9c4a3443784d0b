"""Finds what dead runs have left on this host, and removes it; a live run's things are never among it."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pytest_kvm.boot_cache import ram_file
from pytest_kvm.boot_cache.layout import Layout
from pytest_kvm.errors import HostError, KvmError, NoCapacity
from pytest_kvm.host import locks, mounts, run_folder, undo_notes
from pytest_kvm.host.folder_marker import MARKER
from pytest_kvm.host.lost_processes import lost_processes
from pytest_kvm.host.run_survey import SeenRun, Survey
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
    """Removes it. NoCapacity: somebody else does; another KvmError, or OSError: it cannot be removed."""
    parts: tuple[str, ...] = ()
    """What else goes with it."""
    path: Path | None = None


def leftovers(settings: Settings, seen: Survey) -> Iterator[Leftover]:
    """Yield what dead runs of this user have left: folders, processes, and files of the cache.

    Args:
        settings: Say where the cache is.
        seen: The runs of this host.
    """
    for run in seen.runs:
        if not run.is_live and not run.may_be_elsewhere and _is_private(run.folder.parent):
            yield _of_run(run)
    for lost in lost_processes():
        yield Leftover(what=f"{lost.what} (pid {lost.process.pid})", why=lost.why, remove=lost.end)
    if not _is_shared(settings.cache_dir):
        yield from _cache_leftovers(settings)


def left_alone(settings: Settings, seen: Survey) -> Iterator[str]:
    """Yield what may be a leftover and is not removed, each with the reason."""
    for run in seen.runs:
        if not run.is_live and run.may_be_elsewhere:
            host = run.about.get("host")
            yield (
                f"{run.folder}: on a file system that other hosts may use, and made on {host}, perhaps "
                "before its last boot; remove it by hand if nothing there uses it"
            )
        elif not run.is_live and not _is_private(run.folder.parent):
            yield f"{run.folder}: it is another user's, or its folder is open to others"
    for folder, reason in seen.closed.items():
        yield f"{folder}: {reason}"
    if _is_shared(settings.cache_dir):
        yield (
            f"{settings.cache_dir}: on a file system that other hosts may use; `pytest-kvm cache gc` removes "
            "what no process of this host holds"
        )


def sweep_cache(settings: Settings) -> None:
    """Remove what killed runs have left in the cache; a problem is logged and stops no run.

    What they have left elsewhere is removed when a run's folder is made (:func:`run_folder.sweep`).
    """
    try:
        found = [] if _is_shared(settings.cache_dir) else list(_cache_leftovers(settings))
    except (KvmError, OSError) as problem:
        _log.warning("the cache cannot be looked through: %s", problem)
        return
    for leftover in found:
        try:
            leftover.remove()
            _log.info("removed %s, %s: %s", leftover.what, leftover.path, leftover.why)
        except NoCapacity:
            _log.debug("another process removes %s", leftover.path)
        except (KvmError, OSError) as problem:
            _log.warning("%s stays: %s", leftover.what, problem)


def _cache_leftovers(settings: Settings) -> Iterator[Leftover]:
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
    for folder in (layout.folder / "locks", images.folder / "locks", settings.cache_dir / "libvirt"):
        for lock in locks.of_killed_holders(folder):
            yield Leftover(
                what="a note of who holds a lock",
                why="its process has ended",
                path=lock,
                remove=partial(locks.forget_killed_holder, lock),
            )


def _is_shared(folder: Path) -> bool:
    return folder.exists() and mounts.is_shared(folder)


def _is_private(runs: Path) -> bool:
    """Say whether a folder of runs is this user's alone, so that nobody can put something else there."""
    try:
        found = runs.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _of_run(run: SeenRun) -> Leftover:
    boot = run_folder.host_facts()["boot"]
    is_of_this_boot = run.about.get("boot", boot) == boot
    parts = [f"guest {machine.record.guest}" for machine in run.machines]
    parts += [f"QEMU {machine.process.pid}" for machine in run.machines if machine.process is not None]
    parts += undo_notes.kinds(run.folder)
    has_ended = f"its process {run.about.get('pid')} has ended"
    return Leftover(
        what=f"run {run.name}",
        why=has_ended if is_of_this_boot else "the host was booted since",
        path=run.folder,
        parts=tuple(parts),
        remove=partial(_sweep_run, run.folder),
    )


def _sweep_run(folder: Path) -> None:
    run_folder.sweep(folder.parent.parent)
    with suppress(FileNotFoundError):
        lock = locks.try_exclusive(folder / MARKER)
        if lock is None:
            raise NoCapacity(f"another process removes {folder}")
        lock.release()
    _check_gone(folder)


def _sweep_templates(layout: Layout, entry: Path) -> None:
    with layout.index():
        layout.sweep()
    _check_gone(entry)


def _sweep_memory(folder: Path) -> None:
    ram_file.sweep()
    _check_gone(folder)


def _check_gone(path: Path) -> None:
    if os.path.lexists(path):
        raise HostError(f"{path} is still there", resolution="standard error and the log say why")
