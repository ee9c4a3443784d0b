"""What a segment costs: the switch alone, with frames that no guest sent, then guests that it joins.

frames/s   of 1500 bytes that one core passes: frames by the seconds of CPU
           time that the switch took, one sender, one receiver
filter     the rate with a filter expression, which matches none or every second
           frame, by the rate without faults
late       how much later than asked a delayed frame comes, at idle, in ms
rate       bits/s that came through, by those asked for
loss       frames lost out of 10,000, by those asked for

What is measured with guests is described in :mod:`bench.joined_guests`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import statistics
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dpkt
import psutil
from rich.console import Console
from rich.table import Table

from bench import joined_guests
from bench.state_table import table
from pytest_kvm.options import from_environment, settings_from
from pytest_kvm.switch.client import Switch
from pytest_kvm.switch.filters import compile_filter

AIM_FRAMES = 150_000
SIZE = 1500
BATCH = 200
A, B = b"\x52\x54\x00\x00\x00\x0a", b"\x52\x54\x00\x00\x00\x0b"
EXPRESSIONS = {"no frame": "tcp and dst port 5432", "every second frame": "tcp and dst port 80"}
AIM_FILTER = 0.70
"""Of the rate without faults."""
FAULTS: dict[str, dict[str, float]] = {
    "delay": {"seconds": 0.001, "jitter": 0.0},
    "loss": {"probability": 0.01},
    "duplicate": {"probability": 0.01},
    "reorder": {"probability": 0.01, "hold": 0.001},
    "corrupt": {"probability": 0.01},
    "rate": {"bits_per_second": 100e9, "queue": 1 << 30},
}


def wired(to: bytes, sender: bytes, payload: bytes) -> bytes:
    """Return a frame behind its length."""
    whole = to + sender + b"\x88\xb5" + payload
    return struct.pack(">I", len(whole)) + whole


def card(path: Path) -> socket.socket:
    """Connect as QEMU does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(path))
    return connection


@contextmanager
def pair() -> Iterator[tuple[Switch, socket.socket, socket.socket]]:
    """Yield a switch and two cards that know each other."""
    with tempfile.TemporaryDirectory() as folder:
        switch = Switch()
        switch.add_segment("lan")
        cards: list[socket.socket] = []
        for name in ("a", "b"):
            path = Path(folder) / name
            switch.open_port(path)
            cards.append(card(path))
            switch.add_link("lan", name)
            switch.attach("lan", name, port=path)
        for each, mac in zip(cards, (A, B), strict=True):
            each.sendall(wired(b"\xff" * 6, mac, b""))
        for each in cards:
            each.recv(100)
        yield switch, cards[0], cards[1]
        for each in cards:
            each.close()
        switch.close()


def tcp_frame(port: int) -> bytes:
    """Return a frame of TCP to a port."""
    segment = dpkt.tcp.TCP(sport=1024, dport=port, data=bytes(SIZE - 14 - 40))
    packet = dpkt.ip.IP(p=dpkt.ip.IP_PROTO_TCP, src=bytes(4), dst=bytes(4), data=segment)
    packet.len = len(packet)
    frame = bytes(dpkt.ethernet.Ethernet(src=A, dst=B, data=packet))
    return len(frame).to_bytes(4) + frame


