"""The guest as a test holds it.

A façade: every verb waits until the guest is ready and hands over to the
module that does the work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pytest_kvm.handles.file_verbs import FileVerbs
from pytest_kvm.handles.power_verbs import PowerVerbs
from pytest_kvm.handles.savepoint_verbs import SavepointVerbs
from pytest_kvm.handles.view_verbs import ViewVerbs
from pytest_kvm.handles.wait_verbs import WaitVerbs
from pytest_kvm.machine.agent import GuestAgent

if TYPE_CHECKING:
    from pytest_kvm.results import CommandResult
    from pytest_kvm.ssh.command_line import Command
    from pytest_kvm.ssh.process import Process


class Guest(FileVerbs, WaitVerbs, PowerVerbs, ViewVerbs, SavepointVerbs):
    """One virtual machine.

    Commands, files, waits, power, savepoints, and views of what it shows; each
    group's verbs are documented in its own class.
    """

    @property
    def boot_phases(self) -> Mapping[str, float]:
        """Seconds from power on to each rung of the readiness ladder."""
        return self._parts.phases

    @property
    def kernel(self) -> str:
        """The running kernel's release, as ``uname -r`` says it."""
        return self.run(["uname", "-r"]).stdout.strip()

    @property
    def hostname(self) -> str:
        """The name the guest calls itself."""
        return self.run(["uname", "-n"]).stdout.strip()

    @property
    def domain_xml(self) -> str:
        """The live domain XML, as ``virsh dumpxml`` prints it."""
        return self._parts.domain.xml()

    @property
    def ssh_command(self) -> str:
        """A line to paste into a terminal: logs in, with the host key pinned."""
        return self.machine.access.ssh_command()

    # ------------------------------------------------------------ commands

    def run(
        self,
        command: Command,
        *,
        input: str | bytes | None = None,  # noqa: A002 - subprocess.run's word
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        check: bool = True,
    ) -> CommandResult:
        """Run a command in the guest to its end.

        Args:
            command: A list of words, quoted safely, or a string for the shell.
            input: Its standard input.
            env: Variables to add to its environment.
            cwd: The directory to run it in.
            user: Who runs it; None: the user of the SSH login.
            timeout: Seconds.
            check: Raise if it exits non-zero.

        Raises:
            CommandFailed: It exited non-zero and ``check`` is true; or the login
                shell ended before it, with exit code 0.
            CommandTimeout: It ran out of time; carries what it wrote.
            GuestGone: The guest ended.
            SshUnavailable: The connection was lost.
        """
        return self.machine.shell.run(
            command, input=input, env=env, cwd=cwd, user=user, timeout=timeout, check=check
        )

    def start(
        self,
        command: Command,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
    ) -> Process:
        """Start a command in the background; arguments as in :meth:`run`."""
        return self.machine.shell.start(command, env=env, cwd=cwd, user=user)

    @property
    def agent(self) -> GuestAgent:
        """QEMU's guest agent: commands without network or login."""
        machine = self.machine
        return GuestAgent(machine.domain, timeout=machine.timeouts.agent)
