"""The quickstart as a user runs it: from nothing, without root, with no other package than declared."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import venv
from importlib.metadata import distribution

import pytest
from packaging.requirements import Requirement

from pytest_kvm.host.run_folder import RUNS
from pytest_kvm.plugin.session import settings_stashed
from scripts.folders import own_folder
from tests import timings

SOMEBODY = 54321
"""A user id that no account has: nothing may depend on a home or a login."""


@pytest.fixture
def home(pytestconfig, project_root):
    """A home with the quickstart suite, what `pip install` would bring, and a cache that has the image."""
    with own_folder("kvm-") as folder:
        folder.chmod(0o711)
        home = folder / "home"
        shutil.copytree(project_root / "example_suites" / "quickstart", home / "suite")
        _install(project_root / "pytest_kvm", home / "venv")
        images = settings_stashed(pytestconfig).cache_dir / "images"
        for part in ("blobs", "names"):
            shutil.copytree(images / part, home / "cache" / "pytest-kvm" / "images" / part)
        for path in (home, *home.rglob("*")):
            os.chown(path, *_ids(), follow_symlinks=False)
        yield home


def _install(package, folder):
    """Make a virtual environment of copies: the checkout's may stand where only root gets."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    shutil.copytree(package, site / package.name)
    wanted, names = [Requirement("pytest-kvm")], set()
    while wanted:
        requirement = wanted.pop()
        marker = requirement.marker
        if requirement.name in names or (marker and not marker.evaluate({"extra": ""})):
            continue
        names.add(requirement.name)
        found = distribution(requirement.name)
        wanted += map(Requirement, found.requires or [])
        for file in found.files:
            if ".." not in file.parts and file.suffix not in (".pth", ".pyc"):
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file.locate(), site / file)


def _ids():
    return (SOMEBODY, SOMEBODY) if os.geteuid() == 0 else (os.geteuid(), os.getegid())


def _as_somebody():
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups", "--inh-caps=-all"]


def test_quickstart_as_an_ordinary_user(home):
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_KVM_EVENTS": str(home / "events.jsonl"),
    }
    run_dir = home / "r"
    python = home / "venv" / "bin" / "python"
    argv = [python, "-m", "pytest", "-v", "-p", "no:cacheprovider", f"--kvm-run-dir={run_dir}", "."]
    finished = subprocess.run(
        [*_as_somebody(), *argv],
        cwd=home / "suite",
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert re.search(r"= [1-9]\d* passed in ", finished.stdout), finished.stdout
    assert re.search(r"^kvm: machine: ready after [\d.]+ s$", finished.stdout, re.MULTILINE), finished.stdout
    timings.add(home / "events.jsonl")
    kinds = [json.loads(line)["kind"] for line in (home / "events.jsonl").read_text().splitlines()]
    assert {kind: kinds.count(kind) for kind in ("boot", "clone", "reboot")} == {
        "boot": 1,
        "clone": 1,
        "reboot": 1,
    }
    assert finished.stderr == "", "libvirt's own chatter stays away from the terminal"
    assert [path.name for path in (run_dir / RUNS).iterdir()] == ["guard"]
    assert run_dir.stat().st_uid == _ids()[0]
