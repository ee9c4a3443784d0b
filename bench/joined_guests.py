"""Guests on a segment: what passes between two of them, how exact faults are, and how long many take.

The direct line is a second card of the same two guests, plugged in while they
run: one QEMU's ``stream`` back end connects to the other's, and no switch is
between them. What is compared is measured in turn, and a ratio is the median of
the rounds' ratios.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import labs
from bench.boot import Quiet
from bench.processes import alone
from bench.resets import of_several
from bench.state import own_cache
from bench.state_table import Row
from pytest_kvm.handles.guest import Guest
from pytest_kvm.handles.segment import Segment
from pytest_kvm.provision.reset_coordinator import ResetCoordinator
from pytest_kvm.provision.run import Run
from pytest_kvm.settings import Settings
from pytest_kvm.sizes import parse_bits_per_second
from pytest_kvm.spec.guest import GuestSpec
from pytest_kvm.spec.network import NetworkSpec
from pytest_kvm.spec.nic import Nic

SMALL = GuestSpec(memory="512MiB", vcpus=1)
WITH_IPERF = replace(SMALL, packages=["iperf3"])
DELAY = 0.05
CHANCE = 0.1
PINGS = 10_000
CHANCE_OFF = 77
"""Half of the interval that 99 % of all trials with so many pings fall into, around their mean."""
RATES = ("1Mbit", "10Mbit")
Figures = dict[str, list[float]]


def measure(settings: Settings, *, rounds: int, seconds: int) -> list[Row]:
    """Measure everything, with templates of its own; each run of guests has a process of its own."""
    with own_cache(settings, ram_place="disk") as cached:
        rows = _line_rows(alone(lines, cached, rounds=rounds, seconds=seconds))
        rows += _fault_rows(alone(faults, cached, rounds=rounds, seconds=seconds))
        rows += _start_rows(alone(starts, cached, sizes=(1, 2, 4, 8), rounds=rounds))
        for spares in (False, True):
            times = alone(of_several, cached, SMALL, counts=(1, 2, 3), rounds=rounds, spares=spares)
            rows += _reset_rows(times, "with spare clones" if spares else "without spare clones")
        return rows + labs.rows(alone(labs.labs, cached, rounds=rounds))


@contextmanager
def _segment(settings: Settings) -> Iterator[tuple[Run, Segment]]:
    """Make a segment in a run of its own."""
    run = Run(settings, progress=Quiet(), coordinator=ResetCoordinator())
    try:
        yield run, run.segments.make("lan", NetworkSpec())
    finally:
        run.close()


# ------------------------------------------------------------ between two guests


def lines(settings: Settings, *, rounds: int, seconds: int) -> Figures:
    """Return bits a second and round trips (ms) through the switch and by a direct line."""
    figures: Figures = defaultdict(list)
    with _segment(settings) as (run, segment), tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        spec = replace(WITH_IPERF, nics=[Nic(segment)])
        client, server = (run.start(spec, name=name, resets=False) for name in ("client", "server"))
        ways = {
            "switch": server.address(segment),
            "direct": _join_directly(client, server, Path(folder, "line")),
        }
        server.run(["iperf3", "--server", "--daemon"])
        server.wait_for_port(5201)
        for number in range(rounds):
            for name, address in sorted(ways.items(), reverse=number % 2 == 1):
                figures[f"bit/s, {name}"].append(_throughput(client, address, seconds))
                figures[f"ms, {name}"].append(_round_trip(client, address))
    return dict(figures)


def _throughput(client: Guest, address: str, seconds: int) -> float:
    result = client.run(["iperf3", "--client", address, "--time", str(seconds), "--json"])
    return float(json.loads(result.stdout)["end"]["sum_received"]["bits_per_second"])


def _round_trip(client: Guest, address: str) -> float:
    said = client.run(["ping", "-q", "-c", "50", "-i", "0.05", address]).stdout
    return float(said.rpartition("= ")[2].split("/")[1])


def _join_directly(client: Guest, server: Guest, path: Path) -> str:
    """Plug a card into each guest, and one card into the other; return the server's address there."""
    for host, guest in ((2, server), (1, client)):
        domain, mac = guest.machine.domain, f"52:54:00:dd:00:0{host}"
        back_end = {"type": "stream", "id": "direct", "addr": {"type": "unix", "path": str(path)}}
        domain.qmp("netdev_add", {**back_end, "server": guest is server})
        card = {"driver": "virtio-net-pci", "id": "direct-card", "netdev": "direct", "mac": mac}
        domain.qmp("device_add", {**card, "bus": _free_root_port(guest)})
        guest.wait_until(f"grep -l {mac} /sys/class/net/*/address")
        device = guest.run(f"grep -l {mac} /sys/class/net/*/address").stdout.split("/")[4]
        guest.run(["ip", "address", "add", f"10.99.0.{host}/24", "dev", device])
        guest.run(["ip", "link", "set", device, "up"])
    return "10.99.0.2"


