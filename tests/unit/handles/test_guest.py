from __future__ import annotations

import subprocess
import sys
from concurrent.futures import Future

import pytest

from pytest_kvm.errors import KernelPanicked, SpecError
from pytest_kvm.handles.callbacks import Callbacks
from pytest_kvm.handles.guest import Guest
from tests.fakes import output


@pytest.fixture
def boot():
    return Future()


@pytest.fixture
def guest(boot):
    return Guest("web", boot, summary="debian-13 1GiB")


def test_a_guest_that_boots_says_so_and_waits_for_nothing(guest):
    assert repr(guest) == "<Guest web: debian-13 1GiB, booting>"
    assert guest.console_tail() == ""
    with pytest.raises(TimeoutError):
        guest.wait_ready(timeout=0.01)


def test_every_verb_raises_what_kept_the_guest_from_booting(guest, boot):
    boot.set_exception(KernelPanicked("web: the kernel panicked"))
    assert guest.state == "failed"
    assert guest.console_tail() == ""
    for verb in (
        guest.wait_ready,
        guest.pause,
        guest.dmesg,
        lambda: guest.run("true"),
        lambda: guest.console,
    ):
        with pytest.raises(KernelPanicked):
            verb()


@pytest.mark.parametrize("look", ["boot_phases", "domain_xml", "screenshot"])
def test_waiting_to_look_at_a_guest_counts_as_waiting_for_it(boot, machine, domain, look):
    """pytest_kvm_guest_ready is called before anything uses the guest; nobody waits without being told."""
    told = []
    guest = Guest("web", boot, callbacks=Callbacks(on_booted=lambda guest, error: told.append(error)))
    boot.set_result(machine)
    domain.picture = b"P6\n1 1\n255\n\x00\x00\x00"
    guest.console_tail()
    assert told == [], "what is shown of a failed test calls no hook"
    looked = getattr(guest, look)
    if callable(looked):
        looked()
    assert told == [None]


def test_a_guest_that_is_ready_hands_over_to_its_parts(guest, boot, machine, shell, domain, printed):
    boot.set_result(machine)
    shell.expect("uname -r", "6.12.117\n")
    shell.expect("uname -n", "web.example.org\n")
    printed("login: \n")
    domain.picture = b"P6\n1 1\n255\n\x00\x00\x00"
    assert guest.state == "running"
    assert (guest.kernel, guest.hostname) == ("6.12.117", "web.example.org")
    assert guest.console_tail() == "login: "[:-1]
    assert guest.domain_xml == "<domain><name>web</name></domain>"
    assert guest.screenshot()[:4] == b"\x89PNG"
    guest.pause()
    guest.resume()
    guest.send_keys("ctrl-alt-f2", "a")
    guest.type_text("B")
    assert domain.done == ["suspend", "resume", "keys [29, 56, 60]", "keys [30]", "keys [42, 48]"]


def test_keys_are_checked_before_any_is_pressed(guest, boot, machine, domain):
    boot.set_result(machine)
    with pytest.raises(SpecError):
        guest.send_keys("a", "hyper")
    assert domain.done == []


def test_a_screenshot_is_written_where_it_is_wanted(guest, boot, machine, domain, tmp_path):
    boot.set_result(machine)
    domain.picture = b"P6\n1 1\n255\n\x00\x00\x00"
    assert guest.screenshot(tmp_path / "s.png") == (tmp_path / "s.png").read_bytes()


def test_the_journal_is_asked_for_as_journalctl_wants_it(guest, boot, machine, shell):
    boot.set_result(machine)
    shell.expect("journalctl", "lines")
    assert guest.journal("nginx", since="-5min", lines=3) == "lines"
    assert shell.ran == [
        "journalctl --boot --no-pager --output=short-precise --unit=nginx --since=-5min --lines=3"
    ]


def test_a_guest_that_ended_says_so(guest, boot, machine, domain, printed):
    boot.set_result(machine)
    printed("last words\n")
    domain.end("guest shutdown")
    assert repr(guest) == "<Guest web: debian-13 1GiB, ended>"
    assert guest.console_tail() == "last words"


def test_the_ssh_command_pins_the_host_key(guest, boot, machine, tmp_path):
    boot.set_result(machine)
    assert guest.ssh_command == (
        f"ssh -F none -i {tmp_path}/key -p 1 -o IdentitiesOnly=yes -o UserKnownHostsFile={tmp_path}/kh "
        "-o StrictHostKeyChecking=yes root@127.0.0.1"
    )


def test_waits_take_the_runs_time_out_unless_told_otherwise(guest, boot, machine, shell):
    boot.set_result(machine)
    shell.expect("sh -c", output("there\n"))
    guest.wait_for_file("/x")
    guest.wait_for_port(80, timeout=7)
    assert "end=$((up + 300 + 1))" in shell.ran[0]
    assert "end=$((up + 7 + 1))" in shell.ran[1]


def test_importing_the_handle_loads_no_transport():
    code = "import sys, pytest_kvm.handles.guest; print({'paramiko', 'libvirt'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
