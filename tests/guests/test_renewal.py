from __future__ import annotations

import re
import time
from dataclasses import replace
from uuid import uuid4

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import LoginRefused
from pytest_kvm.host.ssh_keys import new_key_pair
from pytest_kvm.machine.renewal import Renewal, prestart, renew
from pytest_kvm.ssh.shell import Shell
from tests.guest_clock import clock_error
from tests.guest_specs import FULL, SMALL


@kvm.guest(scope="module")
def own():
    """A guest that may be changed beyond repair."""
    return FULL


def put_clock(guest, words: str) -> None:
    guest.agent.exec(["date", "-s", words])


@pytest.mark.parametrize("words", ["-10 minutes", "+1 day"])
def test_the_clock_is_the_hosts_afterwards(own, words):
    put_clock(own, words)
    assert clock_error(own)[0] > 500
    renew(own.machine)
    error, uncertain = clock_error(own)
    assert error + uncertain <= 0.1


def test_a_prestarted_program_renews_once_and_is_gone(own):
    prestarted = prestart(own.machine)
    assert prestarted is not None
    assert own.agent.exec(["cat", f"/proc/{prestarted.pid}/comm"]).stdout == "python3\n"
    put_clock(own, "-3 minutes")
    renew(own.machine, Renewal(hostname="prestarted"), prestarted=prestarted)
    assert clock_error(own)[0] <= 0.1
    assert own.run("hostname").stdout == "prestarted\n"
    own.wait_until(f"! test -e /proc/{prestarted.pid}", timeout=60)
    assert own.run("ls /run").stdout.count("pytest-kvm-renewal") == 0


def test_a_prestarted_program_that_was_killed_is_replaced(own):
    prestarted = prestart(own.machine)
    own.agent.exec(["sh", "-c", f"kill -9 {prestarted.pid}"])
    renew(own.machine, Renewal(hostname="replaced"), prestarted=prestarted)
    assert own.run("hostname").stdout == "replaced\n"


def test_what_identifies_a_machine_is_renewed(own):
    identifier = uuid4().hex
    renew(own.machine, Renewal(hostname="fresh", machine_id=identifier))
    assert own.read_text("/etc/machine-id") == identifier + "\n"
    assert own.read_text("/etc/hostname") == "fresh\n"
    assert own.run("hostname; getent hosts fresh").stdout.split() == ["fresh", "127.0.1.1", "fresh", "fresh"]


def test_a_card_changes_its_address_and_keeps_its_settings(own):
    old = own.run("cat /sys/class/net/*/address | sort").stdout.split()
    control = re.findall(r"52:54:00(?::[0-9a-f]{2}){3}", own.machine.domain.xml())[0]
    (mac,) = set(old) - {"00:00:00:00:00:00", control}
    new = "52:54:00:12:34:56"
    renew(own.machine, Renewal(macs=[(mac, new)]))
    assert new in own.run("cat /sys/class/net/*/address").stdout.split()
    assert own.run(f"grep -ril {new} /etc/systemd/network /run/systemd/network", check=False).stdout
    assert not own.run(f"grep -ril {mac} /etc/systemd/network /run/systemd/network", check=False).stdout


def logged_in_with(machine, host_key: str) -> str:
    shell = Shell(
        replace(machine.access, host_key=host_key),
        log=machine.log,
        timeouts=machine.timeouts,
        is_alive=machine.domain.alive,
        end_reason=machine.domain.end_reason,
    )
    try:
        return shell.run("cat /etc/ssh/ssh_host_ed25519_key.pub").stdout.strip()
    finally:
        shell.close()


def test_a_new_host_key_is_the_one_of_the_next_login(own):
    machine = own.machine
    key = new_key_pair()
    renew(machine, Renewal(host_key=key))
    assert logged_in_with(machine, key.public) == key.public
    with pytest.raises(LoginRefused, match="foreign host key"):
        logged_in_with(machine, machine.access.host_key)


def test_without_an_agent_the_same_is_done_over_ssh(boot):
    guest = boot(SMALL)
    put_clock(guest, "-10 minutes")
    guest.run("systemctl stop qemu-guest-agent")
    assert prestart(guest.machine) is None
    renew(guest.machine, Renewal(hostname="by-ssh"))
    before = time.time()
    told = float(guest.run("date +%s.%N").stdout)
    assert before - 0.1 <= told <= time.time() + 0.1
    assert guest.run("hostname").stdout == "by-ssh\n"
