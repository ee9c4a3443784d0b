"""The scripts behind ``make`` and ``.ci/run``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts import clean, fresh, leftovers, setup


@pytest.fixture
def lacking_table(monkeypatch):
    """A machine that lacks one package."""
    met: set[str] = set()
    table = SimpleNamespace(
        why=lambda _need: "runs the guests",
        missing=lambda *, for_tests: [need for need in ["qemu"] * for_tests if need not in met],
        is_met=met.__contains__,
        account_commands=lambda: [["useradd", "qemu"]] if "qemu" in met and "account" not in met else [],
        install_commands=lambda needs: [["apt-get", "install", *needs]],
        met=met,
    )
    monkeypatch.setattr(setup, "load_table", lambda: table)
    return table


def test_without_rights_the_exact_command_is_shown(lacking_table, monkeypatch):
    monkeypatch.setattr(setup, "privileges", lambda: None)
    with pytest.raises(setup.SetupError, match="please run\n  sudo apt-get install qemu\n"):
        setup.install_host_packages(needs_interpreter=False)


def test_with_rights_the_command_runs_and_its_effect_is_checked(lacking_table, monkeypatch):
    ran = []
    monkeypatch.setattr(setup, "privileges", lambda: ["sudo", "-n"])
    monkeypatch.setattr(setup, "run", lambda argv, **_: ran.append(argv))
    with pytest.raises(setup.SetupError, match="still missing after the installation: qemu"):
        setup.install_host_packages(needs_interpreter=False)
    assert ran == [["sudo", "-n", "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "qemu"]]


def test_a_machine_that_has_everything_needs_no_rights(lacking_table, monkeypatch):
    lacking_table.met |= {"qemu", "account"}
    monkeypatch.setattr(setup, "privileges", lambda: pytest.fail("asked for root"))
    setup.install_host_packages(needs_interpreter=False)


@pytest.mark.parametrize("brought", [{"qemu"}, {"qemu", "account"}])
def test_the_account_is_looked_for_once_the_packages_are_there(lacking_table, monkeypatch, brought):
    ran = []

    def run(argv, **_):
        ran.append(argv[2])
        lacking_table.met |= brought if argv[2] == "apt-get" else {"account"}

    monkeypatch.setattr(setup, "privileges", list)
    monkeypatch.setattr(setup, "run", run)
    setup.install_host_packages(needs_interpreter=False)
    assert ran == ["apt-get", *["useradd"] * ("account" not in brought)]


@pytest.mark.parametrize(("user", "expected"), [(0, "/usr/bin/python3.11"), (1000, "/root/python3.13")])
def test_root_prefers_an_interpreter_that_everybody_may_execute(monkeypatch, user, expected):
    found = [
        {"path": "/root/python3.13", "version": [3, 13, 0]},
        {"path": "/usr/bin/python3.11", "version": [3, 11, 2]},
    ]
    monkeypatch.delenv("PYTHON", raising=False)
    monkeypatch.setattr(setup, "usable_interpreters", lambda: found)
    monkeypatch.setattr(setup, "is_public", lambda path: not path.startswith("/root"))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert setup.choose_interpreter() == expected


def test_an_interpreter_that_will_not_do_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("PYTHON", "/bin/false")
    with pytest.raises(setup.SetupError, match="PYTHON=/bin/false is not Python"):
        setup.choose_interpreter()


def test_a_private_folder_hides_what_is_in_it(tmp_path):
    program = tmp_path / "private" / "python3"
    program.parent.mkdir(mode=0o700)
    program.touch(mode=0o755)
    assert not setup.is_public(str(program))


def test_a_process_that_stays_is_a_leftover(tmp_path, capsys, monkeypatch):
    file = tmp_path / "before"
    monkeypatch.setattr(leftovers, "FOLDERS", {str(tmp_path): "pytest-kvm-*"})
    monkeypatch.setattr(sys, "argv", ["leftovers.py", "note", str(file)])
    assert leftovers.main() == 0

    waits = [sys.executable, "-c", "print(flush=True); input()", "pytest-kvm-leftover"]
    (tmp_path / "pytest-kvm-0").mkdir()
    with subprocess.Popen(waits, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # Popen returns before the kernel shows the command line
        monkeypatch.setattr(sys, "argv", ["leftovers.py", "check", str(file)])
        assert leftovers.main() == 1
        process.communicate(b"\n")

    said = capsys.readouterr().err
    assert f"process {process.pid}," in said
    assert str(Path("pytest-kvm-0")) in said


# ---------------------------------------------------------------- what is removed


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with what make made in it, and files of its owner beside."""
    root = tmp_path / "checkout"
    for name, mark in clean.MARKS.items():
        (root / name).mkdir(parents=True)
        (root / name / mark).touch()
    compiled = root / "pytest_kvm" / "__pycache__"
    compiled.mkdir(parents=True)
    (compiled / "errors.cpython-311.pyc").touch()
    (root / "build").mkdir()
    (root / "build" / "file").touch()
    monkeypatch.setattr(setup, "VENV", root / ".venv")
    monkeypatch.setattr(setup, "STAMP", root / ".venv" / setup.STAMP.name)
    monkeypatch.setattr(setup, "say", lambda _text: None)
    return root


