"""A guest's sshd in this process, and a shell on it."""

from __future__ import annotations

import logging

import pytest

from pytest_kvm.settings import Timeouts
from pytest_kvm.ssh.shell import Shell
from tests.local_sshd import LocalSshd


@pytest.fixture
def server(tmp_path):
    server = LocalSshd(tmp_path)
    yield server
    server.close()


@pytest.fixture
def shell(server):
    shell = Shell(
        server.access(),
        log=logging.getLogger("pytest_kvm.web"),
        timeouts=Timeouts(login=5.0, command=20.0),
        is_alive=lambda: True,
        end_reason=str,
    )
    yield shell
    shell.close()
