"""Checks that the guest's kernel has a driver for each network card, as the guest would not miss the card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvm.errors import NicWithoutDriver

if TYPE_CHECKING:
    from pytest_kvm.machine.machine import Machine

_SCRIPT = """\
find_idle() {
    types=$(grep -l ^0x02 /sys/bus/pci/devices/*/class; grep -lx 0x0001 /sys/bus/virtio/devices/*/device)
    for type in $types; do
        device=${type%/*}
        [ -e "$device/driver" ] || echo $(cat "$device/vendor" "$device/device")
    done 2>/dev/null
}
[ -z "$(find_idle)" ] || { udevadm settle --timeout=30; find_idle; }
"""
"""Prints vendor and device of each network card that has no driver: on the PCI bus class 0x02 is a network
controller, on the virtio bus device 1 is a network card. A driver may still be loading at the first look."""
_MODELS = {"0x8086 0x10d3": "e1000e", "0x10ec 0x8139": "rtl8139"}


def check_drivers(machine: Machine) -> None:
    """Check that the guest uses all of its network cards.

    Raises:
        NicWithoutDriver: Its kernel has no driver for one of them.
    """
    found = machine.shell.run(_SCRIPT, user="root", timeout=machine.timeouts.command, check=False).stdout
    models = sorted({_MODELS.get(line, "virtio") for line in found.splitlines()})
    if models:
        kernel = machine.shell.run(["uname", "-r"]).stdout.strip()
        raise NicWithoutDriver(
            f"{machine.name}: its kernel {kernel} has no driver for network cards of the model {models[0]}",
            details=found,
            resolution='use model="virtio", or an image whose kernel has the driver'
            if models != ["virtio"]
            else "use another model, or a kernel with CONFIG_VIRTIO_NET",
        )
