"""A cluster of three etcd nodes, formed once for all tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

import pytest_kvm as kvm

ETCDCTL = ["etcdctl", "--command-timeout=60s"]
CONFIG = """\
ETCD_NAME={name}
ETCD_INITIAL_CLUSTER={members}
ETCD_LISTEN_PEER_URLS=http://{address}:2380
ETCD_INITIAL_ADVERTISE_PEER_URLS=http://{address}:2380
ETCD_LISTEN_CLIENT_URLS=http://{address}:2379,http://127.0.0.1:2379
ETCD_ADVERTISE_CLIENT_URLS=http://{address}:2379
# Without KVM processors are slow, and a slow node must not be taken for a dead one.
ETCD_HEARTBEAT_INTERVAL=500
ETCD_ELECTION_TIMEOUT=5000
"""


@kvm.network(scope="module")
def lan():
    return kvm.NetworkSpec(subnet="10.5.0.0/24", subnet6=None)


def node(lan):
    return kvm.GuestSpec(
        memory="512MiB",
        vcpus=1,
        packages=["etcd-server", "etcd-client"],
        nics=[kvm.Nic(lan)],
        # Debian starts a cluster of one.
        prepare=["systemctl disable --now etcd.service", "rm -rf /var/lib/etcd/default"],
    )


@kvm.guest(scope="module")
def one(lan):
    return node(lan)


@kvm.guest(scope="module")
def two(lan):
    return node(lan)


@kvm.guest(scope="module")
def three(lan):
    return node(lan)


class Cluster:
    """The nodes of a cluster, and etcdctl in them."""

    def __init__(self, *nodes: kvm.Guest) -> None:
        self.nodes = nodes

    def others(self, node: kvm.Guest) -> list[kvm.Guest]:
        """Return all nodes but one."""
        return [each for each in self.nodes if each is not node]

    def leader(self, of: Sequence[kvm.Guest] = ()) -> kvm.Guest:
        """Return the node that all nodes take for the leader; wait until they agree.

        Args:
            of: The nodes that are asked; none: all of them.
        """
        asked = tuple(of) or self.nodes
        for _ in range(20):
            # Succeeds only if a majority has agreed on something, so that there is a leader.
            asked[0].wait_until([*ETCDCTL, "endpoint", "health"])
            answers = {node: self._status(node) for node in asked}
            # A node that knows no leader says nothing of one.
            leaders = {answer.get("leader") for answer in answers.values()}
            for node, answer in answers.items():
                if leaders == {answer["header"]["member_id"]}:
                    return node
        pytest.fail("the nodes do not agree on a leader")

    def put(self, node: kvm.Guest, key: str) -> None:
        """Write a key at a node."""
        node.run([*ETCDCTL, "put", key, "x"])

    def keys(self, node: kvm.Guest) -> set[str]:
        """Return all keys, as a node reads them: the leader has to confirm it."""
        return set(node.run([*ETCDCTL, "get", "", "--prefix", "--keys-only"]).stdout.split())

    def _status(self, node: kvm.Guest) -> dict[str, Any]:
        [answer] = json.loads(node.run([*ETCDCTL, "endpoint", "status", "--write-out=json"]).stdout)
        status: dict[str, Any] = answer["Status"]
        return status


@kvm.lab_template
def formed(lan, one, two, three):
    """Three nodes that know each other, with a leader.

    Between tests all three are put back to one moment. So each test finds this
    very cluster, and none waits until it is formed, also in later runs.
    """
    cluster = Cluster(one, two, three)
    members = ",".join(f"{each.name}=http://{each.address(lan)}:2380" for each in cluster.nodes)
    for node in cluster.nodes:
        config = CONFIG.format(name=node.name, members=members, address=node.address(lan))
        node.write_text("/etc/default/etcd", config)
        node.run(["systemctl", "start", "--no-block", "etcd.service"])
    for node in cluster.nodes:
        node.wait_for_unit("etcd.service")
    cluster.put(cluster.leader(), "formed")


@pytest.fixture(scope="module")
def cluster(formed):
    return Cluster(*formed.guests)
