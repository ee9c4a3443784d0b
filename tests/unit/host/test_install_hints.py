"""The table of packages against the programs that the code calls."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_kvm.errors import MissingDependency
from pytest_kvm.host import command
from pytest_kvm.host import install_hints as packages

ROOT = Path(__file__).parents[3]
SOURCES = [*(ROOT / "pytest_kvm").rglob("*.py"), ROOT / "scripts/setup.py"]
SCRIPTS = [*(ROOT / "pytest_kvm/images/data").glob("*.sh")]

CALLS = {"run", "require", "which", "Popen", "_answer_of"}
OF_THE_HOST = {"", "command", "namespace", "shutil", "subprocess"}
"""Whose functions those are; guests and toolboxes have programs of their own."""
OF_THE_SHELL = {
    *("case", "cd", "done", "echo", "esac", "exit", "fi", "for", "printf", "set", "shift", "test"),
    *("[", "{", "}", ":"),
}
IF_THERE = {
    *(packages.APT, packages.DNF, packages.ZYPPER, packages.PACMAN),
    *("apt-config", "sudo"),  # looked for first, and done without
}


def programs_of_python(source: str) -> Iterator[str]:
    """Yield the programs of the host that a module names where it calls something."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            owner, _, name = ast.unparse(node.func).rpartition(".")
            if name in CALLS and owner in OF_THE_HOST:
                arguments = node.args if name == "require" else node.args[:1]
                yield from [word for each in arguments if (word := first_word(each)) is not None]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"-hook=([a-z]+)", node.value)
            if node.value.startswith("set -eu\n"):
                yield from programs_of_shell(node.value)


def first_word(argument: ast.expr) -> str | None:
    if isinstance(argument, ast.List | ast.Tuple) and argument.elts:
        argument = argument.elts[0]
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return argument.value
    return None


def programs_of_shell(script: str) -> Iterator[str]:
    """Yield the programs of the host that a script calls; what follows chroot is the guest's."""
    for line in re.sub(r"\\\n|^#.*", " ", script, flags=re.MULTILINE).splitlines():
        for part in re.split(r";|&&|\|\|?|\$\(", re.sub(r"'[^']*'", "''", line.partition(" #")[0])):
            words = [word for word in part.split() if word not in {"if", "then", "else", "do", "!", "exec"}]
            while words and re.match(r"\w+=", words[0]):
                del words[0]
            if words and re.fullmatch(r"[a-z][\w.-]*", words[0]) and words[0] not in OF_THE_SHELL:
                yield words[0]


def called() -> set[str]:
    """Return every program of the host that is called."""
    python = {program for file in SOURCES for program in programs_of_python(file.read_text())}
    return python | {program for file in SCRIPTS for program in programs_of_shell(file.read_text())}


def test_every_program_that_is_called_is_in_the_table():
    assert [program for program in sorted(called() - IF_THERE) if packages.need_for(program) is None] == []


def test_the_search_finds_what_is_called():
    assert {"apt-get", "mmdebstrap", "mount", "qemu-img", "readlink", "setpriv", "tar", "zstd"} <= called()


def test_a_build_script_ends_when_a_step_fails():
    for script in SCRIPTS:
        text = script.read_text()
        assert "\nset -eu\n" in text, script
        # Each of these loses the exit status of what it calls.
        assert not re.search(r"-exec|\| *while|\$\([^)]*\$\(|xargs", text), script


@pytest.mark.parametrize("need", packages.NEEDS | packages.TEST_NEEDS)
def test_a_row_is_complete(need):
    row = (packages.NEEDS | packages.TEST_NEEDS)[need]
    assert row.why
    assert row.programs or row.files
    assert set(row.packages) == {packages.APT, packages.DNF, packages.ZYPPER, packages.PACMAN}
    assert all(row.packages.values())


def test_a_need_is_met_by_all_its_programs(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "_SBIN", (str(tmp_path / "sbin"),))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "sbin").mkdir()
    (tmp_path / "newuidmap").touch(mode=0o755)
    assert not packages.is_met("subordinate-ids")
    (tmp_path / "sbin/newgidmap").touch(mode=0o755)
    assert packages.is_met("subordinate-ids")


def test_a_program_that_is_missing_names_the_package_that_brings_it(tmp_path, monkeypatch):
    (tmp_path / "dnf").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency) as failure:
        command.require("qemu-img")
    assert failure.value.resolution.startswith("dnf install")
    assert failure.value.resolution.endswith(" qemu-img")


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("manager", ["apt-get", "dnf", "zypper", "pacman"])
def test_commands_for_each_package_manager(tmp_path, monkeypatch, manager):
    (tmp_path / manager).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    commands = packages.install_commands(["qemu-img", "zstd"])
    assert commands[-1][0] == manager
    assert commands[-1][-1] == "zstd"
    assert packages.install_commands([]) == []
    assert packages.install_hint("zstd").startswith(manager)


@pytest.mark.parametrize(("user", "expected"), [(0, [packages.ADD_QEMU_ACCOUNT]), (1000, [])])
def test_debians_account_for_qemu_is_made_for_root_where_it_is_missing(tmp_path, monkeypatch, user, expected):
    (tmp_path / "apt-get").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: user)

    def nobody(_name):
        raise KeyError

    monkeypatch.setattr(packages.pwd, "getpwnam", nobody)
    assert packages.account_commands() == expected


def test_an_unknown_system_gets_debians_names(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert packages.install_commands(["qemu-img"]) == []
    assert packages.install_hint("qemu-img") == "install qemu-utils (Debian's names)"
