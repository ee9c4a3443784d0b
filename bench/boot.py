"""How long a cold boot takes, against QEMU started by hand, and the lean image against a stock one.

All in one run, in turn, so that the machine's mood meets everybody:

plugin  a guest through ``pytest_kvm.provision``
raw     ``qemu-system-x86_64`` with the same kernel, image and seed, asked by
        OpenSSH in a loop
stock   raw, with Debian's own initramfs and cloud-init's defaults (same packages)

"login" is the first command over SSH, "ready" the end of cloud-init; both in
seconds since the guest was asked for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from bench.processes import alone
from pytest_kvm.host.ssh_keys import KeyPair, new_key_pair, write_private
from pytest_kvm.images.ensure import ensure
from pytest_kvm.images.image import Image
from pytest_kvm.images.qemu_img import create_overlay
from pytest_kvm.options import from_environment, settings_from
from pytest_kvm.provision.reset_coordinator import ResetCoordinator
from pytest_kvm.provision.run import Run
from pytest_kvm.render.cloud_config import Identity
from pytest_kvm.render.seed import seed_bytes
from pytest_kvm.render.seed_iso import iso_bytes
from pytest_kvm.settings import Settings
from pytest_kvm.spec.guest import GuestSpec
from pytest_kvm.spec.image import ImageRef
from pytest_kvm.waiting import NotYet, wait_until

MAC = "52:54:00:00:be:01"
SPEC = GuestSpec(memory="1GiB", vcpus=2)
AIMS = {"plugin / raw, login": 1.05, "plugin / raw, ready": 1.05, "raw / stock, login": 0.45, "teardown": 0.3}
PATIENCE = 600.0
Times = dict[str, float]


class Quiet:
    """Shows no progress."""

    def phase(self, subject: str, phase: str) -> None:
        """Ignore it."""

    def finished(self, subject: str, outcome: str) -> None:
        """Ignore it."""


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A guest of QEMU alone."""

    image: Image
    seed: bytes
    key: KeyPair
    memory_mib: int = 1024
    vcpus: int = 2

    def times(self) -> Times:
        """Boot once and return when login and readiness came."""
        with tempfile.TemporaryDirectory(prefix="kvm-bench-", dir="/var/tmp") as name:
            folder = Path(name)
            begin = time.perf_counter()
            with self._running(folder) as port:
                ssh = self._ssh(folder, port)
                wait_until(lambda: succeeds([*ssh, "true"]), describe="login", timeout=PATIENCE, every=0.1)
                login = time.perf_counter() - begin
                done = "test -e /run/cloud-init/result.json"
                wait_until(lambda: succeeds([*ssh, done]), describe="cloud-init", timeout=PATIENCE, every=0.1)
                return {"login": login, "ready": time.perf_counter() - begin}

    @contextmanager
    def _running(self, folder: Path) -> Iterator[int]:
        create_overlay(folder / "root.qcow2", backing=self.image.disk)
        seed = write_private(folder / "seed.iso", self.seed)
        argv = [
            *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg,tb-size=256", "-cpu", "max"),
            *(
                "-m",
                str(self.memory_mib),
                "-smp",
                str(self.vcpus),
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-vga",
                "std",
            ),
            *("-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd)),
            *("-append", f"{self.image.cmdline} console=tty0 console=ttyS0"),
            *("-drive", f"file={folder}/root.qcow2,if=virtio,cache=unsafe,discard=unmap"),
            *("-drive", f"file={seed},if=virtio,format=raw,readonly=on,cache=unsafe"),
            *("-device", "virtio-rng-pci", "-device", "virtio-balloon-pci"),
            *("-netdev", "user,id=n,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22"),
            *("-device", f"virtio-net-pci,netdev=n,mac={MAC},romfile="),
            *("-serial", f"file:{folder}/console.log"),
            *("-monitor", f"unix:{folder}/monitor,server=on,wait=off"),
        ]
        with subprocess.Popen(argv) as process:
            try:
                yield wait_until(
                    lambda: listening_port(process.pid), describe="QEMU's port", timeout=10, every=0.02
                )
            finally:
                process.kill()

    def _ssh(self, folder: Path, port: int) -> list[str]:
        key = write_private(folder / "key", self.key.private)
        options = [
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
        ]
        options += ["ConnectTimeout=5", "ConnectionAttempts=1", "KexAlgorithms=curve25519-sha256"]
        return [
            *("ssh", "-F", "none", "-i", str(key), "-p", str(port)),
            *(word for option in options for word in ("-o", option)),
            "root@127.0.0.1",
        ]


def succeeds(argv: list[str]) -> None:
    """Return when a command exits with 0."""
    if subprocess.run(argv, capture_output=True, timeout=PATIENCE, check=False).returncode != 0:
        raise NotYet("not yet")


def listening_port(pid: int) -> int:
    """Return the one TCP port a process listens on."""
    for connection in psutil.Process(pid).net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN:
            return int(connection.laddr.port)
    raise NotYet("no port")


def through_plugin(settings: Settings) -> Times:
    """Boot once through the plugin and return when login and readiness came."""
    run = Run(replace(settings, cache="off"), progress=Quiet(), coordinator=ResetCoordinator())
    try:
        begin = time.perf_counter()
        guest = run.start(SPEC, name="bench", resets=False)
        guest.wait_ready()
        ready = time.perf_counter() - begin
        phases = dict(guest.boot_phases)
        before_power_on = ready - phases["ready"]
        begin = time.perf_counter()
        run.remove(guest)
        teardown = time.perf_counter() - begin
        moved = {phase: seconds + before_power_on for phase, seconds in phases.items()}
        return moved | {"ready": ready, "teardown": teardown}
    finally:
        run.close()


def lean_seed(key: KeyPair) -> bytes:
    """Return the seed that the plugin writes."""
    host = new_key_pair()
    identity = Identity(
        instance_id="bench",
        hostname="bench",
        authorized_key=key.public,
        host_private_key=host.private,
        host_public_key=host.public,
    )
    return seed_bytes(SPEC, identity, control_mac=MAC, nics=[], packages=[])


def stock_seed(key: KeyPair) -> bytes:
    """Return the least a stock cloud image needs: a key, and everything else by default."""
    user = {"disable_root": False, "users": [{"name": "root", "ssh_authorized_keys": [key.public]}]}
    files = {"meta-data": "instance-id: bench\n", "user-data": "#cloud-config\n" + yaml.safe_dump(user)}
    return iso_bytes("cidata", files)


def ratios(times: dict[str, list[Times]]) -> dict[str, float]:
    """Return the median of each ratio, round by round."""

    def of(one: str, other: str, phase: str) -> float:
        pairs = zip(times[one], times[other], strict=True)
        return round(statistics.median(a[phase] / b[phase] for a, b in pairs), 3)

    found = {f"plugin / raw, {phase}": of("plugin", "raw", phase) for phase in ("login", "ready")}
    if times.get("stock"):
        found["raw / stock, login"] = of("raw", "stock", "login")
    return found | {"teardown": round(statistics.median(each["teardown"] for each in times["plugin"]), 3)}


def measure(rounds: int, *, image: str, stock: bool) -> dict[str, list[Times]]:
    """Boot everything in turn."""
    settings = settings_from([from_environment])
    key = new_key_pair()
    raw = Raw(image=ensure(ImageRef(image), settings=settings), seed=lean_seed(key), key=key)
    runners = {"plugin": lambda: alone(through_plugin, settings), "raw": raw.times}
    if stock:
        stock_image = ensure(ImageRef(f"{image}-stock"), settings=settings)
        runners["stock"] = Raw(image=stock_image, seed=stock_seed(key), key=key).times
    alone(through_plugin, settings)  # page cache, libvirt's capability cache
    times: dict[str, list[Times]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, boot in runners.items():
            times[name].append(boot())
    return times


def show(times: dict[str, list[Times]], found: dict[str, float]) -> None:
    """Print medians of each phase, and ratios beside their aims."""
    phases = list(dict.fromkeys(phase for each in times.values() for one in each for phase in one))
    table = Table("seconds, median", *times)
    for phase in phases:
        cells = [[one[phase] for one in each if phase in one] for each in times.values()]
        table.add_row(phase, *(f"{statistics.median(cell):.2f}" if cell else "" for cell in cells))
    summary = Table("figure", "measured", "aim")
    for name, value in found.items():
        summary.add_row(name, f"{value:.3f}", f"≤ {AIMS[name]}")
    console = Console()
    console.print(table, summary)


def main() -> None:
    """Print the tables, and write JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image", default="debian-13")
    parser.add_argument(
        "--no-stock", action="store_true", help="leave the stock image out: it boots for minutes"
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    times = measure(arguments.rounds, image=arguments.image, stock=not arguments.no_stock)
    found = ratios(times)
    show(times, found)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"times": times, "ratios": found, "aims": AIMS}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
