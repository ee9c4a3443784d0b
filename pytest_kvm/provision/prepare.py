"""Waits until a machine is ready, and runs the prepare steps of its spec."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pytest_kvm.errors import CommandTimeout, GuestError, GuestGone, KernelPanicked, PrepareFailed
from pytest_kvm.machine.card_drivers import check_drivers
from pytest_kvm.machine.machine import Machine
from pytest_kvm.machine.readiness import wait_until_ready
from pytest_kvm.machine.watchdog import run_while_alive
from pytest_kvm.provision.failed_boots import keeping_failed_boot
from pytest_kvm.results import CommandResult, label, streams_of
from pytest_kvm.spec.prepare import HostFile, PrepareStep, Script
from pytest_kvm.ssh.files import Files

if TYPE_CHECKING:
    from pytest_kvm.provision.run_resources import RunResources
    from pytest_kvm.provision.start_request import StartRequest

T = TypeVar("T")
OnStep = Callable[[str], None]
"""Called before each step with a phrase that names it."""

_log = logging.getLogger("pytest_kvm.start")
_BREAKPOINT = "Oops: int3"
"""What Linux prints of a breakpoint that it does not know (arch/x86/kernel/traps.c)."""
_ROOT = "root"
_DEFAULT_INTERPRETER = "/bin/sh"
_RUN_INPUT = """
f=$(mktemp) || exit
trap 'rm -f -- "$f"' EXIT
cat >"$f" && "$@" "$f" </dev/null
"""
"""Shell script: writes its input to a temporary file, runs the command in ``$@`` with the file's path
appended, and removes the file."""


class PatchingRaceLost(Exception):  # noqa: N818 - it never reaches a user, who gets its panic
    """Raised if a kernel panicked by a fault of QEMU's emulation; :func:`boot_with_second_try` boots again.

    A kernel patches its own code while it runs, and puts a breakpoint (``int3``) in that place
    meanwhile. With several processors, QEMU's TCG may run the breakpoint when it is gone already.
    """

    def __init__(self, panic: KernelPanicked) -> None:
        super().__init__(panic.brief)
        self.panic = panic


def make_ready(machine: Machine, request: StartRequest, *, resources: RunResources) -> None:
    """Wait until a machine that was switched on is ready, and prepare it.

    Everything that was written is synced to the machine's disks: a test that
    begins with ``power_off()`` loses its own writes, but not the SSH host key.

    Args:
        machine: The machine.
        request: What it was switched on for.
        resources: What the run has opened.

    Raises:
        PatchingRaceLost: The machine has to be booted again.
        BootFailed: The machine did not become ready, or a step failed.
    """
    with keeping_failed_boot(machine, request, keeping=resources.failed_boots):
        _make_ready(machine, request, accel=resources.accel)


def _make_ready(machine: Machine, request: StartRequest, *, accel: str) -> None:
    spec = request.spec
    try:
        wait_until_ready(machine, phases=request.phases, units=spec.units, boot_timeout=spec.boot_timeout)
    except KernelPanicked as failure:
        if accel == "tcg" and _BREAKPOINT in machine.console.text():
            raise PatchingRaceLost(failure) from failure
        raise
    if spec.nics:
        check_drivers(machine)
    run_steps(machine, spec.prepare, on_step=request.on_step)
    _run_step(machine, ["sync"], which="the last step, writing back")


def boot_with_second_try(boot: Callable[[str], T], *, name: str, why: str) -> T:
    """Boot a machine, and once more if QEMU's emulation ended the boot.

    Args:
        boot: Boots it; is told why, for the report. If it raises PatchingRaceLost, nothing is left of it.
        name: The guest's name.
        why: Why it is booted.

    Raises:
        KernelPanicked: The second boot ended like the first.
    """
    try:
        return boot(why)
    except PatchingRaceLost as lost:
        _log.warning("%s: %s: by a fault of QEMU's emulation; it is booted again", name, lost)
    try:
        return boot(f"{why}; its first boot ended by a fault of QEMU's emulation")
    except PatchingRaceLost as lost:
        raise lost.panic from None


def run_steps(machine: Machine, steps: Sequence[PrepareStep], *, on_step: OnStep) -> None:
    """Run prepare steps in order, as root; each may take as long as a command may.

    Args:
        machine: A guest that is ready.
        steps: From its spec.
        on_step: Called as each step begins.

    Raises:
        PrepareFailed: A step failed or ran out of time; the rest is not run.
    """
    for number, step in enumerate(steps, start=1):
        which = f"prepare step {number} of {len(steps)}"
        on_step(f"{which}: {_title(step)}")
        _run_step(machine, step, which=which)


def _run_step(machine: Machine, step: PrepareStep, *, which: str) -> None:
    where = f"{machine.name}: {which} ({_title(step)})"
    try:
        result = run_while_alive(machine, lambda: _do_step(machine, step), what=which)
    except CommandTimeout as error:
        raise PrepareFailed(
            f"{where} did not end within {machine.timeouts.command:.0f} s",
            details=streams_of(error.result),
            resolution="do less in one step, or raise --kvm-timeout-factor",
        ) from error
    except GuestGone as error:
        raise PrepareFailed(f"{where}: {error.brief}", details=error.details) from error
    except (GuestError, OSError) as error:
        details = error.details if isinstance(error, GuestError) else ""
        raise PrepareFailed(
            f"{where}: {error.brief if isinstance(error, GuestError) else error}", details=details
        ) from error
    if result is not None and not result.ok:
        raise PrepareFailed(
            f"{where}: exit code {result.exit_code} after {result.duration:.1f} s",
            details=streams_of(result),
            resolution="steps run as root and in order, on a guest that is ready; none may fail",
        )


def _do_step(machine: Machine, step: PrepareStep) -> CommandResult | None:
    """Do one step; return None for a copied file, which has no result."""
    if isinstance(step, HostFile):
        files = Files(machine.shell, log=machine.log)
        files.put(step.source, step.path, mode=step.mode, owner=step.owner)
        return None
    if isinstance(step, Script):
        content = (step.content or "").encode() if step.file is None else Path(step.file).read_bytes()
        argv = ["/bin/sh", "-c", _RUN_INPUT, "prepare", *interpreter_of(step, content)]
        return machine.shell.run(argv, input=content, user=_ROOT, check=False)
    return machine.shell.run(step, user=_ROOT, check=False)


def interpreter_of(script: Script, content: bytes) -> list[str]:
    """Return the words that run a script when its path is appended to them.

    In a ``#!`` line, all that follows the program is one argument, as the kernel
    does it (``execve(2)``). The kernel is not asked to run the script, because
    the script may be on a file system that is mounted ``noexec``.
    """
    if script.interpreter is not None:
        return [script.interpreter]
    first = content.partition(b"\n")[0].decode(errors="replace")
    words = first.removeprefix("#!").strip().split(maxsplit=1) if first.startswith("#!") else []
    return words or [_DEFAULT_INTERPRETER]


def _title(step: PrepareStep) -> str:
    """Return a step on one bounded line."""
    if isinstance(step, HostFile):
        return f"{step.source} → {step.path}"
    if isinstance(step, Script):
        return (
            f"script {step.file}" if step.file is not None else f"script `{label(_gist(step.content or ''))}`"
        )
    return f"`{label(step if isinstance(step, str) else tuple(step))}`"


def _gist(content: str) -> str:
    """Return the first line that is neither a comment nor a ``set -`` command."""
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(("#", "set -"))), lines[0])
