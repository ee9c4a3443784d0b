from __future__ import annotations

import os

import pytest

from pytest_kvm.hypervisor.qemu_log import foreign_signal, refuses_state, size, tail

START = """\
2026-11-22 17:42:13.024+0000: starting up libvirt version: 9.0.0, qemu version: 7.2.22
LC_ALL=C \\
/usr/bin/qemu-system-x86_64 \\
-name guest=g1 \\
-msg timestamp=on
"""


def test_only_qemus_own_lines_count(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        START
        + "2026-11-22 17:42:13.024+0000: Domain id=1 is tainted: high-privileges\n"
        + "qemu-system-x86_64: -bogus: invalid option\n"
        + "2026-11-22 17:42:15.448+0000: shutting down, reason=crashed\n"
    )
    assert tail(log) == "qemu-system-x86_64: -bogus: invalid option"


def test_the_last_start_counts_when_there_were_several(tmp_path):
    log = tmp_path / "log"
    log.write_text(START + "first\n" + START + "second\n")
    assert tail(log) == "second"


def test_what_a_former_domain_of_that_name_printed_is_left_out(tmp_path):
    log = tmp_path / "log"
    log.write_text(START + "first\n")
    before = size(log)
    assert tail(log, since=before) == ""
    log.write_text(START + "first\n" + START + "second\n")
    assert tail(log, since=before) == "second"
    log.write_text("emptied, second\n")
    assert tail(log, since=before) == "emptied, second"
    assert size(tmp_path / "absent") == 0


def test_a_long_log_is_cut_to_its_last_lines(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(START.encode() + b"".join(b"line %d\n" % number for number in range(100_000)))
    assert tail(log).splitlines() == [f"line {number}" for number in range(99_990, 100_000)]


def test_bytes_that_are_no_text_are_replaced(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(START.encode() + b"\xff\xfe oops\n")
    assert tail(log) == "\N{REPLACEMENT CHARACTER}" * 2 + " oops"


def test_no_log_says_nothing(tmp_path):
    assert tail(tmp_path / "absent") == ""


@pytest.mark.parametrize("sender", ["ours", "foreign"])
def test_a_signal_of_another_process_is_no_shutdown(tmp_path, sender):
    pid = os.getpid() if sender == "ours" else 1
    log = tmp_path / "log"
    log.write_text(START + f"qemu-system-x86_64: terminating on signal 15 from pid {pid} (earlyoom)\n")
    expected = "" if sender == "ours" else "terminating on signal 15 from pid 1 (earlyoom)"
    assert foreign_signal(log) == expected


def test_without_a_signal_nothing_is_said_of_one(tmp_path):
    log = tmp_path / "log"
    log.write_text(START)
    assert foreign_signal(log) == ""


@pytest.mark.parametrize(
    ("said", "refuses"),
    [
        ("Not a migration stream\nload of migration failed: Invalid argument", True),
        ("load of migration failed: Input/output error", True),
        ("Error -22 while loading VM state", True),
        ("Device 'virtio0' does not have the requested snapshot 'kvm-template'", True),
        ("Snapshot 'kvm-template' does not exist in one or more devices", True),
        ("load of migration failed: Cannot allocate memory", False),
        ("terminating on signal 15 from pid 1 (init)", False),
        ("cannot set up guest memory 'kvm-ram': Cannot allocate memory", False),
    ],
)
def test_a_state_that_is_refused_is_told_from_a_host_that_is_short_of_something(said, refuses):
    assert refuses_state(f"2026-11-28T09:07:52.305609Z qemu-system-x86_64: {said}\n") == refuses
