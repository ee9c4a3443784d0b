"""What the tests of the boot cache's key start from."""

from __future__ import annotations

from pathlib import Path

import pytest_kvm as kvm
from pytest_kvm.images.image import Image, ImageManifest
from pytest_kvm.provision.cache_key import MachineFacts, fingerprint
from pytest_kvm.provision.machine_plan import direct_boot
from pytest_kvm.render.domain_draft import draft_domain


def image(
    *,
    name: str = "debian-13",
    disk: str = "d" * 64,
    kernel: str = "e" * 64,
    initrd: str = "f" * 64,
    cmdline: str = "root=LABEL=root ro",
) -> Image:
    """Return an image that is in no store: only its digests are looked at."""
    manifest = ImageManifest(
        name=name,
        disk=disk,
        kernel=kernel,
        initrd=initrd,
        cmdline=cmdline,
        virtual_size=4 << 30,
        created="2026-01-01T00:00:00+00:00",
    )
    blobs = Path("/cache/images/blobs")
    return Image(
        name=name,
        digest=disk,
        disk=blobs / disk,
        virtual_size=manifest.virtual_size,
        kernel=blobs / kernel,
        initrd=blobs / initrd,
        cmdline=cmdline,
        built_from_packages=True,
        packages=(),
        manifest=manifest,
    )


MACHINE = MachineFacts(
    accel="tcg",
    emulator="/usr/bin/qemu-system-x86_64 15822520 1700000000000000000",
    qemu_version="7.2.22",
    libvirt_version="9.0.0",
    firmware=("/usr/share/seabios/bios-256k.bin 262144 1700000000000000000",),
    processor="",
    kernel="",
)

RICH = kvm.GuestSpec(
    hostname="rich",
    packages=["nginx", "curl"],
    disks=[kvm.Disk(size="1GiB", serial="data"), kvm.Disk(size="1GiB", bus="scsi")],
    nics=[kvm.Nic(), kvm.Nic(link="down", mac="52:54:00:00:00:77")],
    units=["nginx.service"],
    prepare=["a | b", ["c", "d e"], kvm.Script("true"), kvm.HostFile(__file__, "/opt/")],
    cloud_init=kvm.CloudInit(
        users=[kvm.User("alice", groups=["adm", "sudo"])],
        files=[kvm.File("/etc/a", "b"), kvm.File("/etc/c", b"\xff")],
        user_data={"swap": {"size": 0}, "ntp": {"enabled": False}},
        network_config={"ethernets": {"kvm-nic1": {"mtu": 1400}}},
    ),
)


def key(
    spec: kvm.GuestSpec,
    *,
    of: Image | None = None,
    machine: MachineFacts = MACHINE,
    tied_macs: dict[int, str] | None = None,
) -> str:
    """Return a spec's key."""
    of = of or image()
    domain = draft_domain(spec, accel=machine.accel, direct_boot=direct_boot(spec, of, accel=machine.accel))
    return fingerprint(domain, image=of, machine=machine, tied_macs=tied_macs or {})


if __name__ == "__main__":
    print(key(RICH))  # noqa: T201 - for a process with another hash seed
