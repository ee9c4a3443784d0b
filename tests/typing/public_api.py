"""What type checkers must see of the public names: checked by mypy and basedpyright, never run.

A test module without a word of ``Any``: an argument that is passed here and a
type that is asserted here are promises to users.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import assert_type

import pytest

import pytest_kvm as kvm


@kvm.guest
def plain() -> kvm.GuestSpec:
    """Declare without parentheses."""
    return kvm.GuestSpec()


@kvm.guest(scope="module", params=["debian-12", "debian-13"], ids=str, name="renamed", autouse=False)
def configured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> kvm.GuestSpec:
    """Declare with everything the decorator takes."""
    kernel = tmp_path_factory.mktemp("kernel") / "vmlinuz"
    return kvm.GuestSpec(
        kvm.ImageRef(str(request.param)),
        memory="512MiB",
        vcpus=1,
        cpu="max",
        disks=[kvm.Disk(size="1GiB", bus="scsi", serial="data")],
        nics=[kvm.Nic()],
        packages=["nginx"],
        units=["nginx.service"],
        prepare=[
            "systemctl stop nginx",
            ["mkdir", "/srv/data"],
            kvm.Script("#!/usr/bin/python3\nprint()\n"),
            kvm.Script(file=kernel, interpreter="/bin/bash"),
            kvm.HostFile(kernel, "/srv/data/", mode=0o600, owner="www-data"),
        ],
        identity="shared",
        reset="never",
        cloud_init=kvm.CloudInit(
            users=[kvm.User("alice")],
            files=[kvm.File("/etc/motd", "hello\n")],
            run_commands=["true", ["touch", "/root/there"]],
        ),
        kernel=kernel,
        firmware="bios",
        boot_timeout=60.0,
    )


def runs_commands(plain: kvm.Guest) -> None:
    """Check what commands take and return."""
    result = plain.run(["cat"], input="text", env={"A": "b"}, cwd="/", user="alice", timeout=5, check=False)
    assert_type(result, kvm.CommandResult)
    assert_type(result.stdout, str)
    assert_type(result.stderr_bytes, bytes)
    assert_type(result.exit_code, int)
    assert_type(plain.run("true").check(), kvm.CommandResult)
    with plain.start(["sleep", "1"]) as process:
        assert_type(process, kvm.Process)
        assert_type(process.wait(timeout=5), kvm.CommandResult)


def moves_files(plain: kvm.Guest, tmp_path: Path) -> None:
    """Check files in and out."""
    plain.put(tmp_path, "/root/tree")
    plain.get("/root/tree", tmp_path)
    plain.write_text("/root/file", "text", mode=0o600)
    assert_type(plain.read_text("/root/file"), str)
    assert_type(plain.read_bytes("/root/file"), bytes)


def waits(plain: kvm.Guest) -> None:
    """Check that waits return what was found."""
    plain.wait_for_unit("ssh.service", timeout=5)
    plain.wait_for_port(22)
    plain.wait_for_file("/root", timeout=5)
    assert_type(plain.wait_until("true"), kvm.CommandResult)
    assert_type(plain.wait_for_console(r"login: $"), re.Match[str])


def looks_inside(plain: kvm.Guest) -> None:
    """Check facts and views."""
    assert_type(plain.screenshot(), bytes)
    assert_type(plain.dmesg(), str)
    assert_type(plain.journal("ssh.service"), str)
    assert_type(plain.hostname, str)
    assert_type(plain.ssh_command, str)
    with plain.forward(80) as forward:
        assert_type(forward.host, str)
        assert_type(forward.port, int)


def changes_power(plain: kvm.Guest) -> None:
    """Check that power verbs return when the change is done."""
    plain.reboot(hard=True, timeout=60)
    plain.pause()
    plain.resume()
    plain.shutdown()
    plain.power_off()


def goes_back(plain: kvm.Guest) -> None:
    """Check savepoints as a value and as a block."""
    point = plain.savepoint("before")
    assert_type(point, kvm.Savepoint)
    point.restore()
    point.drop()
    with plain.savepoint() as block:
        assert_type(block, kvm.Savepoint)


def makes_a_network_fail(lan: kvm.Segment, one: kvm.Guest, other: kvm.Guest) -> None:
    """Check that each verb takes guests and cards, and that a fault is a block."""
    with lan.partition(one, [other]) as cut:
        assert_type(cut, kvm.Fault)
    lan.partition({one}, {other.nics[0]}).undo()
    lan.isolate(one, other.nics[0])
    lan.heal()
    lan.unplug(one)
    lan.plug(one)
    lan.delay(0.1, jitter=0.02, link=one, direction="in")
    lan.rate("10Mbit", queue="64KiB", link=one.nics[0], direction="out")
    lan.rate(1e6)
    lan.drop(lambda packet: packet.dport == 80 and "SYN" in packet.tcp_flags)
    lan.drop("tcp and dst port 5432", link=one, direction="out")
    assert_type(lan.faults, tuple[kvm.Fault, ...])


def watches_over(one: kvm.Guest) -> None:
    """Check polling as a block."""
    with kvm.polling(lambda: one.run("true").ok, every=0.2, name="up") as watch:
        assert_type(watch, kvm.polling)
    assert_type(watch.looks, int)


def looks_at_frames(lan: kvm.Segment, one: kvm.Guest) -> None:
    """Check captures as a value, as a block and as packets."""
    with lan.capture(link=one, limit="1MiB") as crossed, one.nics[0].capture() as passed:
        assert_type(passed, kvm.Capture)
        assert_type(crossed.wait_for_packet(lambda packet: packet.link == "one", timeout=5), kvm.Packet)
        assert_type(crossed.wait_for_packet("tcp"), kvm.Packet)
        crossed.assert_no_packet("vrrp")
        crossed.assert_no_packet(lambda packet: "RST" in packet.tcp_flags, during=0.5)
    assert_type([packet.time for packet in crossed], list[float])
    assert_type(lan.capture().path, Path)


def starts_on_the_fly(kvm_guests: kvm.Guests) -> None:
    """Check the factory."""
    spec = kvm.GuestSpec("debian-13")
    assert_type(kvm_guests.boot(spec), kvm.Guest)
    assert_type(kvm_guests.boot_all(spec, spec, names=["a", "b"]), list[kvm.Guest])


def names_failures(plain: kvm.Guest) -> None:
    """Check that a caught error still holds its facts."""
    try:
        plain.run("false")
    except kvm.CommandTimeout as error:
        assert_type(error.result.stdout, str)
    except kvm.CommandFailed as error:
        assert_type(error.result.exit_code, int)
    except kvm.KvmError as error:
        assert_type(error.brief, str)
