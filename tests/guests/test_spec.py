"""What a spec says is what the guest finds: one guest with a bit of everything.

It is the documentation's, whose examples look at other parts of it.
"""

from __future__ import annotations

import hashlib

from docs.conftest import DATA, server

__all__ = ["server"]


def test_identity_and_time_zone(server):
    assert server.run(["hostname", "--fqdn"]).stdout.strip() == "server.example.org"
    assert server.run(["readlink", "/etc/localtime"]).stdout.endswith("Europe/Berlin\n")
    assert "app.mode=test" in server.read_text("/proc/cmdline").split()


def test_memory_processors_and_root_size(server):
    assert int(server.run(["nproc"]).stdout) == 2
    total_kib = int(server.run("awk '/^MemTotal/ {print $2}' /proc/meminfo").stdout)
    assert 600 * 1024 < total_kib < 768 * 1024
    size_kib = int(server.run("df --output=size / | tail -n 1").stdout)
    assert size_kib > 8 * 1024**2


def test_a_virtio_console(server):
    assert "console=hvc0" in server.read_text("/proc/cmdline")
    server.run("echo over virtio > /dev/console")
    server.wait_for_console("over virtio", since=0)


def test_users_and_their_rights(server):
    assert server.run(["id", "-nG"], user="alice").stdout.split() == ["alice", "systemd-journal"]
    assert server.run(["sudo", "-n", "id", "-un"], user="alice").stdout == "root\n"
    assert not server.run(["sudo", "-n", "true"], user="bob", check=False).ok


def test_files_commands_and_merged_data(server):
    assert server.read_bytes("/etc/app/key") == bytes(range(256))
    assert server.run(["stat", "-c", "%a %U:%G", "/etc/app/app.conf"]).stdout == "640 alice:alice\n"
    server.run(["ls", "/var/tmp/a file; not two", "/run/early"])
    assert "the server is made" in server.read_text("/var/log/cloud-init-output.log")


def test_wanted_units_are_active(server):
    assert server.run(["systemctl", "is-active", "app.service"]).stdout == "active\n"


def test_disks_by_serial(server):
    for serial, size in (("scratch", 1 << 30), ("data", 1 << 10)):
        path = f"/dev/disk/by-id/virtio-{serial}"
        assert int(server.run(["blockdev", "--getsize64", path]).stdout) == size
    listed = server.run("lsblk --nodeps --noheadings --output SIZE,TRAN,SERIAL").stdout
    assert ["64M", "small"] in [line.split() for line in listed.splitlines()], listed


def test_a_users_file_is_read_and_never_written(server):
    before = hashlib.sha256(DATA.read_bytes()).hexdigest()
    disk = "/dev/disk/by-id/virtio-data"
    assert server.run(["head", "-c", "13", disk]).stdout == "from the host"
    server.run(f"echo changed | dd of={disk} conv=fsync")
    assert server.run(["head", "-c", "7", disk]).stdout == "changed"
    assert hashlib.sha256(DATA.read_bytes()).hexdigest() == before


def test_nics(server):
    addresses = server.run(["cat", *(f"/sys/class/net/{name}/address" for name in _names(server))]).stdout
    assert "52:54:00:00:00:77" in addresses
    carrier = {
        name: server.run(["cat", f"/sys/class/net/{name}/operstate"]).stdout.strip()
        for name in _names(server)
    }
    assert sorted(carrier.values()) == ["down", "up", "up"]


def _names(guest):
    return [name for name in guest.run(["ls", "/sys/class/net"]).stdout.split() if name != "lo"]


def test_no_way_out_unless_asked(server):
    """Neither the outside nor the host's own loopback is there (slirp's restrict=on)."""
    assert not server.run("ip route | grep default", check=False).ok
    server.run(["ip", "route", "add", "default", "via", "10.0.2.2"])
    try:
        probe = "timeout 5 bash -c 'exec 3<>/dev/tcp/10.0.2.2/22'"
        assert not server.run(probe, check=False).ok
    finally:
        server.run(["ip", "route", "del", "default"])


def test_random_numbers_come_from_virtio(server):
    current = server.read_text("/sys/class/misc/hw_random/rng_current")
    assert current.startswith("virtio_rng")


def test_the_seed_has_the_only_host_key(server):
    keys = server.run("ls /etc/ssh/ssh_host_*_key").stdout.split()
    assert keys == ["/etc/ssh/ssh_host_ed25519_key"]


def test_cloud_init_had_nothing_to_complain_about(server):
    result = server.run("cloud-init schema --system", check=False)
    assert result.ok, result.stdout
