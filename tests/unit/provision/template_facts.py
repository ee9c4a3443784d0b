"""Facts of a template, for tests that have none."""

from __future__ import annotations

from pytest_kvm.provision.template_build import TemplateFacts

FACTS = TemplateFacts(
    tier="cow",
    control_mac="52:54:00:00:00:01",
    macs=("52:54:00:00:00:02",),
    hostname="guest",
    host_key="ssh-ed25519 AAAA",
    disks=(("root.qcow2", "qcow2"),),
    prestarted=(),
    boot_seconds=40.0,
    network_service=None,
)
