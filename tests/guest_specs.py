"""Guests that several modules start: each spec is one cold boot for the whole run.

Suites of their own say the same as :data:`SMALL` in their own words, and so
find its template: ``kvm.GuestSpec(memory="512MiB", vcpus=1)``. One processor is
what two guests that boot at a time have each, where there are two.
"""

from __future__ import annotations

import pytest_kvm as kvm

SMALL = kvm.GuestSpec(memory="512MiB", vcpus=1)

SECOND_DISK = "/dev/disk/by-id/virtio-second"

FULL = kvm.GuestSpec(
    memory="512MiB",
    vcpus=2,
    disks=[kvm.Disk(size="64MiB", serial="second")],
    nics=[kvm.Nic()],
    # The template is ten minutes old from the start.
    prepare=["date -s '-10 minutes'", "echo prepared >/dev/shm/prepared"],
)
"""Has all that a savepoint saves and that a renewal renews; of processors more than one."""
