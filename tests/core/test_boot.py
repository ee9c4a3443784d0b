"""Boots that fail, each early and by name; the other rungs are in tests/guests/test_ladder.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

import pytest_kvm as kvm
from pytest_kvm import errors
from tests.guest_specs import SMALL


@kvm.guest(scope="module")
def victim():
    return replace(SMALL, reset="never")


def test_a_kernel_panic(boot):
    # Without its initrd this kernel cannot even read the disk.
    with pytest.raises(
        errors.KernelPanicked, match="the kernel panicked: .*Unable to mount root fs"
    ) as failed:
        boot(replace(SMALL, cmdline_extra="rdinit=/nonexistent root=/dev/vda1"))
    assert "boot phases: power on 0.0 s" in failed.value.details
    assert "VFS: Cannot open root device" in failed.value.details


def test_cloud_init_fails(boot):
    script = "echo no such database >&2; exit 7"
    with pytest.raises(errors.CloudInitFailed, match="runcmd") as failed:
        boot(replace(SMALL, cloud_init=kvm.CloudInit(run_commands=[script])))
    assert "no such database" in failed.value.details


def test_a_refused_login(victim):
    victim.write_text("/etc/ssh/sshd_config.d/00-no-keys.conf", "PubkeyAuthentication no\n")
    with pytest.raises(errors.LoginRefused, match="refused") as failed:
        victim.reboot()
    assert "banner" in failed.value.details


def test_after_the_cable_is_pulled_every_verb_says_that_the_guest_is_gone(victim):
    victim.power_off()
    assert victim.state == "ended"
    with pytest.raises(errors.GuestGone):
        victim.run("true")
    with pytest.raises(errors.GuestGone):
        victim.wait_for_console("anything", timeout=60)
    assert victim.console_tail()
    victim.power_off()
