"""What a spec says is what the guest finds: one guest with a bit of everything."""

from __future__ import annotations

import hashlib
import xml.etree.ElementTree as ET

import pytest

import pytest_kvm as kvm

MAC = "52:54:00:11:22:33"


def _with_watchdog(domain: ET.Element) -> ET.Element:
    ET.SubElement(domain.findall("devices")[0], "watchdog", model="i6300esb", action="reset")
    return domain


@pytest.fixture(scope="module")
def payload(tmp_path_factory):
    """A raw disk file of the user's."""
    path = tmp_path_factory.mktemp("payload") / "payload.raw"
    path.write_bytes(b"from the host".ljust(1024 * 1024, b"\0"))
    return path


@kvm.guest(scope="module")
def rich(payload):
    return kvm.GuestSpec(
        memory="768MiB",
        hostname="rich.example.org",
        timezone="Asia/Tokyo",
        root_size="9GiB",
        console="virtio",
        disks=[
            kvm.Disk(size="64MiB", serial="blank"),
            kvm.Disk(size="32MiB", bus="scsi", format="raw", serial="scsi"),
            kvm.Disk(file=payload, serial="payload"),
            kvm.Disk(file=payload, bus="usb", readonly=True),
        ],
        nics=[kvm.Nic(mac=MAC), kvm.Nic(link="down")],
        units=["marker.service"],
        xml=_with_watchdog,
        cmdline_extra="kvm.test=1",
        cloud_init=kvm.CloudInit(
            users=[kvm.User("alice", groups=["adm"]), kvm.User("bob", sudo=False)],
            files=[
                kvm.File("/etc/systemd/system/marker.service", "[Service]\nExecStart=sleep infinity\n"),
                kvm.File("/opt/binary", bytes(range(256)), mode=0o640, owner="alice:adm"),
            ],
            run_commands=["systemctl start --no-block marker", ["touch", "/root/a b;c"]],
            user_data={"bootcmd": ["touch /run/bootcmd"]},
            vendor_data={"runcmd": ["touch /run/vendor"]},
        ),
    )


def test_identity_and_time_zone(rich):
    assert rich.run(["hostname", "--fqdn"]).stdout.strip() == "rich.example.org"
    assert rich.run(["date", "+%Z"]).stdout == "JST\n"
    assert "kvm.test=1" in rich.read_text("/proc/cmdline").split()


def test_memory_processors_and_root_size(rich):
    assert int(rich.run(["nproc"]).stdout) == 2
    total_kib = int(rich.run("awk '/^MemTotal/ {print $2}' /proc/meminfo").stdout)
    assert 600 * 1024 < total_kib < 768 * 1024
    size_kib = int(rich.run("df --output=size / | tail -n 1").stdout)
    assert size_kib > 8 * 1024**2


def test_a_virtio_console(rich):
    assert "console=hvc0" in rich.read_text("/proc/cmdline")
    rich.run("echo over virtio > /dev/console")
    rich.wait_for_console("over virtio", since=0)


def test_users_and_their_rights(rich):
    assert rich.run(["id", "-nG"], user="alice").stdout.split() == ["alice", "adm"]
    assert rich.run(["sudo", "-n", "id", "-un"], user="alice").stdout == "root\n"
    assert not rich.run(["sudo", "-n", "true"], user="bob", check=False).ok


def test_files_commands_and_merged_data(rich):
    assert rich.read_bytes("/opt/binary") == bytes(range(256))
    assert rich.run(["stat", "-c", "%a %U:%G", "/opt/binary"]).stdout == "640 alice:adm\n"
    rich.run(["test", "-e", "/root/a b;c"])
    rich.run(["test", "-e", "/run/bootcmd"])


def test_wanted_units_are_active(rich):
    assert rich.run(["systemctl", "is-active", "marker.service"]).stdout == "active\n"


def test_disks_by_serial(rich):
    for serial, size in (("blank", 64 << 20), ("payload", 1 << 20)):
        path = f"/dev/disk/by-id/virtio-{serial}"
        assert int(rich.run(["blockdev", "--getsize64", path]).stdout) == size
    assert "32M" in rich.run("lsblk --noheadings --output SIZE,TRAN,SERIAL | grep -w scsi").stdout


def test_a_users_file_is_read_and_never_written(rich, payload):
    before = hashlib.sha256(payload.read_bytes()).hexdigest()
    disk = "/dev/disk/by-id/virtio-payload"
    assert rich.run(["head", "-c", "13", disk]).stdout == "from the host"
    rich.run(f"echo changed | dd of={disk} conv=fsync")
    assert rich.run(["head", "-c", "7", disk]).stdout == "changed"
    assert hashlib.sha256(payload.read_bytes()).hexdigest() == before


def test_nics(rich):
    addresses = rich.run(["cat", *(f"/sys/class/net/{name}/address" for name in _names(rich))]).stdout
    assert MAC in addresses
    carrier = {
        name: rich.run(["cat", f"/sys/class/net/{name}/operstate"]).stdout.strip() for name in _names(rich)
    }
    assert sorted(carrier.values()) == ["down", "up", "up"]


def _names(guest):
    return [name for name in guest.run(["ls", "/sys/class/net"]).stdout.split() if name != "lo"]


def test_no_way_out_unless_asked(rich):
    """Neither the outside nor the host's own loopback is there (slirp's restrict=on)."""
    assert not rich.run("ip route | grep default", check=False).ok
    rich.run(["ip", "route", "add", "default", "via", "10.0.2.2"])
    try:
        probe = "timeout 5 bash -c 'exec 3<>/dev/tcp/10.0.2.2/22'"
        assert not rich.run(probe, check=False).ok
    finally:
        rich.run(["ip", "route", "del", "default"])


def test_the_xml_hook_had_its_way(rich):
    assert ET.fromstring(rich.domain_xml).find("devices/watchdog") is not None


def test_random_numbers_come_from_virtio(rich):
    current = rich.read_text("/sys/class/misc/hw_random/rng_current")
    assert current.startswith("virtio_rng")


def test_the_seed_has_the_only_host_key(rich):
    keys = rich.run("ls /etc/ssh/ssh_host_*_key").stdout.split()
    assert keys == ["/etc/ssh/ssh_host_ed25519_key"]


def test_cloud_init_had_nothing_to_complain_about(rich):
    result = rich.run("cloud-init schema --system", check=False)
    assert result.ok, result.stdout
