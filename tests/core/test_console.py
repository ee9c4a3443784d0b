from __future__ import annotations

import pytest

from pytest_kvm.errors import WaitTimeout


def test_the_log_begins_with_the_boot(guest):
    assert "Linux version" in guest.console.text() or "systemd" in guest.console.text()
    assert "\x1b" not in guest.console.text()
    assert len(guest.console.tail(5).splitlines()) == 5


def test_what_the_guest_prints_can_be_waited_for(guest):
    offset = guest.console.offset()
    guest.run("echo 'unit 7 is \033[32mgreen\033[0m' >/dev/ttyS0")
    assert guest.wait_for_console(r"unit (\d+) is green$", since=offset)[1] == "7"


def test_a_wait_that_is_in_vain_shows_the_last_line(guest):
    offset = guest.console.offset()
    guest.run("echo something else >/dev/ttyS0")
    with pytest.raises(WaitTimeout, match="something else"):
        guest.wait_for_console("never printed", since=offset, timeout=1)


# O_NOCTTY: the line must not become the reader's controlling terminal.
READ_LINE = """
import os
line = os.open("/dev/ttyS0", os.O_RDWR | os.O_NOCTTY)
os.write(line, b"listening\\n")
print(os.read(line, 200).decode(), end="")
"""


def test_what_is_typed_arrives_in_the_guest(guest):
    typed = "a line longer than the sixteen bytes that a UART holds\n"
    getty = "serial-getty@ttyS0.service"
    guest.run(["systemctl", "stop", getty])
    try:
        offset = guest.console.offset()
        with guest.start(["python3", "-c", READ_LINE]) as reader:
            guest.wait_for_console("listening", since=offset)
            guest.console.send(typed)
            assert reader.wait().stdout == typed
    finally:
        guest.run(["systemctl", "start", getty])


def test_a_person_can_log_in_on_the_console(guest):
    offset = guest.console.offset()
    guest.console.send("\n")
    guest.wait_for_console("login: ", since=offset)


def test_journal_and_kernel_log_can_be_read(guest):
    guest.run(["logger", "--tag", "kvm-test", "hello journal"])
    guest.wait_for_log("hello journal")
    assert "hello journal" in guest.journal(lines=50)
    assert "hello journal" not in guest.journal("systemd-journald.service")
    assert "Linux version" in guest.dmesg()
