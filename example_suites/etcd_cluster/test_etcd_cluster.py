"""What the cluster has acknowledged is never lost, whoever leads and whichever cables are cut."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

import pytest_kvm as kvm

IMPATIENT = ["etcdctl", "--command-timeout=10s"]
WRITER = """
number=0
while true; do
    number=$((number + 1))
    etcdctl --command-timeout=10s put "$0/$number" x >/dev/null && echo "$0/$number"
done
"""


class Writer:
    """Writes one key after another at a node, and notes which were acknowledged."""

    def __init__(self, process: kvm.Process) -> None:
        self._process = process

    @property
    def acknowledged(self) -> set[str]:
        return set(self._process.so_far().stdout.split())

    def wait_for_more(self) -> None:
        """Wait until two more acknowledgements have come."""
        wanted = len(self.acknowledged) + 2
        for number, _ in enumerate(self._process.lines(), start=1):
            if number == wanted:
                return
        pytest.fail("the writer has ended")


class Writers:
    """A writer at each node."""

    def __init__(self, writers: dict[kvm.Guest, Writer]) -> None:
        self._writers = writers

    def __getitem__(self, node: kvm.Guest) -> Writer:
        return self._writers[node]

    @property
    def acknowledged(self) -> set[str]:
        return set[str]().union(*(writer.acknowledged for writer in self._writers.values()))

    def wait_for_more(self, *nodes: kvm.Guest) -> None:
        """Wait until more is acknowledged at some nodes; none are named: at each."""
        for node in nodes or self._writers:
            self._writers[node].wait_for_more()


@pytest.fixture
def writers(cluster) -> Iterator[Writers]:
    with ExitStack() as processes:
        yield Writers(
            {
                node: Writer(processes.enter_context(node.start(["sh", "-c", WRITER, node.name])))
                for node in cluster.nodes
            }
        )


@pytest.mark.parametrize("number", [1, 2])
def test_each_test_finds_the_cluster_as_it_was_formed(cluster, number):
    for node in cluster.nodes:
        assert cluster.keys(node) == {"formed"}
    cluster.put(cluster.nodes[number], f"by test {number}")


def test_behind_a_partition_the_leader_acknowledges_nothing(lan, cluster, writers):
    writers.wait_for_more()
    leader = cluster.leader()
    majority = cluster.others(leader)
    with lan.isolate(leader):
        refused = leader.run([*IMPATIENT, "put", "refused", "x"], check=False)
        assert not refused.ok
        assert re.search("context deadline exceeded|request timed out", refused.stderr)
        before = writers[leader].acknowledged
        assert cluster.leader(of=majority) in majority
        writers.wait_for_more(*majority)
        assert writers[leader].acknowledged == before
    writers.wait_for_more()
    acknowledged = writers.acknowledged
    for node in cluster.nodes:
        keys = cluster.keys(node)
        assert acknowledged <= keys
        assert "refused" not in keys


def test_a_leader_that_is_switched_off_has_a_successor(cluster, writers):
    writers.wait_for_more()
    leader = cluster.leader()
    others = cluster.others(leader)
    leader.power_off()
    assert cluster.leader(of=others) in others
    writers.wait_for_more(*others)
    acknowledged = writers.acknowledged
    for node in others:
        assert acknowledged <= cluster.keys(node)


def test_a_bad_line_loses_nothing(lan, cluster, writers):
    def lost() -> int:
        return sum(nic.counters["out"]["dropped"].get("loss", 0) for nic in lan.nics)

    before = lost()
    lan.delay(0.1, jitter=0.05)
    lan.loss(0.05)
    for _ in range(100):
        writers.wait_for_more()
        if lost() >= before + 10:
            break
    else:
        pytest.fail("the line has lost next to nothing")
    writers.wait_for_more()
    acknowledged = writers.acknowledged
    assert acknowledged <= cluster.keys(cluster.nodes[0])
