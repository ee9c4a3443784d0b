"""A PostgreSQL server, and a standby that has each write before the server acknowledges it."""

from __future__ import annotations

import pytest

import pytest_kvm as kvm

UNIT = "postgresql@17-main.service"
DATA = "/var/lib/postgresql/17/main"
CONFIG = "/etc/postgresql/17/main"
PATIENT = """\
# A reset sets the wall clock, by which PostgreSQL measures these.
wal_sender_timeout = 0
wal_receiver_timeout = 0
"""


@kvm.network(scope="module")
def lan():
    return kvm.NetworkSpec(subnet="10.4.0.0/24", subnet6=None)


def database(lan):
    return kvm.GuestSpec(
        image="debian-13", memory="512MiB", vcpus=1, packages=["postgresql"], nics=[kvm.Nic(lan)]
    )


@kvm.guest(scope="module")
def primary(lan):
    return database(lan)


@kvm.guest(scope="module")
def standby(lan):
    return database(lan)


@pytest.fixture(scope="module", autouse=True)
def replication(lan, primary, standby):
    """Both run, and the standby has all that the primary has: so it is again in each test."""
    primary.write_text(
        f"{CONFIG}/pg_hba.conf", f"host replication standby {standby.address(lan)}/32 trust\n", append=True
    )
    primary.write_text(f"{CONFIG}/conf.d/lab.conf", f"listen_addresses = '*'\n{PATIENT}")
    restart(primary)
    for statement in (
        "CREATE ROLE standby REPLICATION LOGIN",
        "CREATE TABLE written (number integer PRIMARY KEY)",
    ):
        primary.run(["psql", "--command", statement], user="postgres")
    standby.run(["systemctl", "stop", UNIT])
    standby.run(f"rm -rf {DATA}")
    make_copy = ["pg_basebackup", "--host", primary.address(lan), "--username", "standby", "--pgdata", DATA]
    standby.run([*make_copy, "--checkpoint=fast", "--write-recovery-conf"], user="postgres")
    primary.write_text(
        f"{CONFIG}/conf.d/lab.conf",
        "synchronous_standby_names = '*'\nsynchronous_commit = remote_apply\n",
        append=True,
    )
    standby.write_text(f"{CONFIG}/conf.d/lab.conf", f"wal_retrieve_retry_interval = 500ms\n{PATIENT}")
    for server in (primary, standby):
        restart(server)
    ask = "psql -Atc 'SELECT sync_state FROM pg_stat_replication'"
    primary.wait_until(f"{ask} | grep -x sync", user="postgres")


def restart(server):
    server.run(["systemctl", "restart", UNIT])
    server.wait_for_unit(UNIT)
