"""Send commands to QEMU's monitor and to the guest agent, through libvirt.

Both speak JSON of the same shape: ``{"execute": …, "arguments": …}`` is
answered by ``{"return": …}`` or ``{"error": {"class": …, "desc": …}}``
(https://www.qemu.org/docs/master/interop/qmp-spec.html).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import libvirt_qemu

from pytest_kvm.errors import AgentError, DomainFailed
from pytest_kvm.hypervisor.libvirt_errors import translated

if TYPE_CHECKING:
    import libvirt


def qmp(domain: libvirt.virDomain, command: str, *, arguments: Mapping[str, Any] | None) -> Any:  # noqa: ANN401 - JSON
    """Run a QMP command and return its ``return`` value.

    Raises:
        DomainFailed: QEMU refused the command, or its monitor is gone.
    """
    name: str = domain.name()
    with translated(f"run QMP {command} on {name}", error=DomainFailed):
        reply: str = libvirt_qemu.qemuMonitorCommand(domain, _request(command, arguments), 0)
    return result_of(reply, command=command, name=name)


def result_of(text: str, *, command: str, name: str) -> Any:  # noqa: ANN401 - JSON
    """Return the ``return`` value of QEMU's answer to a command.

    Raises:
        DomainFailed: QEMU answered with an error.
    """
    reply = json.loads(text)
    if "error" in reply:
        problem = reply["error"]
        raise DomainFailed(
            f"QEMU of {name} refused {command}: {problem['desc']}", details=f"{problem['class']}"
        )
    return reply["return"]


def hmp(domain: libvirt.virDomain, line: str) -> str:
    """Run a command of the human monitor and return what it printed."""
    with translated(f"run {line!r} in the monitor of {domain.name()}", error=DomainFailed):
        flags = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        printed: str = libvirt_qemu.qemuMonitorCommand(domain, line, flags)
    return printed.replace("\r\n", "\n")


def agent(
    domain: libvirt.virDomain, command: str, *, arguments: Mapping[str, Any] | None, timeout: float
) -> Any:  # noqa: ANN401 - JSON
    """Run a guest agent command and return its ``return`` value.

    The timeout is rounded up, because libvirt counts whole seconds. libvirt
    greets the agent before it sends the command, and waits up to 5 s more for
    the answer to the greeting (``QEMU_AGENT_WAIT_TIME``).

    Raises:
        AgentError: The agent refused, did not answer, or answered nonsense.
    """
    name: str = domain.name()
    seconds = max(1, math.ceil(timeout))
    with translated(f"run guest agent command {command} on {name}", error=AgentError):
        text = libvirt_qemu.qemuAgentCommand(domain, _request(command, arguments), seconds, 0)
    try:
        return json.loads(text)["return"]
    except (ValueError, KeyError, TypeError):
        # An answer of the guest is never trusted; libvirt limits its size.
        raise AgentError(f"the guest agent of {name} answered {command} with no result") from None


def _request(command: str, arguments: Mapping[str, Any] | None) -> str:
    return json.dumps(
        {"execute": command} if arguments is None else {"execute": command, "arguments": arguments}
    )
