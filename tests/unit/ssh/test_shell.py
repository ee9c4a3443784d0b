"""Commands over a connection, with a server in this process."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import psutil
import pytest

from pytest_kvm.errors import (
    CommandFailed,
    CommandTimeout,
    GuestGone,
    HostError,
    LoginRefused,
    SshUnavailable,
)
from pytest_kvm.host.ssh_keys import new_key_pair, write_private
from pytest_kvm.machine.watchdog import run_watched
from pytest_kvm.settings import Timeouts
from pytest_kvm.ssh import connection
from pytest_kvm.ssh.shell import Shell
from pytest_kvm.waiting import NotYet, wait_until
from tests.local_sshd import LocalSshd
from tests.slirp import Slirp

MIB = 1024**2
WITHIN = 30
"""Seconds for what should be done at once, and else takes a minute."""


class Life:
    """Whether the guest lives."""

    alive = True


@pytest.fixture
def life():
    return Life()


@pytest.fixture
def shell_to(life):
    shells = []

    def make(access, *, clock=time.monotonic, **timeouts):
        shell = Shell(
            access,
            log=logging.getLogger("pytest_kvm.web"),
            timeouts=Timeouts(**{"login": 5.0, "command": 20.0, **timeouts}),
            is_alive=lambda: life.alive,
            end_reason=lambda: "the cable was pulled",
            clock=clock,
        )
        shells.append(shell)
        return shell

    yield make
    for shell in shells:
        shell.close()


@pytest.fixture
def shell(server, shell_to):
    return shell_to(server.access())


def wait_for_the_end_of(pid: int) -> None:
    """Wait until a process runs no more; killed, it is there until the server has waited for it."""

    def look() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            status = psutil.Process(pid).status()
            if status != psutil.STATUS_ZOMBIE:
                raise NotYet(status)

    wait_until(look, describe=f"the end of process {pid}", timeout=10)


# ---------------------------------------------------------------- what comes back


def test_streams_come_apart_and_bytes_as_they_are(shell):
    result = shell.run(r"printf '\377\000a'; printf 'b\n' >&2; exit 3", check=False)
    assert (result.stdout_bytes, result.stderr, result.exit_code) == (b"\xff\0a", "b\n", 3)
    assert result.stdout == "\N{REPLACEMENT CHARACTER}\0a"
    assert result.argv == r"printf '\377\000a'; printf 'b\n' >&2; exit 3"


def test_a_failed_command_raises_with_both_streams(shell):
    with pytest.raises(
        CommandFailed, match="web: `sh -c 'echo out; echo err >&2; exit 2'`: exit code 2"
    ) as e:
        shell.run(["sh", "-c", "echo out; echo err >&2; exit 2"])
    assert "--- stdout\nout\n--- stderr\nerr" in str(e.value)
    assert e.value.result.exit_code == 2


@pytest.mark.parametrize("printed", ["echo HELLO", "printf 'no line end'"])
def test_what_start_up_files_print_is_not_the_commands(shell, server, printed):
    server.start_up = f"{printed}; {{ {printed}; }} >&2"
    result = shell.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr) == ("out\n", "err\n")
    with shell.start("echo ready; cat") as process:
        lines = process.lines()
        assert next(lines) == "ready"
        process.write("more\n")
        assert next(lines) == "more"


def test_a_shell_that_hangs_in_its_start_up_files_tells_what_they_print(shell, server):
    server.start_up = "echo HELLO; sleep 60"
    with pytest.raises(CommandTimeout) as late:
        shell.run(["true"], timeout=1)
    assert late.value.result.stdout == "HELLO\n"


def test_a_shell_that_ends_before_the_command_is_no_success(shell, server):
    server.start_up = "echo bye; exit 0"
    with pytest.raises(
        CommandFailed, match="`true`: the login shell ended with exit code 0 and did not"
    ) as told:
        shell.run(["true"], check=False)
    assert told.value.result.stdout == "bye\n"
    server.start_up = "echo no; exit 3"
    assert shell.run(["true"], check=False).exit_code == 3


def test_much_output_on_both_streams_is_neither_lost_nor_stuck(shell):
    result = shell.run(f"head -c {8 * MIB} /dev/zero & head -c {8 * MIB} /dev/zero >&2; wait")
    assert (len(result.stdout_bytes), len(result.stderr_bytes)) == (8 * MIB, 8 * MIB)


def test_much_input_is_fed_while_the_output_is_read(shell):
    data = os.urandom(4 * MIB)
    assert shell.run(["cat"], input=data).stdout_bytes == data


def test_input_that_nobody_reads_is_no_error(shell):
    assert shell.run("exec <&-; true", input=b"x" * 4 * MIB).ok


def test_without_input_a_command_reads_an_empty_one(shell):
    assert shell.run("cat").stdout == ""


def test_a_child_left_behind_that_holds_the_output_is_not_waited_for(shell):
    begun = time.monotonic()
    result = shell.run("sleep 30 & echo started")
    assert result.stdout == "started\n"
    assert time.monotonic() - begun < 10


def test_lines_are_told_to_the_guests_log(shell, caplog):
    caplog.set_level(logging.INFO, "pytest_kvm.web")
    shell.run("echo one; echo two >&2")
    assert [each for each in caplog.messages if "echo" in each][:1] == ["$ echo one; echo two >&2"]
    assert any(each.endswith("out: one") for each in caplog.messages)
    assert any(each.endswith("err: two") for each in caplog.messages)


# ---------------------------------------------------------------- time and life


def test_a_time_out_keeps_the_partial_output_and_kills_the_command_with_its_children(
    server, shell_to, caplog
):
    caplog.set_level(logging.INFO, "pytest_kvm.web")
    # It jumps at the second look after there is output: the wait may begin with the first.
    after = itertools.chain([0.0], itertools.repeat(60.0))
    shell = shell_to(
        server.access(),
        clock=lambda: next(after) if any("out: " in text for text in caplog.messages) else 0.0,
    )
    with pytest.raises(CommandTimeout, match="still running") as e:
        shell.run("echo $$; sleep 60; echo never", timeout=30)
    pid = int(e.value.result.stdout)
    assert e.value.result.exit_code == -1
    wait_for_the_end_of(pid)


def test_a_connection_that_breaks_ends_the_command_at_once(shell, server):
    process = shell.start("echo before; sleep 60")
    next(process.lines())
    server.drop()
    with pytest.raises(SshUnavailable, match="connection was lost") as e:
        process.wait()
    assert "before" in str(e.value)


def test_a_guest_that_ends_is_named_with_its_reason(shell, server, life):
    process = shell.start("sleep 60")
    life.alive = False
    with pytest.raises(GuestGone, match="the cable was pulled"):
        process.wait()
    server.drop()
    with pytest.raises(GuestGone, match="the cable was pulled"):
        shell.run("true")


def test_a_guest_that_goes_down_slowly_has_ended(shell, server, life):
    """sshd ends with its sessions, the guest seconds after it."""
    process = shell.start("sleep 60")
    server.close()
    ends = threading.Timer(2.5, setattr, (life, "alive", False))
    ends.start()
    with pytest.raises(GuestGone, match="the cable was pulled"):
        process.wait()
    ends.join()


def test_a_lost_connection_is_replaced_before_the_next_command(shell, server):
    shell.run("true")
    server.drop()
    assert shell.run("echo again").stdout == "again\n"
    assert server.logins == 2


def test_connections_that_were_lost_are_not_counted(shell, server):
    for _ in range(connection._MOST):
        shell.connect()
    server.drop()
    assert shell.run("echo again").stdout == "again\n"


def test_a_command_that_may_have_started_is_never_run_again(shell, server, tmp_path):
    process = shell.start("echo once >>times; touch written; sleep 60")
    while not (tmp_path / "written").exists():
        process.poll()
    server.drop()
    with pytest.raises(SshUnavailable):
        process.wait()
    shell.run("true")
    assert (tmp_path / "times").read_text() == "once\n"


def test_after_closing_a_command_connects_again(shell):
    shell.run("true")
    shell.close()
    assert not shell.connected
    shell.run("true")
    assert shell.connected


def test_without_a_server_the_error_says_what_was_seen_last(server, shell_to):
    access = server.access()
    server.close()
    with pytest.raises(SshUnavailable, match="Connection refused"):
        shell_to(access, login=0.3).run("true")


def test_more_commands_than_one_connection_takes_open_another(tmp_path, shell_to):
    server = LocalSshd(tmp_path, max_sessions=2)
    try:
        shell = shell_to(server.access())
        processes = [shell.start("echo up; exec sleep 60") for _ in range(5)]
        assert [next(process.lines()) for process in processes] == ["up"] * 5
        assert server.logins == 3
        assert len(shell.processes) == 5
    finally:
        shell.close()
        server.close()


# ---------------------------------------------------------------- keys


def test_a_foreign_host_key_is_refused_and_both_are_named(server, shell_to):
    pinned = new_key_pair().public
    with pytest.raises(LoginRefused, match="foreign host key") as e:
        shell_to(server.access(host_key=pinned)).connect()
    assert e.value.details.count("SHA256:") == 2
    assert server.logins == 0


def test_a_foreign_host_key_is_refused_without_trying_again(server, shell_to):
    begun = time.monotonic()
    with pytest.raises(LoginRefused):
        shell_to(server.access(host_key=new_key_pair().public), login=30.0).run("true")
    assert time.monotonic() - begun < 10


def test_a_key_that_somebody_has_removed_is_told(server, shell_to, tmp_path):
    gone = tmp_path / "gone"
    with pytest.raises(HostError, match=f"its SSH key {gone} is gone: somebody has removed it"):
        shell_to(server.access(key_file=gone)).run("true")


def test_a_refused_key_is_told(server, shell_to, tmp_path):
    other = write_private(tmp_path / "other", new_key_pair().private)
    with pytest.raises(LoginRefused, match="refused the key of user 'root'"):
        shell_to(server.access(key_file=other)).connect()


# ---------------------------------------------------------------- a server that is silent


def test_a_server_that_does_not_answer_costs_no_more_than_the_time_out(shell, server):
    shell.run("true")
    process = shell.start("echo up; read x; echo done")
    next(process.lines())
    server.freeze()
    begun = time.monotonic()
    with pytest.raises(SshUnavailable, match="did not answer within"):
        shell.run("true", timeout=0.5)
    assert time.monotonic() - begun < 5
    server.thaw()
    process.write("x\n")
    assert process.wait().stdout == "up\ndone\n"
    assert server.logins == 1


@pytest.fixture
def silent():
    """An sshd that says its name and nothing more, as of a guest whose kernel panics then."""
    greeted = threading.Event()

    def greet(_number, line):
        line.sendall(b"SSH-2.0-silent\r\n")
        line.recv(1)
        greeted.set()  # a client has answered: its login is under way

    with Slirp(treat=greet).serving() as slirp:
        yield SimpleNamespace(port=slirp.port, greeted=greeted)


@pytest.fixture
def silenced(silent, server, shell_to):
    """A shell whose login would hang for a minute."""
    return shell_to(replace(server.access(), port=silent.port), login=60.0)


@pytest.fixture
def background():
    with ThreadPoolExecutor() as background:
        yield background


@pytest.mark.parametrize("doing", ["connect", "run"])
def test_closing_ends_a_login_that_hangs(silent, silenced, background, doing):
    call = background.submit(silenced.connect if doing == "connect" else partial(silenced.run, "true"))
    assert silent.greeted.wait(WITHIN)
    silenced.close()
    assert isinstance(call.exception(WITHIN), SshUnavailable)


def test_a_panic_ends_a_login_that_hangs(silent, silenced, background):
    def check():
        if silent.greeted.is_set():
            raise GuestGone("the kernel panicked")

    call = background.submit(run_watched, silenced.connect, check=check, abandon=silenced.close)
    assert isinstance(call.exception(WITHIN), GuestGone)


def test_a_login_that_hangs_costs_another_command_its_own_time_out_only(silent, silenced, background):
    background.submit(silenced.connect)
    assert silent.greeted.wait(WITHIN)
    call = background.submit(silenced.run, "true", timeout=0.2)
    assert "another login did not end" in str(call.exception(WITHIN))
    silenced.close()


def test_closing_ends_a_command_that_sshd_does_not_answer(server, shell_to, background):
    shell = shell_to(server.access(), login=60.0)
    shell.run("true")
    server.freeze()
    call = background.submit(shell.run, "true")
    assert server.asked.wait(WITHIN)
    shell.close()
    assert isinstance(call.exception(WITHIN), SshUnavailable)