def _free_root_port(guest: Guest) -> str:
    devices: list[dict[str, Any]] = guest.machine.domain.qmp("query-pci")[0]["devices"]
    return next(
        str(device["qdev_id"])
        for device in devices
        if "pci_bridge" in device and not device["pci_bridge"].get("devices")
    )


def _line_rows(figures: Figures) -> list[Row]:
    median = {name: statistics.median(values) for name, values in figures.items()}
    through = _ratio(figures["bit/s, switch"], figures["bit/s, direct"])
    trips = _ratio(figures["ms, direct"], figures["ms, switch"])
    return [
        Row(
            name="throughput through the switch",
            measured=median["bit/s, switch"] / 1e6,
            unit="Mbit/s",
            raw=median["bit/s, direct"] / 1e6,
        ),
        Row(name="throughput, switch / direct", measured=through, unit="×", aim=0.8, at_least=True),
        Row(
            name="round trip through the switch",
            measured=median["ms, switch"],
            unit="ms",
            raw=median["ms, direct"],
        ),
        Row(name="round trip, direct / switch", measured=trips, unit="×", aim=0.8, at_least=True),
    ]


def _ratio(one: list[float], other: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


# ------------------------------------------------------------ faults between two guests


def faults(settings: Settings, *, rounds: int, seconds: int) -> Figures:
    """Return by how much faults miss what was asked for, as two guests see it."""
    figures: Figures = defaultdict(list)
    with _segment(settings) as (run, segment):
        spec = replace(WITH_IPERF, nics=[Nic(segment)])
        client, server = (run.start(spec, name=name, resets=False) for name in ("client", "server"))
        address = server.address(segment)
        for _ in range(rounds):
            figures["ms"].append(_lateness(segment, client, address))
        with segment.loss(CHANCE, link=client, direction="out"):
            figures["lost"].append(PINGS - _flood(client, address)["received"] - PINGS * CHANCE)
        with segment.duplicate(CHANCE, link=client, direction="out"):
            figures["twice"].append(_flood(client, address)["duplicates"] - PINGS * CHANCE)
        server.run(["iperf3", "--server", "--daemon"])
        server.wait_for_port(5201)
        for rate in RATES:
            figures[rate].append(_rate(segment, rate, client, server, seconds))
    return dict(figures)


def _lateness(segment: Segment, client: Guest, address: str) -> float:
    """Return by how many ms a delayed frame comes too late; a round trip has two of them."""
    without = _round_trip(client, address)
    with segment.delay(DELAY):
        return (_round_trip(client, address) - without) / 2 - DELAY * 1000


def _flood(client: Guest, address: str) -> dict[str, int]:
    """Ping as fast as answers come; return what ping has counted."""
    said = client.run(["ping", "-f", "-q", "-c", str(PINGS), address], check=False, timeout=300).stdout
    counted = {what: int(number) for number, what in re.findall(r"([0-9]+) (?:packets )?([a-z]+)", said)}
    assert counted["transmitted"] == PINGS, said
    return {"duplicates": 0, **counted}


def _rate(segment: Segment, rate: str, client: Guest, server: Guest, seconds: int) -> float:
    """Return by how many % the bits of frames that reach the server are more than asked for."""
    narrow = segment.rate(rate, link=server, direction="in")
    with narrow, server.nics[0].capture() as at_server:
        client.run(["iperf3", "--client", server.address(segment), "--time", str(seconds + 2)])
        frames = [packet for packet in at_server if packet.direction == "in"]
    begun = frames[0].time + 1  # TCP fills the line by then
    passed = sum(len(frame.raw) * 8 for frame in frames if begun <= frame.time < begun + seconds)
    return (passed / seconds / parse_bits_per_second(rate, field="rate") - 1) * 100


def _fault_rows(figures: Figures) -> list[Row]:
    late = statistics.median(figures["ms"])
    rows = [Row(name=f"late, delay {DELAY * 1000:.0f} ms, seen by guests", measured=late, unit="ms", aim=1.0)]
    for what in ("lost", "twice"):
        name = f"{what}, {PINGS * CHANCE:.0f} of {PINGS} pings: off by"
        rows.append(Row(name=name, measured=abs(figures[what][0]), unit="pings", aim=CHANCE_OFF))
    for rate in RATES:
        off = abs(figures[rate][0])
        rows.append(Row(name=f"rate {rate}, between guests: off by", measured=off, unit="%", aim=5.0))
    return rows


# ------------------------------------------------------------ many guests


def starts(
    settings: Settings, *, sizes: tuple[int, ...], rounds: int
) -> dict[int, list[tuple[float, float]]]:
    """Return, for each size, the seconds until so many clones are ready, and until each has reached another.

    The second includes each guest's first login over SSH.
    """
    times: dict[int, list[tuple[float, float]]] = defaultdict(list)
    with _segment(settings) as (run, segment):
        spec = replace(SMALL, nics=[Nic(segment)])
        first = run.start(spec, name="first", resets=False)  # makes the template
        first.wait_ready()
        run.remove(first)
        for _ in range(rounds):
            for size in sizes:
                times[size].append(_start(run, spec, size))
    return dict(times)


def _start(run: Run, spec: GuestSpec, size: int) -> tuple[float, float]:
    began = time.perf_counter()
    guests = [run.start(spec, name=f"guest{number}", resets=False) for number in range(size)]
    for guest in guests:
        guest.wait_ready()
    ready = time.perf_counter() - began
    # A single guest has nobody but itself.
    neighbours = [guests[number - 1].nics[0].names[0] for number in range(size)]
    with ThreadPoolExecutor(max_workers=size) as pool:
        for _ in pool.map(_ping, guests, neighbours):
            pass
    reached = time.perf_counter() - began
    run.remove(*guests)
    return ready, reached


def _ping(guest: Guest, name: str) -> None:
    guest.run(["ping", "-c", "1", "-W", "20", name])


def _start_rows(times: dict[int, list[tuple[float, float]]]) -> list[Row]:
    rows: list[Row] = []
    for size, took in times.items():
        ready, reached = (statistics.median(each) for each in zip(*took, strict=True))
        rows.append(Row(name=f"{size} on a segment, ready", measured=ready))
        aim = 6.0 if size == 8 else None
        rows.append(Row(name=f"{size} on a segment, each has pinged another", measured=reached, aim=aim))
    return rows


def _reset_rows(times: dict[int, list[float]], how: str) -> list[Row]:
    rows = [
        Row(name=f"reset of {count}, {how}", measured=statistics.median(took))
        for count, took in times.items()
    ]
    ratio = _ratio(times[3], times[1])
    return [*rows, Row(name=f"reset of 3 / of 1, {how}", measured=ratio, unit="×", aim=1.3)]
