"""Exit signals, which paramiko does not know."""

from __future__ import annotations

import paramiko
import pytest

from pytest_kvm.ssh.connection import _with_exit_status


def request(kind: str, *rest: bytes) -> paramiko.Message:
    message = paramiko.Message()
    message.add_int(7).add_string(kind)
    for each in rest:
        message.add_bytes(each)
    message.rewind()
    message.seqno = 5
    return message


def signalled(name: bytes) -> paramiko.Message:
    tail = b"\0" + len(name).to_bytes(4, "big") + name
    return _with_exit_status(request("exit-signal", tail))


@pytest.mark.parametrize(("name", "code"), [(b"KILL", 137), (b"SEGV", 139), (b"X\xff", 255)])
def test_an_exit_signal_becomes_the_status_that_a_shell_would_say(name, code):
    message = signalled(name)
    assert (message.get_int(), message.get_text(), message.get_boolean()) == (7, "exit-status", False)
    assert message.get_int() == code
    assert message.seqno == 5


def test_other_requests_pass_untouched():
    message = _with_exit_status(request("exit-status", b"\0\0\0\0\3"))
    assert (message.get_int(), message.get_text()) == (7, "exit-status")
    assert message.get_remainder() == b"\0\0\0\0\3"
