"""What was acknowledged is never lost: not while the cable is cut, not on a bad line, not by a failover."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

import pytest_kvm as kvm

WRITER = """
number=0
while true; do
    number=$((number + 1))
    psql --quiet --command "INSERT INTO written VALUES ($number)" && echo "$number"
done
"""
UNACKNOWLEDGED = "SELECT query FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


def sql(server: kvm.Guest, statement: str) -> str:
    """Return what a server answers to a statement."""
    command = ["psql", "--no-align", "--tuples-only", "--command", statement]
    return server.run(command, user="postgres").stdout.strip()


def rows(server: kvm.Guest) -> set[str]:
    return set(sql(server, "SELECT number FROM written").split())


class Writer:
    """Writes one row after another, and notes which were acknowledged."""

    def __init__(self, process: kvm.Process) -> None:
        self._process = process

    @property
    def acknowledged(self) -> set[str]:
        return set(self._process.so_far().stdout.split())

    def wait_for_more(self) -> None:
        """Wait until two more rows are acknowledged, of which one was begun after this call."""
        wanted = len(self.acknowledged) + 2
        for number, _ in enumerate(self._process.lines(), start=1):
            if number == wanted:
                return
        pytest.fail("the writer has ended")

    def wait_until_held_up(self, primary: kvm.Guest) -> str:
        """Wait until a row is written and not acknowledged; return its statement."""
        primary.wait_until(f'psql --tuples-only --command "{UNACKNOWLEDGED}" | grep INSERT', user="postgres")
        return sql(primary, UNACKNOWLEDGED)


@pytest.fixture
def writer(primary) -> Iterator[Writer]:
    with primary.start(["sh", "-c", WRITER], user="postgres") as process:
        yield Writer(process)


def nothing_is_lost(writer: Writer, standby: kvm.Guest) -> kvm.polling:
    """All the time, the standby has each row that was acknowledged until then."""

    def check() -> None:
        acknowledged = writer.acknowledged  # before the rows are asked for, as there are more all the time
        assert acknowledged <= rows(standby)

    return kvm.polling(check, name="nothing is lost")


def test_behind_a_partition_nothing_is_acknowledged(lan, primary, standby, writer):
    with nothing_is_lost(writer, standby):
        writer.wait_for_more()
        with lan.partition({primary}, {standby}):
            insert = writer.wait_until_held_up(primary)
            with lan.capture(link=primary) as at_primary:
                at_primary.wait_for_packet("tcp src port 5432")  # it goes on trying
            assert sql(primary, UNACKNOWLEDGED) == insert
        writer.wait_for_more()


def test_without_synchronous_commit_a_loss_would_be_seen(lan, primary, standby, writer):
    sql(primary, "ALTER ROLE postgres SET synchronous_commit = local")
    writer.wait_for_more()
    with (
        lan.partition({primary}, {standby}),
        pytest.raises(AssertionError, match="Extra items in the left set"),
        nothing_is_lost(writer, standby),
    ):
        writer.wait_for_more()


def test_a_bad_line_loses_nothing(lan, primary, standby, writer):
    lan.delay(0.1, jitter=0.05)
    lan.loss(0.1)
    lan.duplicate(0.1)
    with nothing_is_lost(writer, standby):
        for _ in range(100):
            writer.wait_for_more()
            if primary.nics[0].counters["out"]["dropped"].get("loss"):
                return
        pytest.fail("the line has lost nothing")


def test_a_slow_line_holds_up_each_row(lan, primary):
    with lan.delay(0.3):
        words = ["psql", "--command", r"\timing", "--command", "INSERT INTO written VALUES (0)"]
        said = primary.run(words, user="postgres").stdout
    milliseconds = re.search(r"Time: ([0-9.]+) ms", said)
    assert milliseconds, said
    assert float(milliseconds[1]) >= 600, "it goes to the standby and back"


def test_a_failover_loses_nothing(lan, primary, standby, writer):
    with nothing_is_lost(writer, standby):
        writer.wait_for_more()
        with lan.unplug(primary):
            insert = writer.wait_until_held_up(primary)
            assert sql(standby, "SELECT pg_promote(wait_seconds => 600)") == "t"
        sql(standby, "INSERT INTO written VALUES (0)")
        primary.wait_until(["ping", "-c", "1", "-W", "2", standby.address(lan)])
        assert sql(primary, UNACKNOWLEDGED) == insert, "the old primary acknowledges nothing any more"
