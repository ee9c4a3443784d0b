"""Make a checkout ready to run: host packages, virtual environment, the project itself.

Run by whatever ``python3`` there is (``make setup``), before anything is
installed: standard library only. Safe to run again: what is there already is
checked, not redone.

Exit code 0: ready. 1: this machine lacks something; what, and the command that
brings it, is on stderr.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "pytest-kvm-setup.json"
INSTALL_HINTS = ROOT / "pytest_kvm" / "host" / "install_hints.py"
INPUTS = (ROOT / "pyproject.toml", Path(__file__).resolve(), INSTALL_HINTS)
BUILD_LOCK, TEST_LOCK, DEV_LOCK = LOCKS = tuple(
    ROOT / "requirements" / name for name in ("build.txt", "test.txt", "dev.txt")
)
"""What is installed, each by version and digest: what builds the rest, what tests need, and everything."""

MINIMUM = (3, 11)
INTERPRETERS = ("python3.13", "python3.12", "python3.11", "python3")

PROBE = """
import ensurepip, json, os, sys, sysconfig, venv
print(json.dumps({
    "version": sys.version_info[:3],
    "path": os.path.realpath(sys.executable),
    "headers": os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")),
}))
"""
"""Fails where Debian's python3-venv is missing; headers are for libvirt-python."""

HEALTH = """
import libvirt, paramiko, pytest, sys
from importlib.util import find_spec
print(sys.prefix, *find_spec("pytest_kvm").submodule_search_locations, sep="\\n")
"""
"""Imports what was compiled; finds the project without running it."""


class SetupError(Exception):
    """Something is missing that this script may not or cannot bring."""


