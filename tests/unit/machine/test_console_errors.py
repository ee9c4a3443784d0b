from __future__ import annotations

import pytest

from pytest_kvm.errors import EmergencyMode, KernelPanicked, NoBootableDevice
from pytest_kvm.machine.console_errors import ConsoleWatch

SAID = [
    (
        "[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n",
        KernelPanicked,
        "unknown-block(0,0)",
    ),
    ("You are in emergency mode. After logging in, type\r\n", EmergencyMode, "You are in"),
    ("\r\n\x1b[1mGive root password for maintenance\r\n", EmergencyMode, "Give root"),
    ("\r\nCannot open access to console, the root account is locked.\r\n", EmergencyMode, "locked"),
    ("ALERT!  /dev/vdz does not exist.  Dropping to a shell!\r\n", EmergencyMode, "/dev/vdz"),
    (
        "initramfs: No root filesystem\ninitramfs: Will cause kernel panic in 10s...\n",
        KernelPanicked,
        "No root filesystem",
    ),
    ("\r\n(initramfs) ", EmergencyMode, "(initramfs)"),
    ("\x1b[2JBooting from Hard Disk...\r\nNo bootable device.\r\n", NoBootableDevice, "No bootable"),
    ("BdsDxe: No bootable option or device was found.\r\n", NoBootableDevice, "BdsDxe"),
    (
        "error: no such partition.\r\nEntering rescue mode...\r\ngrub rescue> ",
        NoBootableDevice,
        "grub rescue>",
    ),
]


@pytest.mark.parametrize(("text", "error", "part"), SAID)
def test_each_symptom_is_recognised_however_it_is_cut(machine, printed, text, error, part):
    watch = ConsoleWatch(machine.console)
    printed("SeaBIOS\r\nLinux version 6.12\r\n")
    for byte in text.encode():
        printed(bytes([byte]))
        watch.look()
    found = watch.look()
    assert found
    assert found.symptom.error is error
    assert part in found.line


def test_a_healthy_boot_shows_no_symptom(machine, printed):
    printed(
        "[    0.0] Command line: root=LABEL=root panic=-1 quiet\r\n"
        "[  OK  ] Reached target emergency-helper.\r\nYou are in good hands\r\nweb login: "
    )
    assert ConsoleWatch(machine.console).look() is None


def test_what_came_before_belongs_to_another_boot(machine, printed):
    printed("Kernel panic - not syncing: old\r\n")
    watch = ConsoleWatch(machine.console, since=machine.console.offset())
    printed("Linux version 6.12\r\n")
    assert watch.look() is None


def test_the_line_is_told_whole_once_it_is(machine, printed):
    watch = ConsoleWatch(machine.console)
    printed("[1.0] Kernel panic - not syncing: ")
    assert watch.look() is None
    printed("Attempted to kill init!\r\n[1.1] CPU: 0\r\n")
    found = watch.look()
    assert found
    assert found.line == "[1.0] Kernel panic - not syncing: Attempted to kill init!"


def test_a_line_that_never_ends_is_told_at_the_next_look(machine, printed):
    watch = ConsoleWatch(machine.console)
    printed("grub rescue> ")
    watch.look()
    assert watch.look()


def test_a_wait_for_the_root_device_is_told_when_nothing_follows(machine, printed):
    now = [0.0]
    watch = ConsoleWatch(machine.console, clock=lambda: now[0])
    printed("initramfs: Waiting for /dev/nonexistent to appear...\r\n")
    watch.look()
    now[0] = 15.0
    assert watch.look() is None
    now[0] = 25.0
    found = watch.look()
    assert found
    assert "/dev/nonexistent" in found.line


def test_a_silent_console_alone_is_no_symptom(machine, printed):
    now = [0.0]
    watch = ConsoleWatch(machine.console, clock=lambda: now[0])
    printed("initramfs: Waiting for /dev/vda1 to appear...\r\nRun /init as init process\r\n")
    watch.look()
    now[0] = 600.0
    assert watch.look() is None
