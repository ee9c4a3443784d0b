"""Commands in a real guest."""

from __future__ import annotations

import os

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import SshUnavailable
from tests.guest_specs import SMALL

MIB = 1024**2


@pytest.fixture(scope="module")
def alice(guest):
    """A user of the guest."""
    guest.run(["useradd", "--create-home", "alice"])
    yield "alice"
    guest.run(["userdel", "--remove", "alice"])


def test_a_list_is_quoted_and_a_string_is_the_shells(guest):
    assert guest.run(["echo", "$HOME", "a  b", "it's"]).stdout == "$HOME a  b it's\n"
    assert guest.run("echo $((1 + 2)) | tr 3 x").stdout == "x\n"


def test_streams_come_apart_and_bytes_as_they_are(guest):
    result = guest.run(r"printf '\377\000'; echo err >&2; exit 3", check=False)
    assert (result.stdout_bytes, result.stderr, result.exit_code) == (b"\xff\0", "err\n", 3)
    assert not result.ok


def test_a_failure_shows_command_exit_code_and_both_streams(guest):
    with pytest.raises(kvm.CommandFailed) as caught:
        guest.run(["sh", "-c", "echo out; ls /nowhere"])
    text = str(caught.value)
    assert "ls /nowhere" in text
    assert "exit code 2" in text
    assert "--- stdout\nout\n--- stderr\nls: cannot access '/nowhere'" in text


def test_input_environment_and_folder(guest):
    result = guest.run("cat; echo $X; pwd", input="in\n", env={"X": "a 'b' $c"}, cwd="/usr/share")
    assert result.stdout == "in\na 'b' $c\n/usr/share\n"


def test_another_user(guest, alice):
    assert guest.run(["id", "-un"], user=alice).stdout == "alice\n"
    told = guest.run("echo $HOME:$X; pwd", user=alice, env={"X": "a b"})
    assert told.stdout == "/home/alice:a b\n/home/alice\n"
    assert guest.run(["cat", "/etc/shadow"], user=alice, check=False).exit_code == 1
    assert guest.run("pwd", user=alice, cwd="/tmp").stdout == "/tmp\n"


def test_nobody_has_no_home_and_starts_at_the_root(guest):
    assert guest.run("id -un; pwd", user="nobody").stdout == "nobody\n/\n"


def test_an_unknown_user_is_told_by_the_guest(guest):
    with pytest.raises(kvm.CommandFailed, match="user mallory does not exist"):
        guest.run("true", user="mallory")


def test_a_time_out_keeps_the_partial_output_and_ends_the_command(guest):
    with pytest.raises(kvm.CommandTimeout) as caught:
        guest.run("echo begun; sleep 1234; echo never", timeout=3)
    assert caught.value.result.stdout == "begun\n"
    assert guest.run(["pgrep", "-f", "sleep 123[4]"], check=False).exit_code == 1


def test_a_frozen_guest_does_not_hang_the_test(guest):
    guest.run("true")
    guest.pause()
    try:
        with pytest.raises((kvm.CommandTimeout, SshUnavailable)):
            guest.run("true", timeout=3)
    finally:
        guest.resume()
    assert guest.run("echo back").stdout == "back\n"


def test_a_signal_is_an_exit_code(guest):
    assert guest.run(["sh", "-c", "kill -KILL $$"], check=False).exit_code == 137
    assert guest.run("kill -SEGV $$", check=False).exit_code == 139


def test_much_output_is_neither_lost_nor_fatal(guest):
    result = guest.run(f"head -c {100 * MIB} /dev/zero; head -c {10 * MIB} /dev/zero >&2")
    assert (len(result.stdout_bytes), len(result.stderr_bytes)) == (100 * MIB, 10 * MIB)


def test_much_input_is_neither(guest):
    data = os.urandom(10 * MIB)
    assert guest.run("cat", input=data).stdout_bytes == data


def test_a_child_left_behind_is_not_waited_for(guest):
    pid = guest.run("sleep 600 & echo $!").stdout.strip()
    guest.run(["kill", pid])  # it was still there


def test_a_lost_connection_is_replaced(guest):
    with pytest.raises(SshUnavailable, match="connection was lost"):
        guest.run("kill -KILL $PPID; sleep 60")
    assert guest.run("echo again").stdout == "again\n"


def test_a_guest_that_ends_ends_the_command_at_once(boot):
    guest = boot(SMALL)
    process = guest.start("echo up; sleep 600")
    next(process.lines())
    guest.power_off()
    with pytest.raises(kvm.GuestGone, match="has ended"):
        process.wait()
    with pytest.raises(kvm.GuestGone):
        guest.run("true")
