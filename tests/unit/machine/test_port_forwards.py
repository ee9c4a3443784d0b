"""Forwarded ports, with slirp's table as QEMU 7.2 prints it."""

from __future__ import annotations

import re

import pytest

from pytest_kvm.errors import NetworkFailed
from pytest_kvm.machine.port_forwards import Forwards, forwarded_ports
from tests.fakes import FakeDomain

HEAD = """Hub -1 (kvmctl):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[ESTABLISHED]   14       127.0.0.1 51700       10.0.2.15    80     0     0
  TCP[HOST_FORWARD]  11       127.0.0.1 46297       10.0.2.15    22     0     0
"""


class SlirpDomain(FakeDomain):
    """A domain whose monitor knows host forwards."""

    def __init__(self):
        super().__init__()
        self.rules: dict[int, int] = {}
        self.next_port = 40001

    def hmp(self, line):
        if line == "info usernet":
            rows = "".join(
                f"  TCP[HOST_FORWARD]  12       127.0.0.1 {host:5}       10.0.2.15 {guest:5}     0     0\n"
                for host, guest in self.rules.items()
            )
            return HEAD + rows
        if found := re.fullmatch(r"hostfwd_add kvmctl tcp:127\.0\.0\.1:(\d+)-:(\d+)", line):
            host, guest = map(int, found.groups())
            if host in {46297, *self.rules}:
                return f"could not set up host forwarding rule 'tcp:127.0.0.1:{host}-:{guest}'\r\n"
            self.rules[host or self.next_port] = guest
            self.next_port += 1
            return ""
        if found := re.fullmatch(r"hostfwd_remove kvmctl tcp:127\.0\.0\.1:(\d+)", line):
            return "removed" if self.rules.pop(int(found[1]), None) else "not found"
        return super().hmp(line)


@pytest.fixture
def domain():
    return SlirpDomain()


@pytest.fixture
def forwards(domain):
    return Forwards(domain)


def test_the_kernel_chooses_the_port_and_it_is_read_back(forwards, domain):
    forward = forwards.add(80)
    assert (forward.host, forward.port, forward.guest_port) == ("127.0.0.1", 40001, 80)
    assert domain.rules == {40001: 80}
    assert repr(forward) == "<Forward 127.0.0.1:40001 to port 80 of web>"


def test_one_port_of_the_guest_can_be_forwarded_twice(forwards):
    assert {forwards.add(22).port, forwards.add(22).port} == {40001, 40002}


def test_a_port_of_the_host_can_be_asked_for(forwards):
    assert forwards.add(80, host_port=8080).port == 8080


def test_a_port_that_is_taken_is_told_with_what_qemu_said(forwards):
    with pytest.raises(NetworkFailed, match="port 80 could not be forwarded from 127.0.0.1:46297") as caught:
        forwards.add(80, host_port=46297)
    assert "could not set up" in caught.value.details
    assert forwards.open == ()


def test_leaving_the_block_closes_it_once(forwards, domain):
    with forwards.add(80) as forward:
        assert forwards.open == (forward,)
    forward.close()
    assert (forwards.open, domain.rules) == ((), {})


def test_closing_all_closes_all(forwards, domain):
    forwards.add(80)
    forwards.add(443)
    forwards.close()
    assert domain.rules == {}


def test_with_the_guest_gone_there_is_nothing_to_close(forwards, domain):
    forward = forwards.add(80)
    domain.end("destroyed")
    domain.hmp = lambda line: pytest.fail("a dead domain was asked")
    forward.close()
    assert forwards.open == ()


def test_a_port_that_stays_open_is_an_error(forwards, domain):
    forward = forwards.add(80)
    real = domain.hmp
    domain.hmp = lambda line: "busy" if line.startswith("hostfwd_remove") else real(line)
    with pytest.raises(NetworkFailed, match="could not be closed"):
        forward.close()


@pytest.mark.parametrize(("guest", "host"), [(0, 0), (65536, 0), (80, -1), (80, 65536)])
def test_what_is_no_port_is_refused(forwards, guest, host):
    with pytest.raises(ValueError, match="not a TCP port"):
        forwards.add(guest, host_port=host)


def test_only_listening_rules_count(domain):
    assert forwarded_ports(domain, 22) == {46297}
    assert forwarded_ports(domain, 80) == set()
