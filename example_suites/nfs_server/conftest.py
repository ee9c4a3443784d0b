"""An NFS server, and a client that has its export mounted."""

from __future__ import annotations

import pytest

import pytest_kvm as kvm

DATA = "/srv/data"
MOUNTED = "/mnt"
CONFIG = """\
[nfsd]
# A client that is silent for so many seconds loses what it has open ...
lease-time=10
# ... and for so many seconds after a start, clients may claim what they had open.
grace-time=10
"""


@kvm.network(scope="module")
def lan():
    return kvm.NetworkSpec(subnet="10.6.0.0/24", subnet6=None)


@kvm.guest(scope="module")
def server(lan):
    return kvm.GuestSpec(memory="512MiB", vcpus=1, packages=["nfs-kernel-server"], nics=[kvm.Nic(lan)])


@kvm.guest(scope="module")
def client(lan):
    return kvm.GuestSpec(memory="512MiB", vcpus=1, packages=["nfs-common"], nics=[kvm.Nic(lan)])


@pytest.fixture(scope="module", autouse=True)
def mounted(lan, server, client):
    """The client has mounted the export.

    Each test finds it so, because both guests are put back to one moment.
    """
    server.write_text("/etc/nfs.conf.d/lab.conf", CONFIG)
    # The tests write as root.
    server.write_text("/etc/exports", f"{DATA} {client.address(lan)}(rw,sync,no_root_squash)\n")
    server.run(["mkdir", "--parents", DATA])
    server.run(["systemctl", "restart", "nfs-server.service"])
    server.run("sync")  # so that a crash does not take the configuration along
    client.run(["mount", "-t", "nfs4", "-o", "hard,timeo=20", f"server:{DATA}", MOUNTED])
