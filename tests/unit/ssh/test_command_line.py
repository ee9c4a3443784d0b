"""Command lines mean to a shell what the caller meant."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pytest_kvm.ssh.command_line import GROUP_MARK, as_given, command_line, quote_argv, signal_line

MARK = f'echo "{GROUP_MARK} $$"'
NASTY = ["a b", "it's", '"', "$HOME", "`id`", "*", "\n", "", "-n", "\\", "ü", "#", ";", "!", "~", "a\tb"]


def line(command, *, env=None, cwd=None, user=None, login="root"):
    return command_line(as_given(command), env=env or {}, cwd=cwd, user=user, login=login)


def run(script):
    return subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, check=False, start_new_session=True
    )


def output(script):
    return run(script).stdout.partition("\n")[2]


@pytest.mark.parametrize("word", NASTY)
def test_a_word_arrives_as_it_was_given(word):
    assert output(line(["printf", "%s|", word, "end"])) == f"{word}|end|"


@pytest.mark.parametrize("word", ["A=b", "if", "a b", "it's"])
def test_the_first_word_is_a_program_and_nothing_else(word):
    assert run(quote_argv([word])).returncode == 127


@pytest.mark.parametrize("word", NASTY)
def test_a_variables_value_arrives_as_it_was_given(word):
    assert output(line('printf %s "$X"', env={"X": word})) == word


def test_a_folder_is_entered_before_the_command(tmp_path):
    folder = tmp_path / "it's a -folder"
    folder.mkdir()
    assert output(line(["pwd"], cwd=str(folder))).strip() == str(folder)


def test_without_the_folder_the_command_is_not_run():
    done = run(line("echo ran || echo ran", cwd="/nowhere"))
    assert ("ran" in done.stdout, done.returncode) == (False, 125)


def test_paths_are_words():
    assert as_given(["ls", Path("/tmp")]) == ("ls", "/tmp")


def test_the_process_group_is_told_first():
    done = run(line("echo $$; echo end >&2"))
    group = done.stdout.splitlines()[1]
    assert done.stdout == f"{GROUP_MARK} {group}\n{group}\n"
    assert done.stderr == f"{GROUP_MARK} {group}\nend\n"


def test_root_becomes_another_user_by_runuser():
    script = line(["id", "-un"], user="alice", env={"A": "b c"})
    assert script.splitlines()[1:] == [
        MARK,
        "cd -- ~alice 2>/dev/null || cd /",
        "'runuser' -u alice -- env 'A=b c' id -un",
    ]


def test_anybody_else_asks_sudo():
    script = line("a && b", user="root", login="debian", cwd="/srv")
    assert script.splitlines()[1:] == [
        "cd -- /srv || exit 125",
        f"""'sudo' -n -H -u root -- "${{SHELL:-/bin/sh}}" -c '{MARK}""",
        "a && b'",
    ]


def test_the_login_user_needs_no_change():
    assert line(["id"], user="root").splitlines()[1:] == [MARK, "'id'"]


def test_a_signal_goes_to_the_group():
    assert signal_line("TERM", 7, as_root=False) == "kill -s TERM -- -7"
    assert signal_line("KILL", 7, as_root=True) == "sudo -n kill -s KILL -- -7"


@pytest.mark.parametrize("command", ["", [], [""], "a\0b", ["a", "\0"]])
def test_what_cannot_be_run_is_refused(command):
    with pytest.raises(ValueError, match="command"):
        as_given(command)


def test_a_number_is_no_word():
    with pytest.raises(TypeError):
        as_given(["sleep", 1])


@pytest.mark.parametrize("env", [{"A-B": "x"}, {"1A": "x"}, {"A=": "x"}, {"A": "\0"}])
def test_what_is_no_variable_is_refused(env):
    with pytest.raises(ValueError, match="environment variable"):
        line("true", env=env)


@pytest.mark.parametrize("user", ["", "a b", "-u", "$(id)", "a/b"])
def test_what_is_no_user_is_refused(user):
    with pytest.raises(ValueError, match="user's name"):
        line("true", user=user)
