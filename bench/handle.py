"""What a command and a file transfer cost, against OpenSSH on the same guest.

Both sides use one connection that is already open (OpenSSH: ``ControlPath``)
and take turns, so that the machine's mood meets both:

run  a command that does nothing
put  a file into the guest, against ``sftp``
get  the same file out of it, against ``sftp``

Without ``--port`` a guest is booted for it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pytest_kvm.options import from_environment, settings_from
from pytest_kvm.provision.reset_coordinator import ResetCoordinator
from pytest_kvm.provision.run import Run
from pytest_kvm.settings import TCG_FACTOR, Timeouts
from pytest_kvm.spec.guest import GuestSpec
from pytest_kvm.ssh.access import Access
from pytest_kvm.ssh.files import Files
from pytest_kvm.ssh.shell import Shell
from pytest_kvm.waiting import NotYet, wait_until

SPEC = GuestSpec(memory="1GiB", vcpus=2)
AIMS = {"run": ("≤", 1.2), "put": ("≥", 0.9), "get": ("≥", 0.9)}
"""run: our time by OpenSSH's; put and get: our throughput by sftp's."""
REMOTE = "/tmp/bench"  # noqa: S108 - in a guest of our own
Timed = Callable[[], object]


class Quiet:
    """Shows no progress."""

    def phase(self, subject: str, phase: str) -> None:
        """Ignore it."""

    def finished(self, subject: str, outcome: str) -> None:
        """Ignore it."""


@dataclass(frozen=True, kw_only=True)
class OpenSsh:
    """OpenSSH's clients over one control connection."""

    access: Access
    control: Path

    def run(self) -> None:
        """Run a command that does nothing."""
        self._call([*self.access.ssh_argv(), "-o", f"ControlPath={self.control}", "true"])

    def sftp(self, line: str) -> None:
        """Run one line of sftp's language."""
        access = self.access
        options = ["BatchMode=yes", f"ControlPath={self.control}", f"UserKnownHostsFile={access.known_hosts}"]
        argv = ["sftp", "-q", "-F", "none", "-i", str(access.key_file), "-P", str(access.port), "-b", "-"]
        argv += [word for option in options for word in ("-o", option)]
        self._call([*argv, f"{access.user}@{access.host}"], line)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Hold the control connection open."""
        # sshd may refuse for a while: it remembers who looked in during the boot
        # without logging in (PerSourcePenalties, sshd_config(5)).
        wait_until(self._open, describe="the control connection", timeout=300, every=1.0)
        try:
            yield
        finally:
            self._call([*self.access.ssh_argv(), "-q", "-o", f"ControlPath={self.control}", "-O", "exit"])

    def _open(self) -> None:
        options = ["ControlMaster=yes", "ControlPersist=yes", f"ControlPath={self.control}"]
        argv = [*self.access.ssh_argv(), "-f", "-N", *(word for each in options for word in ("-o", each))]
        # The master goes on in the background and would hold a pipe open.
        quiet = subprocess.DEVNULL
        if subprocess.run(argv, stdin=quiet, stdout=quiet, stderr=quiet, check=False).returncode != 0:
            raise NotYet("refused")

    @staticmethod
    def _call(argv: list[str], text: str = "") -> None:
        subprocess.run(argv, input=text.encode(), stdout=subprocess.DEVNULL, check=True)


def measure(access: Access, *, rounds: int, mib: int, commands: int) -> dict[str, dict[str, list[float]]]:
    """Take turns and return the seconds of each side, by what was done."""
    shell = Shell(
        access,
        log=logging.getLogger("pytest_kvm.bench"),
        timeouts=Timeouts().scaled(TCG_FACTOR),
        is_alive=lambda: True,
        end_reason=str,
    )
    files = Files(shell, log=logging.getLogger("pytest_kvm.bench"))
    times: dict[str, dict[str, list[float]]] = {what: {"pytest-kvm": [], "OpenSSH": []} for what in AIMS}
    with tempfile.TemporaryDirectory(prefix="kvm-bench-") as name:
        there, back = Path(name, "there"), Path(name, "back")
        there.write_bytes(os.urandom(mib * 1024**2))
        openssh = OpenSsh(access=access, control=Path(name, "control"))
        with openssh.connected():
            shell.run("true")
            for _ in range(rounds):
                for _ in range(commands):
                    take_turns(times["run"], lambda: shell.run("true"), openssh.run)
                take_turns(
                    times["put"],
                    lambda: files.put(there, REMOTE),
                    lambda: openssh.sftp(f"put {there} {REMOTE}.sftp"),
                )
                take_turns(
                    times["get"],
                    lambda: files.get(REMOTE, back),
                    lambda: openssh.sftp(f"get {REMOTE}.sftp {back}.sftp"),
                )
        if back.read_bytes() != there.read_bytes():
            raise SystemExit("what came back is not what was sent")
        shell.run(["rm", "-f", REMOTE, f"{REMOTE}.sftp"])
        shell.close()
    return times


def take_turns(times: dict[str, list[float]], ours: Timed, theirs: Timed) -> None:
    """Time both, one after the other."""
    for side, work in (("pytest-kvm", ours), ("OpenSSH", theirs)):
        begin = time.perf_counter()
        work()
        times[side].append(time.perf_counter() - begin)


def ratios(times: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Return the ratio of the medians, as :data:`AIMS` counts it."""
    found: dict[str, float] = {}
    for what, sides in times.items():
        ours, theirs = statistics.median(sides["pytest-kvm"]), statistics.median(sides["OpenSSH"])
        found[what] = round(ours / theirs if what == "run" else theirs / ours, 3)
    return found


