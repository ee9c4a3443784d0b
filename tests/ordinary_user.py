"""A user without root, with no other packages than a plain installation brings."""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

from pytest_kvm.host.run_folder import RUNS
from pytest_kvm.settings import Settings
from scripts.folders import own_folder
from tests import timings

SOMEBODY = 54321
"""A user id that no account has: nothing may depend on a home or a login."""
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class OrdinaryUser:
    """What belongs to the user: suites, an installation, and a cache that has the images."""

    home: Path

    def run_suites(self, *names: str) -> subprocess.CompletedProcess[str]:
        """Run example suites in one pytest process, and check that it leaves nothing; once for each user."""
        for name in names:
            shutil.copytree(ROOT / "example_suites" / name, self.home / "suites" / name)
        _give(self.home / "suites")
        finished = subprocess.run(
            [*_as_somebody(), self.home / "venv" / "bin" / "python", "-m", "pytest", "-v", *self._options()],
            cwd=self.home / "suites",
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        assert finished.stderr == "", "libvirt's own chatter stays away from the terminal"
        timings.add(self.events)
        assert [path.name for path in (self._run_dir / RUNS).iterdir()] == ["guard"]
        assert self._run_dir.stat().st_uid == _ids()[0]
        return finished

    @property
    def events(self) -> Path:
        """Return the file that says what was booted."""
        return self.home / "events.jsonl"

    @property
    def _run_dir(self) -> Path:
        return self.home / "r"

    def _options(self) -> list[str]:
        return ["-p", "no:cacheprovider", f"--kvm-run-dir={self._run_dir}", "."]

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_KVM_EVENTS": str(self.events),
        }


@contextmanager
def ordinary_user(settings: Settings) -> Iterator[OrdinaryUser]:
    """Make the user a home with the images of these settings; remove it at the end."""
    with own_folder("kvm-") as folder:
        folder.chmod(0o711)
        home = folder / "home"
        _install(ROOT / "pytest_kvm", home / "venv")
        images = settings.cache_dir / "images"
        for part in ("blobs", "names"):
            shutil.copytree(images / part, home / "cache" / "pytest-kvm" / "images" / part)
        _give(home)
        yield OrdinaryUser(home)


def _install(package: Path, folder: Path) -> None:
    """Make a virtual environment of copies: the checkout's may stand where only root gets."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    shutil.copytree(package, site / package.name)
    wanted, names = [Requirement("pytest-kvm")], set[str]()
    while wanted:
        requirement = wanted.pop()
        marker = requirement.marker
        if requirement.name in names or (marker and not marker.evaluate({"extra": ""})):
            continue
        names.add(requirement.name)
        found = distribution(requirement.name)
        wanted += map(Requirement, found.requires or [])
        for file in found.files or []:
            if ".." not in file.parts and file.suffix not in (".pth", ".pyc"):
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(file.locate()), site / file)


def _give(folder: Path) -> None:
    """Make a folder with all in it the user's."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, *_ids(), follow_symlinks=False)


def _ids() -> tuple[int, int]:
    return (SOMEBODY, SOMEBODY) if os.geteuid() == 0 else (os.geteuid(), os.getegid())


def _as_somebody() -> list[str]:
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups", "--inh-caps=-all"]