def test_what_make_made_is_removed_and_nothing_else(checkout, capsys):
    clean.main(checkout)
    assert {path.name for path in checkout.iterdir()} == {"build", "docs", "pytest_kvm"}
    assert list((checkout / "docs").iterdir()) == list((checkout / "pytest_kvm").iterdir()) == []
    assert (checkout / "build" / "file").exists()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", clean.MARKS)
def test_a_folder_that_make_did_not_make_is_left_alone_and_named(checkout, name, capsys):
    (checkout / name / clean.MARKS[name]).unlink()
    (checkout / name / "file").touch()
    clean.main(checkout)
    assert (checkout / name / "file").exists()
    assert f"clean: {name} has no " in capsys.readouterr().err


@pytest.mark.parametrize("name", [*clean.MARKS, "pytest_kvm/__pycache__"])
def test_a_link_in_the_place_of_a_folder_is_left_alone(checkout, name, tmp_path):
    (checkout / name).rename(tmp_path / "precious")
    (checkout / name).symlink_to(tmp_path / "precious")
    before = set((tmp_path / "precious").iterdir())
    clean.main(checkout)
    assert set((tmp_path / "precious").iterdir()) == before != set()


def test_a_file_beside_compiled_modules_stays(checkout):
    (checkout / "pytest_kvm/__pycache__/file").touch()
    clean.main(checkout)
    assert [path.name for path in (checkout / "pytest_kvm/__pycache__").iterdir()] == ["file"]


def test_an_environment_of_somebody_else_is_not_cleared(checkout, monkeypatch):
    monkeypatch.setattr(setup, "run", lambda _argv: pytest.fail("something was run"))
    setup.STAMP.unlink()
    (setup.VENV / "file").touch()
    with pytest.raises(setup.SetupError, match="was not made by this script"):
        setup.make_venv("python3")
    assert (setup.VENV / "file").exists()


def test_a_link_in_the_place_of_the_environment_is_not_followed(checkout, monkeypatch, tmp_path):
    monkeypatch.setattr(setup, "run", lambda _argv: pytest.fail("something was run"))
    setup.VENV.rename(tmp_path / "precious")
    setup.VENV.symlink_to(tmp_path / "precious")
    with pytest.raises(setup.SetupError, match="was not made by this script"):
        setup.make_venv("python3")
    assert (tmp_path / "precious" / setup.STAMP.name).exists()


def test_an_environment_of_ours_is_made_anew_and_known_from_the_start(checkout, monkeypatch):
    ran = []
    monkeypatch.setattr(setup, "run", ran.append)
    (setup.VENV / "old").touch()
    setup.make_venv("python3")
    assert [path.name for path in setup.VENV.iterdir()] == [setup.STAMP.name]
    assert setup.Stamp.read() == setup.Stamp()
    assert ran == [["python3", "-m", "venv", str(setup.VENV)]]


def installed(monkeypatch, *, dev):
    """Install, and return what was run."""
    ran = []
    monkeypatch.setattr(setup, "run", ran.append)
    monkeypatch.setattr(setup, "is_healthy", lambda: True)
    monkeypatch.setattr(setup, "is_venv_of_this_folder", setup.STAMP.is_file)
    monkeypatch.setattr(setup, "choose_interpreter", lambda: "python3")
    setup.install_project(dev=dev)
    return [" ".join(argv) for argv in ran]


def test_what_is_installed_is_what_the_lock_names(checkout, monkeypatch):
    made, build, locked, project = installed(monkeypatch, dev=False)
    assert made.startswith("python3 -m venv")
    assert build.endswith("--require-hashes --requirement " + str(setup.BUILD_LOCK))
    assert locked.endswith("--no-build-isolation --require-hashes --requirement " + str(setup.TEST_LOCK))
    assert project.endswith(f"--no-build-isolation --no-deps --editable {setup.ROOT}")
    assert setup.is_up_to_date(dev=False)
    assert not setup.is_up_to_date(dev=True)


def test_an_environment_with_everything_keeps_it(checkout, monkeypatch):
    installed(monkeypatch, dev=True)
    assert setup.is_up_to_date(dev=False)
    *_, locked, _ = installed(monkeypatch, dev=False)
    assert locked.endswith(str(setup.DEV_LOCK))


def test_another_lock_makes_the_environment_anew(checkout, monkeypatch):
    installed(monkeypatch, dev=False)
    assert len(installed(monkeypatch, dev=False)) == 3
    monkeypatch.setattr(setup, "digest_of", lambda _files: "another")
    assert not setup.is_up_to_date(dev=False)
    assert installed(monkeypatch, dev=False)[0].startswith("python3 -m venv")


def test_what_another_version_of_the_script_left_is_made_anew(checkout, monkeypatch):
    setup.STAMP.write_text('{"inputs": "", "extras": []}')
    assert not setup.is_up_to_date(dev=False)
    assert installed(monkeypatch, dev=False)[0].startswith("python3 -m venv")


def test_a_fresh_machine_has_none_of_our_variables_but_proxies(monkeypatch):
    monkeypatch.setenv("PYTEST_KVM_EVENTS", "/proc/1/fd/3")
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    there = fresh.environment()
    assert there["HOME"] == "/root"
    assert there["https_proxy"] == "http://proxy:3128"
    assert "PYTEST_KVM_EVENTS" not in there
