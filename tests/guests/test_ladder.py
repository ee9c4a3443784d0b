"""Guests broken on purpose, one for each rung: the boot fails early and says why."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

import pytest_kvm as kvm
from pytest_kvm import errors
from pytest_kvm.machine.boot import Phases

MEMORY = {"memory": "512MiB", "vcpus": 1}


def spec(**fields):
    return kvm.GuestSpec(**{**MEMORY, **fields})


def test_an_initrd_that_gives_up(boot):
    with pytest.raises(errors.KernelPanicked, match="the initrd gave up: .*No working init found"):
        boot(spec(cmdline_extra="init=/nonexistent"))


def test_a_root_device_that_does_not_exist(boot):
    with pytest.raises(errors.EmergencyMode, match="/dev/nonexistent"):
        boot(spec(cmdline_extra="root=/dev/nonexistent"))


def test_emergency_mode(boot):
    with pytest.raises(errors.EmergencyMode, match="init gave up"):
        boot(spec(cmdline_extra="systemd.unit=emergency.target"))


def test_no_bootable_device(boot, tmp_path):
    blank = tmp_path / "blank.raw"
    blank.write_bytes(bytes(1024 * 1024))

    def on_a_blank_disk(domain):
        disk = domain.find("devices/disk")
        disk.find("driver").set("type", "raw")
        disk.find("source").set("file", str(blank))
        return domain

    with pytest.raises(errors.NoBootableDevice, match="the BIOS found nothing to boot"):
        boot(spec(boot="firmware", xml=on_a_blank_disk))


def test_user_data_may_restart_the_guest(boot):
    """power_state restarts it once cloud-init has ended: a guest that is ready then would go down again."""
    note = "cat /proc/sys/kernel/random/boot_id >/root/first-boot"
    restart = kvm.CloudInit(run_commands=[note], user_data={"power_state": {"mode": "reboot"}})
    guest = boot(spec(cloud_init=restart))
    first = guest.read_text("/root/first-boot")
    assert first
    assert first != guest.read_text("/proc/sys/kernel/random/boot_id")


def test_qemu_died(kvm_guests, monkeypatch):
    speaks = threading.Event()
    spoken_to = Phases.reached

    def told(phases, phase):
        spoken_to(phases, phase)
        speaks.set()

    monkeypatch.setattr(Phases, "reached", told)
    # A spec of its own: there is never a template of a guest that dies while it boots.
    word = f"dies={os.getpid()}"
    guest = kvm_guests.start(spec(cmdline_extra=word))
    assert speaks.wait(120)
    (pid,) = qemu_of(word)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(errors.QemuDied, match="while the guest was booting: .*(signal 9|SIGKILL|killed)"):
        guest.wait_ready()


def qemu_of(word):
    """Return the process ids of the QEMU that boots a kernel with that word on its command line."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"qemu" in words[0] and any(each.endswith(b" " + word.encode()) for each in words):
            found.append(int(entry.name))
    return found


def test_sshd_never_answers(boot):
    with pytest.raises(errors.SshNeverAnswered, match="finished booting .* nothing listens on port 22"):
        boot(spec(cmdline_extra="systemd.mask=ssh.service systemd.mask=ssh.socket"))


def test_cloud_init_is_not_done_at_the_deadline(boot):
    with pytest.raises(errors.CloudInitTimeout, match=r"still ran after .* modules-final") as failed:
        boot(
            spec(
                boot_timeout=120,  # late enough for sshd to be there, on a busy machine, too
                cloud_init=kvm.CloudInit(run_commands=["echo counting sheep", "sleep 3600"]),
            )
        )
    assert "counting sheep" in failed.value.details


def test_a_unit_that_the_spec_wants_fails(boot):
    with pytest.raises(errors.UnitNotActive, match="no-such-thing.service will not become active"):
        boot(spec(units=["no-such-thing.service"]))