def main() -> int:
    """Bring the checkout to the wanted state."""
    parser = argparse.ArgumentParser(description="make this checkout ready to run")
    parser.add_argument("--dev", action="store_true", help="with linters and what builds the documentation")
    parser.add_argument("--no-host-packages", action="store_true", help="trust that they are there")
    arguments = parser.parse_args()
    # Two make runs in one checkout; the lock dies with its holder.
    folder = os.open(ROOT, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        is_current = is_up_to_date(dev=arguments.dev)
        if not arguments.no_host_packages:
            install_host_packages(needs_interpreter=not is_current)
        if not is_current:
            install_project(dev=arguments.dev)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


def say(line: str) -> None:
    """Show one step, at once also where stdout is a file."""
    print(f"setup: {line}", flush=True)


# ---------------------------------------------------------------- host packages


def install_host_packages(*, needs_interpreter: bool) -> None:
    """Install what the table in ``pytest_kvm/host/install_hints.py`` misses here, if allowed.

    Args:
        needs_interpreter: Whether a Python that can make ``.venv`` counts as missing.

    Raises:
        SetupError: Something is missing and only root may install it; the
            message is what to type.
    """
    table = load_table()
    lacking = table.missing(for_tests=True)
    if needs_interpreter and "python-build" not in lacking and not usable_interpreters():
        lacking.append("python-build")
    for need in lacking:
        say(f"missing: {need} ({table.why(need)})")
    if lacking:
        commands = table.install_commands(lacking)
        if not commands:
            raise SetupError(f"no known package manager; please bring: {', '.join(lacking)}")
        run_as_root(commands)
        unmet = [need for need in lacking if not table.is_met(need)]
        if unmet:
            raise SetupError(f"still missing after the installation: {', '.join(unmet)}")
    run_as_root(table.account_commands())
    if table.account_commands():
        raise SetupError("the account for QEMU is still missing after it was made")


def run_as_root(commands: list[list[str]]) -> None:
    """Run commands that only root may run.

    Raises:
        SetupError: This user may not; the message is what to type. Or one failed.
    """
    prefix = privileges() if commands else []
    if prefix is None:
        typed = "\n".join(f"  sudo {shlex.join(command)}" for command in commands)
        raise SetupError(f"this needs root, and `sudo -n` does not work; please run\n{typed}\nand try again")
    for command in commands:
        say(f"running {shlex.join(command)}")
        run([*prefix, "env", "DEBIAN_FRONTEND=noninteractive", *command], quiet=True)


def load_table() -> ModuleType:
    """Return the module with the table: the package around it cannot be imported yet."""
    spec = importlib.util.spec_from_file_location("install_hints", INSTALL_HINTS)
    if spec is None or spec.loader is None:
        raise SetupError(f"{INSTALL_HINTS} cannot be loaded")
    table = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = table  # dataclasses look there
    spec.loader.exec_module(table)
    return table


def privileges() -> list[str] | None:
    """Return what to put before a command so that root runs it, None if there is no way."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode == 0:
        return [sudo, "-n"]
    return None


# ---------------------------------------------------------------- interpreter


def choose_interpreter() -> str:
    """Return the path of the newest usable interpreter, or ``$PYTHON``.

    As root, one that everybody may execute wins over a newer private one: the
    tests run part of themselves as an ordinary user.
    """
    asked = os.environ.get("PYTHON")
    if asked:
        found = probe(shutil.which(asked) or asked)
        if found is None:
            raise SetupError(f"PYTHON={asked} is not Python ≥ 3.11 with venv and headers")
        return str(found["path"])
    usable = usable_interpreters()
    if not usable:
        raise SetupError("no Python ≥ 3.11 with venv and headers on PATH; set PYTHON=/path/to/python3")
    best = max(usable, key=lambda facts: (os.geteuid() != 0 or is_public(facts["path"]), facts["version"]))
    return str(best["path"])


def usable_interpreters() -> list[dict[str, Any]]:
    """Return what every interpreter says of itself that could carry ``.venv``."""
    folders = dict.fromkeys([*os.get_exec_path(), "/usr/local/bin", "/usr/bin"])
    files = [Path(folder) / name for name in INTERPRETERS for folder in folders]
    return [facts for file in files if os.access(file, os.X_OK) and (facts := probe(str(file)))]


def probe(interpreter: str) -> dict[str, Any] | None:
    """Return what an interpreter says of itself, None if it will not do."""
    try:
        answer = subprocess.run(
            [interpreter, "-c", PROBE], capture_output=True, text=True, timeout=30, check=False
        )
        facts: dict[str, Any] = json.loads(answer.stdout)
    except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError):
        return None
    return facts if tuple(facts["version"]) >= MINIMUM and facts["headers"] else None


def is_public(path: str) -> bool:
    """Tell whether every user may reach and execute ``path``."""
    file = Path(path)
    return all(step.stat().st_mode & 0o001 for step in (file, *file.parents))


# ---------------------------------------------------------------- environment


@dataclass(frozen=True)
class Stamp:
    """What ``.venv`` was made of; nothing: it is not complete.

    Args:
        lock: Digest of the locks.
        project: Digest of the other files that decide what is installed.
        dev: Whether everything of the lock is there, or only what tests need.
    """

    lock: str = ""
    project: str = ""
    dev: bool = False

    @classmethod
    def read(cls) -> Stamp:
        """Return that of the environment that is there."""
        try:
            return cls(**json.loads(STAMP.read_text()))
        except (OSError, TypeError, json.JSONDecodeError):  # another version of this script wrote it
            return cls()

    def write(self) -> None:
        """Leave it in the environment."""
        STAMP.write_text(json.dumps(asdict(self)) + "\n")


def is_up_to_date(*, dev: bool) -> bool:
    """Tell whether ``.venv`` holds all that is wanted, of the files that are here now."""
    stamp = Stamp.read()
    current = (stamp.lock, stamp.project) == (digest_of(LOCKS), digest_of(INPUTS))
    return current and (stamp.dev or not dev) and is_healthy()


def install_project(*, dev: bool) -> None:
    """Make ``.venv`` hold what the lock names, and the project, editable.

    Args:
        dev: With everything; once it was, it stays so.
    """
    former = Stamp.read()
    lock = digest_of(LOCKS)
    if former.lock != lock or not is_venv_of_this_folder():
        make_venv(choose_interpreter())
    dev = dev or former.dev
    what = DEV_LOCK if dev else TEST_LOCK
    say(f"installing {what.relative_to(ROOT)} and the project into {VENV.name} (about half a minute)")
    Stamp(lock=lock, dev=dev).write()
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    # Isolated, each build would fetch tools of its own that no lock names.
    built = [*pip, "-qq", "--no-build-isolation"]
    run([*pip, "-qq", "--require-hashes", "--requirement", str(BUILD_LOCK)])
    run([*built, "--require-hashes", "--requirement", str(what)])
    run([*built, "--no-deps", "--editable", str(ROOT)])
    Stamp(lock=lock, project=digest_of(INPUTS), dev=dev).write()
    if not is_healthy():
        raise SetupError(f"{VENV} was installed but cannot import the project; remove it and try again")


def make_venv(interpreter: str) -> None:
    """Make an empty ``.venv``, instead of one that this script has made before.

    Raises:
        SetupError: There is one that somebody else has made.
    """
    if VENV.is_symlink() or (VENV.exists() and not STAMP.is_file()):
        raise SetupError(f"{VENV} was not made by this script: move it away and try again")
    say(f"making {VENV.name} with {interpreter}")
    if VENV.exists():
        shutil.rmtree(VENV)
    VENV.mkdir()
    Stamp().write()  # first, so that one that is killed half-way is known
    run([interpreter, "-m", "venv", str(VENV)])


def digest_of(files: Iterable[Path]) -> str:
    """Return one digest of several files."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def is_healthy() -> bool:
    """Tell whether the environment still imports this very checkout."""
    answer = ask_venv(HEALTH)
    return answer.splitlines() == [str(VENV), str(ROOT / "pytest_kvm")]


def is_venv_of_this_folder() -> bool:
    """Tell whether ``.venv`` runs and was made here: a moved one keeps old paths."""
    if ask_venv("import sys; print(sys.prefix)").strip() != str(VENV):
        return False
    script = VENV / "bin" / "pip"
    return script.exists() and str(VENV).encode() in script.read_bytes()


def ask_venv(code: str) -> str:
    """Return what ``code`` prints in the environment; empty if it cannot run."""
    try:
        argv = [str(VENV / "bin" / "python"), "-c", code]
        answer = subprocess.run(argv, capture_output=True, text=True, cwd="/", check=False)
    except OSError:
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def run(argv: list[str], *, quiet: bool = False) -> None:
    """Run a command; a quiet one's output is shown only when it fails."""
    output = subprocess.PIPE if quiet else None
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    except OSError as error:
        raise SetupError(f"{shlex.join(argv)}: {error}") from None
    if done.returncode != 0:
        sys.stderr.write((done.stdout or b"").decode(errors="replace"))
        raise SetupError(f"this command failed with exit code {done.returncode}:\n  {shlex.join(argv)}")


if __name__ == "__main__":
    sys.exit(main())
