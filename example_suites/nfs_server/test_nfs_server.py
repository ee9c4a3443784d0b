"""A client waits for its server, and loses nothing that it has synced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

import pytest_kvm as kvm

DATA = "/srv/data"
MOUNTED = "/mnt"
WRITER = f"""
set -e  # ends at the first error
number=0
while true; do
    number=$((number + 1))
    echo "$number" >>{MOUNTED}/numbers
    sync {MOUNTED}/numbers
    echo "$number"
done
"""


class Writer:
    """Appends one number after another to a file, and notes which are on the server's disk."""

    def __init__(self, process: kvm.Process) -> None:
        self._process = process

    @property
    def written(self) -> list[str]:
        return self._process.so_far().stdout.split()

    def wait_for_more(self) -> None:
        """Wait until two more numbers are written."""
        wanted = len(self.written) + 2
        for number, _ in enumerate(self._process.lines(), start=1):
            if number == wanted:
                return
        pytest.fail(f"the writer has ended: {self._process.so_far().stderr}")


@pytest.fixture
def writer(client) -> Iterator[Writer]:
    with client.start(["sh", "-c", WRITER]) as process:
        yield Writer(process)


def numbers(server: kvm.Guest) -> list[str]:
    return server.read_text(f"{DATA}/numbers").split()


@pytest.mark.parametrize("number", [1, 2])
def test_each_test_finds_the_export_mounted_and_empty(server, client, number):
    assert client.run(["ls", MOUNTED]).stdout == ""
    client.write_text(f"{MOUNTED}/of-test-{number}", "x")
    assert server.run(["ls", DATA]).stdout == f"of-test-{number}\n"


def test_a_crash_of_the_server_only_delays_the_writer(server, writer):
    writer.wait_for_more()
    server.reboot(hard=True)
    before = writer.written
    writer.wait_for_more()
    found = numbers(server)
    assert set(before) <= set(found)
    assert found == [str(number) for number in range(1, len(found) + 1)]


def test_a_server_that_stays_away_is_waited_for(server, writer):
    writer.wait_for_more()
    server.power_off()
    before = writer.written
    server.power_on()
    writer.wait_for_more()
    assert set(before) <= set(numbers(server))


def test_a_cut_cable_only_delays_the_writer(lan, server, client, writer):
    writer.wait_for_more()
    with lan.isolate(server), lan.capture(link=client) as at_client:
        at_client.wait_for_packet(sent_to_server(times=2))
        held_up = writer.written
        at_client.wait_for_packet(sent_to_server(times=3))
        assert writer.written == held_up
    writer.wait_for_more()
    assert set(held_up) <= set(numbers(server))


def sent_to_server(*, times: int) -> Callable[[kvm.Packet], bool]:
    """Return a condition: the client has sent the same data to the NFS server so many times."""
    sent = Counter[bytes]()

    def condition(packet: kvm.Packet) -> bool:
        if packet.dport != 2049 or not packet.payload:
            return False
        sent[packet.payload] += 1
        return sent[packet.payload] == times

    return condition


def test_a_soft_mount_gives_up(lan, server, client):
    client.run(["umount", MOUNTED])
    client.run(["mount", "-t", "nfs4", "-o", "soft,timeo=10,retrans=1", f"server:{DATA}", MOUNTED])
    with lan.isolate(server):
        refused = client.run(f"echo x >{MOUNTED}/refused", check=False)
    assert not refused.ok
    assert "Input/output error" in refused.stderr or "timed out" in refused.stderr