def send_for(connection: socket.socket, seconds: float) -> None:
    """Send frames as fast as they are taken."""
    batch = (tcp_frame(80) + tcp_frame(8080)) * (BATCH // 2)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        connection.sendall(batch)


def swallow(connection: socket.socket) -> None:
    """Take whatever comes."""
    buffer = bytearray(1 << 20)
    while connection.recv_into(buffer):
        pass


def throughput(seconds: float, fault: str | None = None, expression: str | None = None) -> float:
    """Return the frames that the switch takes in a second of CPU time, with a fault or a filter."""
    with pair() as (switch, a, b):
        if expression is not None:
            switch.filter("lan", compile_filter(expression))
        if fault is not None:
            switch.fault("lan", fault, seed="1", settings=FAULTS[fault])
        process = psutil.Process(switch.pid)
        sender = multiprocessing.Process(target=send_for, args=(a, seconds))
        receiver = multiprocessing.Process(target=swallow, args=(b,), daemon=True)
        before = sum(process.cpu_times()[:2])
        receiver.start()
        sender.start()
        sender.join()
        took = sum(process.cpu_times()[:2]) - before
        passed = switch.counters("lan")["a"]["out"]["frames"]
        receiver.kill()
        receiver.join()
    return float(passed) / took


def filtered(seconds: float, expression: str, rounds: int = 5) -> float:
    """Return the rate with a filter by the rate without faults, the median of rounds."""
    ratios = [throughput(seconds, expression=expression) / throughput(seconds) for _ in range(rounds)]
    return statistics.median(ratios)


def lateness(frames: int, delay: float) -> tuple[float, float]:
    """Return the median and the 99th percentile of what a frame comes too late by, in ms."""
    late: list[float] = []
    with pair() as (switch, a, b):
        switch.fault("lan", "delay", seed="1", settings={"seconds": delay, "jitter": 0.0})
        for _ in range(frames):
            sent = time.monotonic()
            a.sendall(wired(B, A, b"x" * 50))
            b.recv(100)
            late.append((time.monotonic() - sent - delay) * 1000)
    return statistics.median(late), statistics.quantiles(late, n=100)[98]


def rate(bits_per_second: float, seconds: float) -> float:
    """Return the rate that came out by the one asked for."""
    with pair() as (switch, a, b):
        settings = {"bits_per_second": bits_per_second, "queue": bits_per_second / 16}
        switch.fault("lan", "rate", seed="1", settings=settings)
        sender = multiprocessing.Process(target=send_for, args=(a, seconds))
        sender.start()
        buffer = bytearray(1 << 16)
        b.recv_into(buffer)
        begun, got = time.monotonic(), 0
        while sender.is_alive():
            got += b.recv_into(buffer)
        took = time.monotonic() - begun
    return got * SIZE / (SIZE + 4) * 8 / took / bits_per_second


def lost(frames: int, probability: float) -> int:
    """Return how many frames did not arrive."""
    with pair() as (switch, a, b):
        switch.fault("lan", "loss", seed="1", settings={"probability": probability})
        receiver = multiprocessing.Process(target=swallow, args=(b,), daemon=True)
        receiver.start()
        for _ in range(frames // 100):
            a.sendall(wired(B, A, b"x" * 50) * 100)
        while (counted := switch.counters("lan"))["a"]["out"]["frames"] < frames + 1:
            pass
        receiver.kill()
        receiver.join()
    return int(counted["a"]["out"]["dropped"]["loss"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="for each throughput")
    parser.add_argument("--rounds", type=int, default=5, help="of what is measured with guests")
    parser.add_argument("--no-guests", action="store_true", help="the switch alone")
    parser.add_argument("--json", type=Path, help="write the numbers there, too")
    options = parser.parse_args()
    multiprocessing.set_start_method("fork")
    numbers = switch_alone(options.seconds)
    write(numbers, options.json)
    if not options.no_guests:
        write(numbers | with_guests(options.rounds), options.json)


def write(numbers: dict[str, float], file: Path | None) -> None:
    """Write the numbers as JSON where asked."""
    if file:
        file.write_text(json.dumps(numbers, indent=2))


def switch_alone(seconds: float) -> dict[str, float]:
    """Measure the switch without guests, and print the table."""
    numbers: dict[str, float] = {}
    alone = Table("the switch alone", "measured", "aim")
    for fault in (None, *FAULTS):
        name = f"frames/s, {fault or 'no fault'}"
        numbers[name] = throughput(seconds, fault)
        alone.add_row(name, f"{numbers[name]:,.0f}", "" if fault else f"{AIM_FRAMES:,}")
    for matched, expression in EXPRESSIONS.items():
        name = f"rate with a filter that matches {matched}"
        numbers[name] = filtered(seconds, expression)
        alone.add_row(name, f"{numbers[name]:.2f}", f"{AIM_FILTER:.2f}" if matched == "no frame" else "")
    for delay in (0.005, 0.05):
        median, worst = lateness(200, delay)
        numbers[f"late, {delay * 1000:.0f} ms"] = median
        alone.add_row(f"late, delay {delay * 1000:.0f} ms", f"{median:.2f} ms, 99 %: {worst:.2f} ms", "1 ms")
    for bits in (1e6, 10e6, 100e6):
        numbers[f"rate, {bits / 1e6:.0f} Mbit/s"] = rate(bits, seconds)
        alone.add_row(
            f"rate {bits / 1e6:.0f} Mbit/s", f"{numbers[f'rate, {bits / 1e6:.0f} Mbit/s']:.3f}", "0.95-1.05"
        )
    numbers["loss, 1000 of 10000"] = lost(10_000, 0.1)
    alone.add_row("loss, 10 % of 10,000", f"{numbers['loss, 1000 of 10000']:.0f}", "923-1077")
    Console().print(alone)
    return numbers


def with_guests(rounds: int) -> dict[str, float]:
    """Measure guests on a segment, and print the table."""
    rows = joined_guests.measure(settings_from([from_environment]), rounds=rounds, seconds=5)
    Console().print(table(rows))
    return {row.name: row.measured for row in rows}


if __name__ == "__main__":
    main()
