"""What is checked before a frozen guest goes on."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from pytest_kvm.errors import HostError, KvmUnavailable, UnknownImage
from pytest_kvm.machine.frozen_guest import FrozenGuest, KeptDisk
from pytest_kvm.provision.thaw import check_host, check_images
from pytest_kvm.settings import Settings

DIGEST = "a" * 64
FROZEN = FrozenGuest(
    format=1,
    guest="web",
    snapshot="kvm-frozen-0",
    frozen=0.0,
    qemu="8.2.5",
    pytest_kvm="1.0",
    image="debian-13",
    login="root",
    host_key="ssh-ed25519 AAAA",
    disks=(KeptDisk(files=("disk0.qcow2",), formats=("qcow2",), image=DIGEST),),
    boot_files={},
)
TCG, KVM = "<domain type='qemu'/>", "<domain type='kvm'/>"


def host(qemu, accel="tcg"):
    facts = SimpleNamespace(hypervisor_version=qemu)
    return SimpleNamespace(accel=accel, hypervisor=SimpleNamespace(facts=lambda: facts))


@pytest.mark.parametrize("qemu", ["8.2.5", "8.2.1", "8.3.0", "10.0.2"])
def test_later_versions_can_go_on(qemu):
    check_host(FROZEN, host(qemu), xml=TCG)


@pytest.mark.parametrize("qemu", ["8.1.9", "7.2.22"])
def test_older_ones_cannot(qemu):
    with pytest.raises(HostError, match=f"web ran in QEMU 8.2.5, and an older one, here {qemu}, "):
        check_host(FROZEN, host(qemu), xml=TCG)


def test_kvm_is_needed_by_those_that_ran_under_it():
    check_host(FROZEN, host("8.2.5", "kvm"), xml=KVM)
    check_host(FROZEN, host("8.2.5", "kvm"), xml=TCG)
    with pytest.raises(KvmUnavailable, match="web ran under KVM, and cannot go on without"):
        check_host(FROZEN, host("8.2.5"), xml=KVM)


def test_the_firmware_has_to_be_there(tmp_path):
    xml = f"<domain type='qemu'><os><loader>{tmp_path}/OVMF.fd</loader></os></domain>"
    with pytest.raises(HostError, match="web needs the firmware .*/OVMF.fd, and this host has none there"):
        check_host(FROZEN, host("8.2.5"), xml=xml)
    (tmp_path / "OVMF.fd").touch()
    check_host(FROZEN, host("8.2.5"), xml=xml)


def test_images_have_to_be_there(tmp_path):
    settings = Settings(cache_dir=tmp_path / "cache", run_dir=tmp_path)
    with pytest.raises(UnknownImage, match=f"web needs the image .debian-13. .*{DIGEST}") as raised:
        check_images(FROZEN, settings)
    assert f"(now {tmp_path}/cache); an image that was built anew is another one" in raised.value.resolution
    with pytest.raises(UnknownImage, match="web needs the image that it was made from"):
        check_images(replace(FROZEN, image=""), settings)
    (blob := tmp_path / "cache/images/blobs" / DIGEST).parent.mkdir(parents=True)
    blob.touch()
    check_images(FROZEN, settings)
