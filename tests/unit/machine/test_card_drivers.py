"""Network cards that the guest's kernel has no driver for."""

from __future__ import annotations

import subprocess

import pytest

from pytest_kvm.errors import NicWithoutDriver
from pytest_kvm.machine import card_drivers
from pytest_kvm.machine.card_drivers import check_drivers
from tests.fakes import output


def _device(path, **files):
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(f"{text}\n")
    return path


@pytest.fixture
def sysfs(tmp_path):
    pci, virtio = tmp_path / "bus/pci/devices", tmp_path / "bus/virtio/devices"
    disk = _device(pci / "0000:00:02.0", **{"class": "0x010000", "vendor": "0x1af4", "device": "0x1042"})
    used = _device(pci / "0000:00:03.0", **{"class": "0x020000", "vendor": "0x1af4", "device": "0x1041"})
    (used / "driver").mkdir()
    (_device(virtio / "virtio0", vendor="0x1af4", device="0x0001") / "driver").mkdir()
    _device(virtio / "virtio1", vendor="0x1af4", device="0x0002")
    assert disk.is_dir()
    return tmp_path


def _look(sysfs):
    script = card_drivers._SCRIPT.replace("/sys/", f"{sysfs}/").replace("udevadm settle", ": settle")
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout


def test_cards_with_a_driver_and_other_devices_are_no_matter(sysfs):
    assert not _look(sysfs)


def test_each_card_without_a_driver_is_found(sysfs):
    _device(
        sysfs / "bus/pci/devices/0000:01:00.0",
        **{"class": "0x020000", "vendor": "0x8086", "device": "0x10d3"},
    )
    _device(sysfs / "bus/virtio/devices/virtio2", vendor="0x1af4", device="0x0001")
    assert _look(sysfs) == "0x8086 0x10d3\n0x1af4 0x0001\n"


@pytest.mark.parametrize(
    ("found", "model", "advice"),
    [("0x8086 0x10d3", "e1000e", 'model="virtio"'), ("0x1af4 0x0001", "virtio", "CONFIG_VIRTIO_NET")],
)
def test_what_is_missing_is_told(machine, shell, found, model, advice):
    shell.expect("/sys/bus", output(f"{found}\n"))
    shell.expect("uname", output("6.12.1\n"))
    with pytest.raises(
        NicWithoutDriver, match=f"its kernel 6.12.1 has no driver .* of the model {model}"
    ) as failed:
        check_drivers(machine)
    assert advice in (failed.value.resolution or "")


def test_a_guest_that_uses_all_of_its_cards(machine, shell):
    shell.expect("/sys/bus", output(""))
    check_drivers(machine)
    assert len(shell.ran) == 1
