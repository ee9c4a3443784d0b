"""Notes of what a run makes on its host outside of its folder, by which it is undone if the run is killed.

Each note is a file in the run's folder. It is there before the thing is made, and a
run that undoes the thing itself removes it. The notes that are left are carried
out by whoever removes the folder: the run's watcher, or a later run. The watcher
loads this module, so it needs the standard library only.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pytest_kvm.host import json_file

FOLDER = ".undo"
"""In the run's folder. No guest's folder is called so, as no guest's name begins with a dot."""
_PROGRAMS = {"network": "pytest_kvm.hypervisor.libvirt_networks"}
"""Modules that undo, as programs. Each gets what the note says, and succeeds if there is nothing to undo."""
_BOOTSTRAP = (
    "import runpy, sys; root, module, *sys.argv[1:] = sys.argv[1:]; sys.path.insert(0, root); "
    "runpy.run_module(module, run_name='__main__')"
)
_PACKAGES = Path(__file__).parents[2]
_PATIENCE = 60.0
"""Seconds for one note: its program may wait for what was only begun when the run was killed."""


class UndoNotes:
    """The notes of one run.

    Args:
        run_folder: The run's folder.
    """

    def __init__(self, run_folder: Path) -> None:
        self._folder = run_folder / FOLDER
        self._numbers = itertools.count(1)

    def add(self, kind: Literal["network"], *facts: str) -> Callable[[], None]:
        """Note a thing that is about to be made; return what removes the note.

        Args:
            kind: What it is.
            facts: Arguments of the program that undoes it.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / f"{next(self._numbers):06}.json"
        json_file.write(path, [kind, *facts])
        return lambda: path.unlink(missing_ok=True)


def carry_out(run_folder: Path) -> bool:
    """Undo what the notes in a run's folder name, the newest first; say whether nothing is left.

    What a program that fails prints goes to stderr.
    """
    newest_first = sorted(run_folder.glob(f"{FOLDER}/*.json"), reverse=True)
    failed = [path for path in newest_first if not _carry_out(path)]
    return not failed


def kinds(run_folder: Path) -> list[str]:
    """Return the kinds of things that a run has made outside of its folder and not undone."""
    found: list[str] = []
    for path in sorted(run_folder.glob(f"{FOLDER}/*.json")):
        with suppress(OSError, ValueError, LookupError, TypeError):  # carried out meanwhile, or damaged
            found.append(str(json.loads(path.read_text(encoding="utf-8"))[0]))
    return found


def _carry_out(path: Path) -> bool:
    try:
        kind, *facts = json.loads(path.read_text(encoding="utf-8"))
        argv = [sys.executable, "-P", "-c", _BOOTSTRAP, str(_PACKAGES), _PROGRAMS[kind], *facts]
        subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE, check=True
        )
    except FileNotFoundError:
        return True  # another process has carried it out
    except subprocess.CalledProcessError as failure:
        return _tell(path, failure.stderr.strip() or str(failure))
    except (OSError, ValueError, LookupError, TypeError, subprocess.TimeoutExpired) as failure:
        return _tell(path, repr(failure))
    path.unlink(missing_ok=True)
    return True


def _tell(path: Path, problem: str) -> bool:
    sys.stderr.write(f"pytest-kvm: {path} is not undone, and a later run will try again: {problem}\n")
    return False
