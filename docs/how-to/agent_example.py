"""Talk to the guest agent."""

from __future__ import annotations

import pytest_kvm as kvm


def test_the_agent_needs_no_network(machine: kvm.Guest) -> None:
    machine.agent.ping()
    assert machine.agent.call("guest-get-osinfo")["id"] == "debian"
    assert machine.agent.read_text("/etc/hostname") == "machine\n"


def test_a_program_is_run_by_the_agent(machine: kvm.Guest) -> None:
    machine.run(["systemctl", "stop", "ssh.socket", "ssh.service"])
    result = machine.agent.exec(["systemctl", "is-active", "ssh.service"], check=False)
    assert result.stdout == "inactive\n"
    machine.agent.exec(["systemctl", "start", "ssh.service"])
    assert machine.run(["true"]).ok
