from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from pytest_kvm.errors import AgentError, GuestError, GuestGone
from pytest_kvm.machine import renewal
from pytest_kvm.machine import renewal_script as script
from pytest_kvm.machine.machine import Machine
from pytest_kvm.machine.network_services import CardNetwork
from pytest_kvm.machine.renewal import Prestarted, Renewal, prestart, renew
from pytest_kvm.settings import Timeouts
from tests.fakes import FakeDomain

MINUTE = 60_000_000_000


class FakeGuest:
    """A guest's clock, and the orders that its programs were given."""

    def __init__(self, domain: FakeDomain) -> None:
        self.ahead = -10 * MINUTE
        self.prestarted: list[str] = []
        self.started: list[str] = []
        self.exit_code = 0
        self.stderr = ""
        domain.agent_replies |= {
            "guest-get-time": lambda _arguments: time.time_ns() + self.ahead,
            "guest-file-write": self._write,
            "guest-file-flush": lambda _arguments: {},
            "guest-exec": self._start,
            "guest-exec-status": self._status,
        }

    def _write(self, arguments: Mapping[str, Any]) -> dict[str, int]:
        self.prestarted += self._obeyed(arguments["buf-b64"])
        return {}

    def _start(self, arguments: Mapping[str, Any]) -> dict[str, int]:
        self.started += self._obeyed(arguments["input-data"])
        return {"pid": 2}

    def _status(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        ended = {"exited": True, "exitcode": self.exit_code}
        return ended | {"err-data": base64.b64encode(self.stderr.encode()).decode()}

    def _obeyed(self, data: str) -> list[str]:
        orders = base64.b64decode(data).decode().splitlines()
        moved = next(int(order.split()[1]) for order in orders if order.startswith("clock"))
        if not self.exit_code:
            self.ahead += moved
        return [order.split()[0] for order in orders]


@pytest.fixture
def inside(domain: FakeDomain) -> FakeGuest:
    return FakeGuest(domain)


@pytest.fixture
def hasty(machine: Machine) -> Machine:
    """Wait for nothing for long."""
    return replace(machine, timeouts=Timeouts(agent=1.0, command=1.0))


def test_the_clock_is_moved_by_what_it_is_off(inside, machine):
    renew(machine)
    assert abs(inside.ahead) < MINUTE // 600
    assert inside.started == ["seed", "clock", "end"]


def test_a_prestarted_program_is_told_and_no_other_started(inside, machine):
    renew(machine, Renewal(hostname="web"), prestarted=Prestarted(1, 1000))
    assert inside.prestarted == ["seed", "hostname", "clock", "end"]
    assert inside.started == []


def test_a_prestarted_program_that_is_gone_is_replaced(inside, machine, domain, caplog):
    def refuse(_arguments: Mapping[str, Any]) -> None:
        raise AgentError("handle '1000' has not been found")

    domain.agent_replies["guest-file-write"] = refuse
    renew(machine, prestarted=Prestarted(1, 1000))
    assert inside.started == ["seed", "clock", "end"]
    assert "its prestarted script failed: handle '1000' has not been found" in caplog.text


def test_a_guest_that_is_removed_while_it_is_renewed_is_nothing_to_warn_of(
    inside, machine, domain, shell, caplog, monkeypatch
):
    """The pool removes spare clones at the end of a run, also one that is being prepared."""

    def end(_arguments: Mapping[str, Any]) -> None:
        domain.agent_replies.clear()
        domain.end("destroyed")
        raise AgentError("End of file from agent socket")

    def refuse(*_arguments: object, **_more: object) -> None:
        raise GuestGone("web has ended: destroyed")

    domain.agent_replies["guest-file-write"] = end
    monkeypatch.setattr(shell, "start", refuse)
    with pytest.raises(GuestGone):
        renew(machine, prestarted=Prestarted(1, 1000))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_the_clock_is_the_last_order_because_it_is_what_is_seen(inside, machine):
    cards = [
        CardNetwork("new", 1500, ["10.1.0.5/24"], dhcp=False, gateways=["10.1.0.1"]),
        CardNetwork("other", 1500, [], dhcp=True),
    ]
    renewal = Renewal(
        hostname="a",
        machine_id="0" * 32,
        hosts="10.1.0.6\tb\n",
        macs=[("old", "new")],
        networks=cards,
        network_service="NetworkManager",
        renews_leases=True,
    )
    renew(machine, renewal)
    assert inside.started == [
        *("seed", "hostname", "machine-id", "hosts", "mac"),
        *("network", "router", "settings"),
        *("network", "settings", "run", "run", "run", "run"),
        *("leases", "clock", "end"),
    ]


def test_a_guest_that_cannot_be_renewed_says_why(inside, hasty, monkeypatch):
    monkeypatch.setattr(renewal, "_MOVED_WITHIN", 0.05)
    inside.exit_code, inside.stderr = 127, "python3: not found"
    with pytest.raises(GuestError, match="python3: not found"):
        renew(hasty)


def test_nothing_is_prestarted_where_no_agent_is(machine):
    assert prestart(machine) is None


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("127.0.1.1\told\told\n", "127.0.1.1\tnew\tnew\n"),
        ("127.0.1.1 old.lan old\n", "127.0.1.1 old.lan old\n"),
        ("10.0.0.1 old\n", "10.0.0.1 old\n"),
        ("# old\n\n127.0.0.1 localhost\n", "# old\n\n127.0.0.1 localhost\n"),
    ],
)
def test_only_loopback_lines_with_the_own_name_change(hosts, expected):
    old = "old.lan.example" if "old.lan" in hosts else "old"
    assert script.renamed_hosts(hosts, old=old, new="new") == expected


