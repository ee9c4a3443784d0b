"""``pytest-kvm resume``: lets a guest go on that was kept when its test failed."""

from __future__ import annotations

import argparse
import shlex
from contextlib import ExitStack
from pathlib import Path

from pytest_kvm.cli.command_progress import shown_progress
from pytest_kvm.plaintext import one_line
from pytest_kvm.settings import Settings

_LOOK_EVERY = 3600.0
"""Seconds; the end of the guest is noticed at once."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser; it sets ``handler``."""
    parser = subparsers.add_parser(
        "resume",
        help="let a guest go on that --kvm-dump=guest has kept",
        description="Start a guest as it was when its test failed, print how to log in, and remove it at "
        "Ctrl-C. The artifact stays as it is. Resume only what you trust: it says itself what QEMU is "
        "started with.",
    )
    parser.add_argument(
        "artifact", metavar="ARTIFACT", type=Path, help="folder of artifacts of the guest, or of its test"
    )
    parser.set_defaults(handler=_resume)


def _resume(arguments: argparse.Namespace, settings: Settings) -> int:
    from pytest_kvm.machine.frozen_guest import FrozenGuest, find_frozen  # noqa: PLC0415 - other commands do without
    from pytest_kvm.provision.thaw import thawed_guest  # noqa: PLC0415 - as above

    artifact = find_frozen(arguments.artifact)
    frozen = FrozenGuest.read(artifact)
    about = {
        "command": shlex.join(["pytest-kvm", "resume", str(arguments.artifact)]),
        "started_in": str(Path.cwd()),
        "worker": "",
    }
    with ExitStack() as stack:
        with shown_progress(f"resuming {one_line(frozen.guest)}") as report:
            going_on = thawed_guest(artifact, settings, about=about, tell=lambda step: report(step, None))
            guest = stack.enter_context(going_on)
        print(f"{one_line(frozen.guest)} goes on as it was at {frozen.moment:%Y-%m-%d %H:%M:%S} UTC")
        print(f"log in:  {guest.access.ssh_command()}")
        print(f"console: {guest.console_log}")
        print("Ctrl-C removes it", flush=True)
        try:
            while not guest.domain.wait_end(_LOOK_EVERY):
                pass
        except KeyboardInterrupt:
            print("removing it", flush=True)
        else:
            print(f"it has ended: {one_line(guest.domain.end_reason())}", flush=True)
    return 0
