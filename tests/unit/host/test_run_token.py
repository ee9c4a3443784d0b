"""Which run a process belongs to, and whether the run has ended."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pytest_kvm.host.run_token import has_run_ended, new_run_token


def test_this_run_lives():
    assert not has_run_ended(new_run_token())
    assert new_run_token() != new_run_token()


def test_a_run_ends_with_its_process():
    code = "from pytest_kvm.host.run_token import new_run_token; print(new_run_token())"
    token = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert has_run_ended(token.strip())


def test_a_later_process_with_its_id_is_another():
    pid, started, own = new_run_token().split(":")
    assert pid == str(os.getpid())
    assert has_run_ended(f"{pid}:{int(started) - 1}:{own}")


def test_a_process_that_has_ended_and_is_not_collected_has_ended():
    code = "from pytest_kvm.host.run_token import new_run_token; print(new_run_token())"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as ended:
        token = ended.stdout.readline().strip()
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert has_run_ended(token)


@pytest.mark.parametrize("text", ["", "1:2", "x:1:5ca1ab1e5ca1ab1e"])
def test_what_is_no_token(text):
    with pytest.raises(ValueError, match="no token"):
        has_run_ended(text)