def test_a_qualified_name_changes_with_its_short_form():
    hosts = "127.0.1.1 old.lan old\n"
    assert script.renamed_hosts(hosts, old="old.lan", new="new.lan") == "127.0.1.1\tnew.lan\tnew\n"


def test_an_address_is_replaced_in_either_case_and_nowhere_else(tmp_path):
    (tmp_path / "10.network").write_bytes(
        b"[Match]\nMACAddress=52:54:00:AA:BB:CC\n# \xff 52:54:00:aa:bb:cc\n"
    )
    (tmp_path / "20.network").write_text("MACAddress=52:54:00:00:00:01\n")
    (tmp_path / "link").symlink_to("20.network")
    script.replace_in_files(str(tmp_path), old="52:54:00:aa:bb:cc", new="52:54:00:00:00:02")
    assert (tmp_path / "10.network").read_bytes() == (
        b"[Match]\nMACAddress=52:54:00:00:00:02\n# \xff 52:54:00:00:00:02\n"
    )
    assert (tmp_path / "20.network").read_text() == "MACAddress=52:54:00:00:00:01\n"


def test_a_card_is_found_by_its_address(tmp_path):
    for name, address in (("br0", "52:54:00:aa:bb:cc"), ("ens3", "52:54:00:aa:bb:cc")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "address").write_text(f"{address}\n")
    (tmp_path / "ens3" / "device").mkdir()
    assert script.card_of("52:54:00:AA:BB:CC", str(tmp_path)) == "ens3"
    with pytest.raises(LookupError, match="52:54:00:00:00:09"):
        script.card_of("52:54:00:00:00:09", str(tmp_path))


@pytest.mark.parametrize(("folder", "disabled"), [(False, "0"), (True, "1")])
def test_a_card_without_ipv6_gets_its_other_addresses(monkeypatch, folder, disabled):
    asked: list[int] = []
    monkeypatch.setattr(script, "card_of", lambda _: "ens3")
    monkeypatch.setattr(script.os.path, "isdir", lambda path: folder or "ipv6" not in path)
    monkeypatch.setattr(script, "_read", lambda _: disabled + "\n")
    monkeypatch.setattr(script, "_write", lambda *_: None)
    monkeypatch.setattr(script, "_control", lambda _, request, __: asked.append(request) or bytes(40))
    script.set_network("52:54:00:00:00:01", "576", "10.1.0.5/24", "fd00::5/64")
    assert asked.count(script._SET_ADDRESS) == 1


