"""Units and generators that a lean image does not start at boot, and modules that it has uncompressed.

Nothing is removed from the image: a unit that is not wanted at boot can be
started, and a masked unit can be unmasked.
"""

from __future__ import annotations

NOT_WANTED = (
    # mount points that most guests do not use; mount(8) or systemctl start mounts them
    "sysinit.target.wants/dev-hugepages.mount",
    "sysinit.target.wants/dev-mqueue.mount",
    "sysinit.target.wants/sys-fs-fuse-connections.mount",
    "sysinit.target.wants/sys-kernel-config.mount",
    "sysinit.target.wants/sys-kernel-debug.mount",
    "sysinit.target.wants/sys-kernel-tracing.mount",
    "local-fs.target.wants/run-lock.mount",
    # interpreters registered with the kernel: only Python's own byte code
    "sysinit.target.wants/proc-sys-fs-binfmt_misc.automount",
    "sysinit.target.wants/systemd-binfmt.service",
    # what these units update is up to date when the image is made
    "sysinit.target.wants/ldconfig.service",
    "sysinit.target.wants/systemd-hwdb-update.service",
    "sysinit.target.wants/systemd-journal-catalog-update.service",
    "sysinit.target.wants/systemd-sysusers.service",
    "sysinit.target.wants/systemd-update-done.service",
    # for machines that hibernate, have a TPM, ask for passwords
    "sysinit.target.wants/systemd-ask-password-console.path",
    "sysinit.target.wants/systemd-hibernate-clear.service",
    "sysinit.target.wants/systemd-pcrmachine.service",
    "sysinit.target.wants/systemd-tpm2-setup-early.service",
    "sysinit.target.wants/systemd-tpm2-setup.service",
    "multi-user.target.wants/systemd-ask-password-wall.path",
    # a random seed in the image would be the same in every guest
    "sysinit.target.wants/systemd-random-seed.service",
)
"""Wants that are dropped, as ``<target>.wants/<unit>``."""

MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "modprobe@drm.service",
    "systemd-network-generator.service",
    "systemd-networkd-persistent-storage.service",
    "systemd-networkd-wait-online.service",
    "systemd-pstore.service",
    "systemd-remount-fs.service",
    "systemd-udev-load-credentials.service",
)
"""Units that other units or a timer would start."""

MASKED_GENERATORS = (
    "cloud-init-generator",
    "systemd-bless-boot-generator",
    "systemd-cryptsetup-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-integritysetup-generator",
    "systemd-rc-local-generator",
    "systemd-ssh-generator",
    "systemd-system-update-generator",
    "systemd-tpm2-generator",
    "systemd-veritysetup-generator",
)
"""Programs systemd waits for before it starts its first unit (systemd.generator(7))."""

PLAIN_MODULES = (
    "ahci",
    "autofs4",
    "button",
    "cdrom",
    "evdev",
    "failover",
    "isofs",
    "libahci",
    "libata",
    "net_failover",
    "qemu_fw_cfg",
    "scsi_common",
    "scsi_mod",
    "serio_raw",
    "sr_mod",
    "virtio_net",
    "virtio-rng",
    "virtio_scsi",
)
"""Modules that every boot loads, and that the image has uncompressed: unpacking them with xz took
most of the time to load them."""
