"""The disk boots by itself, through both firmwares, as any cloud image does."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

import pytest_kvm as kvm
from pytest_kvm.images.image_store import ImageStore
from pytest_kvm.images.importing import take
from pytest_kvm.plugin.session import settings_stashed
from pytest_kvm.spec.image import ImageRef
from tests.guest_specs import SMALL


@pytest.fixture(scope="session")
def store(pytestconfig):
    return ImageStore.of(settings_stashed(pytestconfig))


def test_uefi_config_drive_and_an_ordinary_login(kvm_guests):
    guest = kvm_guests.boot(
        replace(
            SMALL,
            firmware="uefi",
            boot="firmware",
            login="admin",
            console="serial",
            cloud_init=kvm.CloudInit(datasource="configdrive", files=[kvm.File("/opt/here", "yes\n")]),
        )
    )
    guest.run(["test", "-d", "/sys/firmware/efi"])
    assert guest.run(["id", "-un"]).stdout == "admin\n"
    assert guest.run(["id", "-un"], user="root").stdout == "root\n"
    assert guest.read_text("/opt/here") == "yes\n"
    result = guest.run(["cat", "/run/cloud-init/result.json"]).stdout
    assert "DataSourceConfigDrive" in result
    variables_go_back(guest)


VARIABLE = "/sys/firmware/efi/efivars/PytestKvm-5e4ad9a6-94fc-4f7f-a4ad-9a5c6d1c0a11"


def variables_go_back(guest):
    """UEFI's variables, in a flash memory that is no qcow2, belong to a savepoint, too."""
    set_variable(guest, "before")
    with guest.savepoint():
        set_variable(guest, "after")
        assert variable(guest) == "after"
    assert variable(guest) == "before"
    guest.shutdown()
    guest.power_on()  # the firmware reads them from the flash itself
    assert variable(guest) == "before"


def set_variable(guest, value):
    """Write attributes (non-volatile, for firmware and system) and value; the kernel protects it at once."""
    script = f"chattr -i {VARIABLE}; printf '\\007\\0\\0\\0{value}' >{VARIABLE}"
    guest.run(script, user="root")


def variable(guest):
    return guest.run(["cat", VARIABLE], user="root").stdout_bytes[4:].decode()


def test_an_imported_disk_boots_by_bios_and_installs_packages(kvm_guests, store):
    """An image from elsewhere has no kernel beside it, and cloud-init installs what the spec wants."""
    built = store.resolve(ImageRef("debian-13"))
    take(store, str(built.disk), name="imported-for-tests")
    try:
        guest = kvm_guests.boot(replace(SMALL, image="imported-for-tests", packages=["hello"], internet=True))
        assert guest.run(["hello", "--greeting=hi"]).stdout == "hi\n"
        assert not guest.run(["test", "-d", "/sys/firmware/efi"], check=False).ok
    finally:
        store.remove("imported-for-tests")


def test_images_are_never_written_to(kvm_guests, store):
    image = store.resolve(ImageRef("debian-13"))
    guest = kvm_guests.boot(SMALL)
    guest.write_text("/root/change", "x" * 100_000)
    guest.run(["sync"])
    guest.power_off()
    assert hashlib.sha256(image.disk.read_bytes()).hexdigest() == image.digest
