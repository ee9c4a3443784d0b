"""A tunnel hides what passes it, survives an address change, and takes no packet twice."""

from __future__ import annotations

from pathlib import Path

import pytest_kvm as kvm

HERE = Path(__file__).parent
THERE_INSIDE = "10.9.0.2"
"""The other end's address in the tunnel; ``there.address(untrusted)`` is the one outside."""
SECRET = b"the plain text"
# WireGuard's packets say what they are in the first byte after the UDP header.
INITIATION = "udp dst port 51820 and udp[8] == 1"
DATA = "udp dst port 51820 and udp[8] == 4"


def ping(peer: kvm.Guest, address: str, *, count: int = 1, patience: int = 60) -> kvm.CommandResult:
    """Send pings that carry the secret, and wait so many seconds for answers."""
    words = ["ping", "-c", str(count), "-i", "0.2", "-W", str(patience), "-p", SECRET.hex(), address]
    return peer.run(words, check=False)


def test_the_segment_sees_no_plain_text(untrusted, here, there):
    with untrusted.capture() as crossed:
        assert ping(here, THERE_INSIDE, count=3).ok
        crossed.wait_for_packet(f"{DATA} and src host {here.address(untrusted)}")
        crossed.wait_for_packet(f"{DATA} and src host {there.address(untrusted)}")
    crossed.assert_no_packet("icmp")
    crossed.assert_no_packet(lambda packet: SECRET in packet.raw)


def test_without_the_tunnel_it_would_be_seen(untrusted, here, there):
    with untrusted.capture() as crossed:
        assert ping(here, there.address(untrusted)).ok
        crossed.wait_for_packet(lambda packet: SECRET in packet.raw)


def test_a_connection_survives_an_address_change(untrusted, here, there):
    there.put(HERE / "echo_server.py", "/root/echo_server.py")
    there.run(["systemd-run", "python3", "/root/echo_server.py", THERE_INSIDE])
    there.wait_for_port(7, host=THERE_INSIDE)
    device, old, new = here.nics[0].device, here.address(untrusted), "198.51.100.200"
    with here.start(["bash", "-c", f"exec 3<>/dev/tcp/{THERE_INSIDE}/7; cat <&3 & cat >&3"]) as connection:
        connection.write("before\n")
        assert next(connection.lines()) == "before"
        here.run(["ip", "address", "del", f"{old}/24", "dev", device])
        here.run(["ip", "address", "add", f"{new}/24", "dev", device])
        with untrusted.capture() as crossed:
            connection.write("after\n")
            assert "after" in connection.lines()
            moved = crossed.wait_for_packet(f"{DATA} and dst host {new}")
            connection.write("later\n")
            assert "later" in connection.lines()
    crossed.assert_no_packet(lambda packet: str(packet.dst) == old and packet.time > moved.time)


def test_without_a_handshake_no_data_passes(untrusted, here):
    with untrusted.drop(INITIATION), untrusted.capture() as crossed:
        assert not ping(here, THERE_INSIDE, patience=2).ok
    assert here.nics[0].counters["out"]["dropped"]["drop"] >= 1, "it tried"
    crossed.assert_no_packet(DATA)
    here.wait_until(["ping", "-c", "1", "-W", "2", THERE_INSIDE])


def test_no_packet_is_taken_twice(untrusted, here, there):
    with untrusted.duplicate(1.0):
        assert "(DUP!)" in ping(here, there.address(untrusted), count=3).stdout
        inside = ping(here, THERE_INSIDE, count=3)
    assert inside.ok
    assert "(DUP!)" not in inside.stdout
