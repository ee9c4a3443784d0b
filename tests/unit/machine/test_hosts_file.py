"""The block of names in a guest's hosts file."""

from __future__ import annotations

import subprocess

import pytest

from pytest_kvm.errors import GuestError
from pytest_kvm.machine import hosts_file
from pytest_kvm.machine.hosts_file import HostsFile
from tests.fakes import output

LINES = ["10.1.0.5\tweb\tweb.lan", "fd00::5\tweb\tweb.lan"]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("127.0.0.1\tlocalhost\n")
    return path


def _write(path, text):
    script = hosts_file._SCRIPT.replace("/etc/hosts", str(path))
    argv = ["sh", "-c", script, "sh", hosts_file._BEGIN, hosts_file._END]
    subprocess.run(argv, input=text, text=True, check=True)
    return path.read_text()


def test_lines_are_added_replaced_and_removed(path):
    before = path.read_text()
    block = hosts_file._block(LINES)
    assert _write(path, block) == before + block
    with path.open("a") as file:
        file.write("10.9.9.9\tthe-users-own\n")
    own = before + "10.9.9.9\tthe-users-own\n"
    assert _write(path, hosts_file._block(LINES[:1])) == own + hosts_file._block(LINES[:1])
    assert _write(path, "") == own


def test_a_last_line_without_an_end(path):
    path.write_text("127.0.0.1\tlocalhost")
    assert _write(path, hosts_file._block(LINES)).startswith("127.0.0.1\tlocalhost\n# pytest-kvm")


def test_a_clone_gets_the_lines_with_its_renewal():
    hosts = HostsFile()
    assert hosts.append([]) == ""
    text = hosts.append(LINES)
    assert text.splitlines()[1:3] == LINES
    assert hosts.has(LINES)
    assert hosts.has(LINES[1:])
    assert not hosts.has([*LINES, "10.1.0.6\tdb"])


def test_a_guest_that_was_taken_back_is_told_again():
    hosts = HostsFile()
    hosts.append(LINES)
    hosts.forget()
    assert not hosts.has([])


def test_a_guest_that_was_taken_back_is_offered_the_lines_again(machine, domain):
    script = f"sh -c {hosts_file._SCRIPT} sh {hosts_file._BEGIN} {hosts_file._END}"
    hosts = HostsFile()
    domain.agent_runs({script: [""]})
    hosts.offer(machine, LINES)
    hosts.forget()
    domain.agent_runs({script: [""]})
    hosts.offer(machine, LINES)
    assert hosts.has(LINES)


def test_lines_are_written_by_the_agent_once(machine, domain):
    domain.agent_runs({f"sh -c {hosts_file._SCRIPT} sh {hosts_file._BEGIN} {hosts_file._END}": [""]})
    hosts = HostsFile()
    hosts.update(machine, LINES)
    hosts.update(machine, LINES[1:])  # the agent would run out of outputs


def test_without_an_agent_lines_are_written_over_ssh(machine, shell):
    shell.expect("/etc/hosts", output("", exit_code=1, stderr="Read-only file system"))
    hosts = HostsFile()
    with pytest.raises(GuestError, match="/etc/hosts cannot be written") as failed:
        hosts.update(machine, LINES)
    assert failed.value.details == "Read-only file system"
    hosts.update(machine, LINES)
    assert len(shell.ran) == 1


def test_lines_are_offered_once_to_a_guest_that_nobody_uses(machine, shell):
    hosts = HostsFile()
    for _ in range(2):
        hosts.offer(machine, LINES)  # it has no agent, and is not asked over SSH
    assert not hosts.has(LINES)
    shell.expect("/etc/hosts", output(""))
    hosts.update(machine, LINES)
    assert hosts.has(LINES)


def test_lines_that_were_taken_when_offered_are_not_written_again(machine, domain):
    domain.agent_runs({f"sh -c {hosts_file._SCRIPT} sh {hosts_file._BEGIN} {hosts_file._END}": [""]})
    hosts = HostsFile()
    hosts.offer(machine, LINES)
    hosts.update(machine, LINES)
