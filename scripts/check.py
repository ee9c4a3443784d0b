"""Everything that has to pass before a change lands, in order of how soon it says no.

    python3 -m scripts.check            # this tree, with this machine's cache: what .ci/run does
    python3 -m scripts.check --clone    # a fresh clone of HEAD with an empty cache: `make check`

It ends with the first step that fails; that nothing is left on the machine is
looked at in any case. The last lines are each step's time and what failed, each
with its first error line. A clone that passes is written down: its tree's id
stands in ``.git/checked`` of the checkout that it was made from.

Run by whatever ``python3`` there is, before anything is installed: standard
library only.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.folders import own_folder

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 75 * 60.0
"""Seconds for all steps: well below CI's own limit, so that what hung can still be told from its output."""
EVENTS = "PYTEST_KVM_EVENTS"
"""The variable of --kvm-events; see docs/reference/report.md."""
CORE = "-p tests.retries --reruns=1 tests/core"
STEPS = {
    "lint": ["make", "lint"],
    "quick tests": ["make", "test-quick"],
    "guests": ["make", "test", f"PYTEST_ARGS={CORE}"],
    "docs": ["make", "docs"],
}
WHY = re.compile(
    r"(?:FAILED|ERROR) \S|\S+:\d+(?::\d+)?:?(?: -)? error\b|\S+: WARNING: |fatal: "
    r"|lint: .*: exit code|setup: this|leftovers: (?!nothing)"
)
"""Begins a line that says what failed: pytest's summary, a linter, Sphinx, git, one of our scripts."""
MOST = 20
"""Such lines of one step that are repeated at the end."""
_MOVES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass
class Step:
    """One step that was run."""

    name: str
    seconds: float
    passed: bool
    why: tuple[str, ...] = ()
    """The lines that say what failed; none if it passed."""

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        shown = [f"check: {self.name}: {verdict} ({self.seconds:.0f} s)", *self.why[:MOST]]
        if len(self.why) > MOST:
            shown.append(f"and {len(self.why) - MOST} more, see above")
        return "\n    ".join(shown)


def main() -> int:
    """Check this tree, or a clone of its HEAD."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was begun is ended
    if sys.argv[1:] == ["--clone"]:
        return check_clone()
    with tempfile.NamedTemporaryFile(prefix="leftovers-") as before, one_file_of_events():
        leftovers = [sys.executable, "scripts/leftovers.py"]
        subprocess.run([*leftovers, "note", before.name], cwd=ROOT, check=True)
        done = steps()
        done.append(run("leftovers", [*leftovers, "check", before.name], limit=60))
    print("", *done, sep="\n", flush=True)
    return 0 if all(step.passed for step in done) else 1


@contextmanager
def one_file_of_events() -> Iterator[None]:
    """Have all steps write what they do to guests to one file; tests/timings.py makes a table of it."""
    file = os.memfd_create("kvm-events")  # of which a process that is killed leaves nothing
    os.environ[EVENTS] = f"/proc/{os.getpid()}/fd/{file}"
    try:
        yield
    finally:
        del os.environ[EVENTS]
        os.close(file)


def steps() -> list[Step]:
    """Run the steps up to the first that fails."""
    done: list[Step] = []
    ends = time.monotonic() + LIMIT
    for name, argv in STEPS.items():
        done.append(run(name, argv, limit=ends - time.monotonic()))
        if not done[-1].passed:
            break
    return done


def run(name: str, argv: list[str], *, limit: float) -> Step:
    """Run one step, show what it prints, and keep the lines that say what failed."""
    print(f"\n=== {name}: {' '.join(argv)} ({time.strftime('%H:%M:%S')})", flush=True)
    began = time.monotonic()
    process = subprocess.Popen(
        argv,
        cwd=ROOT,
        env={**os.environ, "CI": "true"},  # pytest cuts no line of its summary then
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    timer = threading.Timer(max(0.0, limit), os.killpg, [process.pid, signal.SIGKILL])
    timer.start()
    why: list[str] = []
    with process:
        try:
            for line in process.stdout or ():
                sys.stdout.write(line)
                sys.stdout.flush()
                shown = _MOVES.sub("", line).strip()
                if WHY.match(shown):
                    why.append(shown)
        except BaseException:
            timer.cancel()
            os.killpg(process.pid, signal.SIGKILL)
            raise
    late = not timer.is_alive()
    timer.cancel()
    seconds = time.monotonic() - began
    passed = process.returncode == 0
    if late:
        why.append(f"it was ended after {seconds:.0f} s")
    return Step(name, seconds, passed, () if passed else tuple(why or ["see above"]))


def check_clone() -> int:
    """Check a fresh clone of HEAD, with a cache of its own, and note that it passed."""
    if git("status", "--porcelain"):
        print("check: what is not committed is not checked", flush=True)
    with own_folder("pytest-kvm-check-") as folder:
        folder.chmod(0o755)  # a test is an ordinary user, who has to get there
        clone = folder / "pytest-kvm"
        git("clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone))
        tree = git("rev-parse", "HEAD^{tree}", at=clone)
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        environment.pop("MAKEFLAGS", None)
        # It ends with us, however we end, and takes along what it has started.
        argv = ["setpriv", "--pdeathsig", "TERM", str(clone / ".ci" / "run")]
        with subprocess.Popen(argv, cwd=clone, env=environment) as checking:
            try:
                code = checking.wait()
            finally:
                checking.terminate()
    if code == 0:
        Path(git("rev-parse", "--absolute-git-dir"), "checked").write_text(tree + "\n")
        print(f"check: tree {tree[:12]} passed", flush=True)
    return code


def git(*arguments: str, at: Path | None = None) -> str:
    """Return what git prints, in this checkout or another; it has to succeed."""
    argv = ["git", "-C", str(at or ROOT), *arguments]
    return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
