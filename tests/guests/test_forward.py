"""Ports of a real guest on the host."""

from __future__ import annotations

import socket

import pytest

import pytest_kvm as kvm


def banner(address):
    with socket.create_connection(address, timeout=60) as connection:
        return connection.recv(64)


def test_a_forwarded_port_leads_to_the_guest_until_it_is_closed(guest):
    with guest.forward(22) as forward:
        assert forward.host == "127.0.0.1"
        assert banner((forward.host, forward.port)).startswith(b"SSH-2.0-")
    with pytest.raises(ConnectionRefusedError):
        banner((forward.host, forward.port))


def test_a_port_of_the_host_that_is_taken_is_an_error(guest):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(kvm.KvmError, match="could not be forwarded"):
            guest.forward(22, host_port=port)
