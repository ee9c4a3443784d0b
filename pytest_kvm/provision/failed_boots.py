"""Keeps what a machine that does not become ready can tell, before the machine is removed.

Which tests wanted it is not known here, so the files are in the run's folder
until a test that fails by it takes a copy.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvm.errors import (
    CloudInitTimeout,
    GuestError,
    HostCommandFailed,
    KernelPanicked,
    SshNeverAnswered,
)
from pytest_kvm.host import json_file, run_folder
from pytest_kvm.host.artifact_folder import ArtifactFolder
from pytest_kvm.images.disk_layers import copy_to_own
from pytest_kvm.machine.evidence import Evidence
from pytest_kvm.machine.vitals import Trouble, find_trouble

if TYPE_CHECKING:
    from pytest_kvm.machine.machine import Machine
    from pytest_kvm.provision.start_request import StartRequest
    from pytest_kvm.settings import Dump

FOLDER = ".failed-boots"
"""In the run's folder; no guest has a name like that."""
_ABOUT = "about.json"
_SPEC_CHARS = 4000
"""Of a spec, which may hold whole scripts."""
_log = logging.getLogger("pytest_kvm.start")
_numbers = itertools.count(1)
_MAY_HANG = (CloudInitTimeout, SshNeverAnswered)
"""How a boot fails whose kernel may hang; all other errors tell the cause."""


@dataclass(frozen=True, kw_only=True)
class BootKeeping:
    """What is kept of boots that fail, and where."""

    folder: Path
    """Each boot has a folder of its own in it."""
    dump: frozenset[Dump]
    """What is kept beside the usual."""


@contextmanager
def keeping_failed_boot(
    machine: Machine, request: StartRequest, *, keeping: BootKeeping | None
) -> Generator[None]:
    """Keep what a machine can tell if it does not become ready in a block; the error says where that is.

    Args:
        machine: The machine, which has just been switched on.
        request: What it was switched on for.
        keeping: What is kept, and where; None: nothing is kept.
    """
    begun = time.monotonic()
    try:
        yield
    except GuestError as failure:
        if keeping is not None and not request.teardown.is_removed:
            place = keeping.folder / f"{next(_numbers)}"
            try:
                request.on_step("it does not become ready; keeping what it can tell")
                run_folder.check_is_there(keeping.folder.parent)
                keeping.folder.mkdir(mode=0o700, exist_ok=True)
                evidence = Evidence(
                    machine,
                    ArtifactFolder(place),
                    since=begun,
                    console_since=machine.console.beginning,
                    dump=keeping.dump,
                    goes_on=False,
                )
                _keep(machine, request, failure=failure, evidence=evidence)
            except Exception:  # noqa: BLE001 - the error of the boot is more important
                if not request.teardown.is_removed:
                    _log.exception("%s: what it can tell of its boot is not kept", request.name)
            else:
                failure.kept = place
        raise


def read_about(folder: Path) -> dict[str, Any]:
    """Return what is known of a boot of which something is kept.

    Raises:
        FileNotFoundError: It is gone.
    """
    about = json_file.read(folder / _ABOUT, owner=os.geteuid())
    if about is None:
        raise FileNotFoundError(f"what was kept of a boot in {folder} is gone")
    return about


def move(folder: Path, target: Path) -> None:
    """Move what is kept of a boot to where a test's artifacts are, maybe on another disk.

    What cannot be removed goes with the run's folder.

    Raises:
        OSError: It cannot be copied, and stays.
    """
    try:
        folder.rename(target)
    except OSError as failure:
        if failure.errno != errno.EXDEV:
            raise
        try:
            shutil.copytree(folder, target, copy_function=_copy)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
    (target / _ABOUT).unlink(missing_ok=True)


def _copy(source: str, target: str) -> None:
    """Copy a file, which may be a large one with holes."""
    try:
        copy_to_own(Path(source), Path(target))
    except HostCommandFailed as failure:
        raise OSError(f"{source} is not copied: {failure.details or failure.brief}") from failure


def _keep(machine: Machine, request: StartRequest, *, failure: GuestError, evidence: Evidence) -> None:
    evidence.keep(_trouble_of(machine, failure, evidence))
    about = {
        "guest": request.name,
        "spec": repr(request.spec)[:_SPEC_CHARS],
        "domain": machine.domain.name,
        "boot": type(failure).__name__,
        **evidence.finish(),
    }
    json_file.write(evidence.folder.path / _ABOUT, about)


def _trouble_of(machine: Machine, failure: GuestError, evidence: Evidence) -> Trouble | None:
    if isinstance(failure, KernelPanicked):
        return Trouble(
            guest=machine.name, what="does not answer: its kernel has panicked", monitor_answers=True
        )
    can_dump = isinstance(failure, _MAY_HANG)
    return find_trouble(machine, can_dump=can_dump, before_dump=evidence.keep_screenshot)