def show(times: dict[str, dict[str, list[float]]], found: dict[str, float], *, mib: int) -> None:
    """Print medians, and ratios beside their aims."""
    table = Table("median", "pytest-kvm", "OpenSSH", "ratio", "aim")
    for what, sides in times.items():
        medians = [statistics.median(each) for each in sides.values()]
        cells = [
            f"{seconds * 1000:.0f} ms" if what == "run" else f"{mib / seconds:.1f} MiB/s"
            for seconds in medians
        ]
        sign, aim = AIMS[what]
        table.add_row(what, *cells, f"{found[what]:.2f}", f"{sign} {aim}")
    Console().print(table)


@contextmanager
def booted_access() -> Iterator[Access]:
    """Boot a guest and hand out its access."""
    run = Run(settings_from([from_environment]), progress=Quiet(), coordinator=ResetCoordinator())
    try:
        guest = run.start(SPEC, name="bench", resets=False)
        guest.wait_ready()
        yield guest.machine.access
    finally:
        run.close()


@contextmanager
def given_access(arguments: argparse.Namespace) -> Iterator[Access]:
    """Hand out what the command line says of a guest that runs already."""
    if arguments.key is None or arguments.host_key is None:
        raise SystemExit("--port needs --key and --host-key")
    host_key = arguments.host_key.read_text().strip()
    with tempfile.TemporaryDirectory(prefix="kvm-bench-") as name:
        known_hosts = Path(name, "known_hosts")
        known_hosts.write_text(f"[127.0.0.1]:{arguments.port} {host_key}\n")
        yield Access(
            port=arguments.port,
            key_file=arguments.key,
            host_key=host_key,
            known_hosts=known_hosts,
            user=arguments.user,
        )


def main() -> None:
    """Print the table, and write JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commands", type=int, default=10, help="commands in each round")
    parser.add_argument("--mib", type=int, default=100, help="size of the file")
    parser.add_argument("--port", type=int, help="sshd of a guest that runs already, on 127.0.0.1")
    parser.add_argument("--user", default="root")
    parser.add_argument("--key", type=Path, help="private key for it")
    parser.add_argument("--host-key", type=Path, help="its public host key")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    with given_access(arguments) if arguments.port else booted_access() as access:
        times = measure(access, rounds=arguments.rounds, mib=arguments.mib, commands=arguments.commands)
    found = ratios(times)
    show(times, found, mib=arguments.mib)
    if arguments.json:
        figures = {"seconds": times, "ratios": found, "mib": arguments.mib}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