def test_settings_name_the_card_and_are_written_where_no_folder_is(monkeypatch, tmp_path):
    monkeypatch.setattr(script, "card_of", {"52:54:00:00:00:01": "ens3"}.get)
    path = tmp_path / "interfaces.d/lan"
    text = base64.b64encode(b"auto {card}\niface {card} inet dhcp\n").decode()
    script.write_settings("52:54:00:00:00:01", str(path), "600", text)
    assert path.read_text() == "auto ens3\niface ens3 inet dhcp\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_mac_address_that_an_earlier_attempt_has_changed_is_no_failure(monkeypatch):
    cards = {"52:54:00:00:00:02": "ens3"}
    set_on: list[str] = []

    monkeypatch.setattr(script, "card_of", cards.__getitem__)
    monkeypatch.setattr(script, "_control", lambda *arguments: set_on.append(arguments[0]))
    monkeypatch.setattr(script, "_MAC_FOLDERS", ())
    script.set_hardware_address("52:54:00:00:00:01", "52:54:00:00:00:02")
    assert set_on == ["ens3"]
    with pytest.raises(LookupError):
        script.set_hardware_address("52:54:00:00:00:01", "52:54:00:00:00:03")


@pytest.mark.parametrize(("is_active", "verbs"), [(0, ["is-active", "restart"]), (3, ["is-active"])])
def test_only_a_networkd_that_runs_asks_anew(monkeypatch, is_active, verbs):
    asked: list[str] = []

    def ended(command: list[str]) -> int:
        asked.append(command[2])
        return is_active if command[2] == "is-active" else 0

    monkeypatch.setattr(script, "_exit_code", ended)
    script.renew_leases()
    assert asked == verbs


def test_a_command_about_a_card_that_fails_is_no_success(monkeypatch, tmp_path):
    monkeypatch.setattr(script, "card_of", lambda _: "ens3")
    script.run_for_card("52:54:00:00:00:01", "touch", f"{tmp_path}/{{card}}")
    assert [each.name for each in tmp_path.iterdir()] == ["ens3"]
    with pytest.raises(OSError, match="^rmdir /nosuch/ens3: exit code 1$"):
        script.run_for_card("52:54:00:00:00:01", "rmdir", "/nosuch/{card}")


def test_lines_are_appended_to_a_hosts_file_without_a_last_newline(monkeypatch):
    written: dict[str, str] = {}
    monkeypatch.setattr(script, "_read", lambda _: "127.0.0.1 localhost")
    monkeypatch.setattr(script, "_write", written.__setitem__)
    script.append_hosts(base64.b64encode(b"10.1.0.5 web\n").decode())
    assert written == {"/etc/hosts": "127.0.0.1 localhost\n10.1.0.5 web\n"}


def test_orders_that_break_off_are_no_success(monkeypatch):
    done: list[str] = []
    monkeypatch.setitem(script.ORDERS, "note", done.append)
    with pytest.raises(EOFError):
        script.obey([b"note one\n"])
    script.obey([b"note two\n", b"end\n", b"note three\n"])
    assert done == ["one", "two"]


def test_a_prestarted_program_waits_at_a_fifo_and_takes_it_away(monkeypatch, tmp_path):
    done: list[str] = []
    monkeypatch.setitem(script.ORDERS, "note", done.append)
    path = tmp_path / "fifo"

    def seeded(_data: str) -> None:
        # Whoever opens the FIFO for writing needs the reader that is being prepared.
        line = io.FileIO(os.open(f"{path}.new", os.O_RDWR), "w")
        line.write(b"note told\nend\n")
        kept.append(line)

    kept: list[io.FileIO] = []
    monkeypatch.setattr(script, "seed", seeded)
    script.prestart(str(path))
    kept.pop().close()
    assert done == ["told"]
    assert list(tmp_path.iterdir()) == []


def test_a_guest_without_ipv6_gets_no_router_of_that_version(monkeypatch):
    ran: list[list[str]] = []
    monkeypatch.setattr(script, "card_of", lambda mac: "eth1")
    monkeypatch.setattr(script, "_run", ran.append)
    for has_ipv6 in (True, False):
        monkeypatch.setattr(script, "_has_ipv6", lambda card, answer=has_ipv6: answer)
        for address in ("10.1.0.1", "fd00::1"):
            script.add_router("52:54:00:00:00:01", address, "1025")
    four = "ip -4 route replace default via 10.1.0.1 dev eth1 metric 1025"
    six = "ip -6 route replace default via fd00::1 dev eth1 metric 1025"
    assert [" ".join(command) for command in ran] == [four, six, four]
