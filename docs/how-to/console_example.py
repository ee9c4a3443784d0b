"""See what a guest shows, and type where a person would."""

from __future__ import annotations

from pathlib import Path

import pytest_kvm as kvm


def test_the_console_holds_the_whole_boot(machine: kvm.Guest) -> None:
    assert "Linux version" in machine.console.text()
    assert machine.console_tail(5).count("\n") < 5


def test_typing_on_the_serial_line(machine: kvm.Guest) -> None:
    here = machine.console.offset()
    machine.console.send("\n")
    machine.wait_for_console(r"^machine login:", since=here)


def test_a_picture_of_the_screen(machine: kvm.Guest, tmp_path: Path) -> None:
    picture = machine.screenshot(tmp_path / "screen.png")
    assert picture.startswith(b"\x89PNG")


def test_keys_are_pressed(machine: kvm.Guest) -> None:
    listen = "set -- /dev/input/by-path/*-kbd; exec <$1; echo ready; exec head -c 24"
    with machine.start(listen) as keyboard:
        next(keyboard.lines())
        machine.send_keys("ctrl-alt-f2", "enter")
        assert len(keyboard.wait().stdout_bytes) == len("ready\n") + 24


def test_the_journal_and_the_kernel_log(machine: kvm.Guest) -> None:
    assert "Started ssh.service" in machine.journal("ssh.service")
    assert "Command line:" in machine.dmesg()
