"""What a boot that was made once saves: clones, resets, many guests, teardown.

All in one run, round by round, so that the machine's mood meets everybody. Each
figure stands beside its aim and beside the same done by hand with QEMU alone:
the clone's own arguments, ``migrate-incoming``, ``cont`` (or ``loadvm``), the
first answer; by hand nothing of the guest is renewed, and OpenSSH logs in.

warm    a pytest process of its own, template in the cache
reset   one test changed the guest, the next one wants it as it was
hit     a clone was parked ahead; miss: it has to be made; load: in place
crowd   N clones at once, idle

The cache is one of its own, for the first boot is measured, too.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from bench.boot import Quiet, Raw, stock_seed
from bench.crowd import Crowd, crowd
from bench.processes import alone
from bench.raw_clone import Recipe, raw_times
from bench.resets import by_load, by_new_clone, by_pool, running
from bench.state_table import Times, crowd_table, rows, table
from bench.warm_start import warm_start
from pytest_kvm.boot_cache import ram_file
from pytest_kvm.host.ssh_keys import new_key_pair
from pytest_kvm.images.ensure import ensure
from pytest_kvm.options import from_environment, settings_from
from pytest_kvm.provision.reset_coordinator import ResetCoordinator
from pytest_kvm.provision.run import Run
from pytest_kvm.settings import RamPlace, Settings
from pytest_kvm.spec.guest import GuestSpec
from pytest_kvm.spec.image import ImageRef

MEMORY_MIB = 512
SPEC = GuestSpec(memory=f"{MEMORY_MIB}MiB", vcpus=1)
CROWDS = (1, 2, 4, 8, 16, 24)
QUICK_CROWDS = (1, 2, 8)


@contextmanager
def own_cache(settings: Settings, *, ram_place: RamPlace) -> Iterator[Settings]:
    """Hand out settings with an empty boot cache and the images that are there."""
    try:
        with tempfile.TemporaryDirectory(prefix="kvm-bench-", dir="/var/tmp") as name:
            images = Path(name, "images")
            images.symlink_to(settings.cache_dir / "images")
            yield replace(settings, cache_dir=Path(name), pool=0, cache_ram=ram_place)
    finally:
        ram_file.sweep()


def stock_boot(settings: Settings) -> Times:
    """Boot a stock cloud image by hand and return when it let somebody in."""
    image = ensure(ImageRef(f"{settings.default_image}-stock"), settings=settings)
    key = new_key_pair()
    raw = Raw(image=image, seed=stock_seed(key), key=key, memory_mib=MEMORY_MIB, vcpus=1)
    return {f"stock boot to {phase}": [seconds] for phase, seconds in raw.times().items()}


def started(settings: Settings) -> tuple[float, float]:
    """Start a guest in a run of its own and return when the agent and when SSH answered."""
    run = Run(settings, progress=Quiet(), coordinator=ResetCoordinator())
    try:
        began = time.perf_counter()
        guest = run.start(SPEC, name="bench", resets=False)
        guest.agent.ping()
        agent = time.perf_counter() - began
        guest.run(["true"])
        return agent, time.perf_counter() - began
    finally:
        run.close()


def one_round(disk: Settings, tmpfs: Settings) -> Times:
    """Do everything but boots and crowds once."""
    found: Times = {}
    for place, settings in (("", disk), (", RAM on tmpfs", tmpfs)):
        for first in ("agent", "ssh"):
            for what, took in warm_start(settings, first=first).items():
                found[f"warm: {what}{place}"] = [took]
    found |= {f"raw: {what}": [seconds] for what, seconds in alone(by_hand, disk).items()}
    for way, reset in (("hit", by_pool), ("miss", by_new_clone), ("load", by_load)):
        resets = alone(reset, disk, SPEC, rounds=1)
        found |= {f"reset: {way} to {what}": seconds for what, seconds in resets.items()}
    return found


def by_hand(settings: Settings) -> dict[str, float]:
    """Do the same with QEMU alone, beside a clone that shows how."""
    with running(settings, SPEC, coordinator=ResetCoordinator()) as (_, guest):
        return raw_times(Recipe.of(guest.machine), settings.cache_dir / "raw")


def crowds(settings: Settings, sizes: tuple[int, ...]) -> list[Crowd]:
    """Measure crowds of these sizes, in a run that is warm."""
    with running(settings, SPEC, coordinator=ResetCoordinator()) as (run, guest):
        run.remove(guest)
        return [crowd(run, SPEC, clones=clones) for clones in sizes]


def measure(*, rounds: int, sizes: tuple[int, ...], stock: bool) -> tuple[Times, list[Crowd]]:
    """Measure everything in turn."""
    times: Times = defaultdict(list)
    base = settings_from([from_environment])
    ensure(ImageRef.parse(base.default_image), settings=base)
    if stock:
        times |= stock_boot(base)
    with own_cache(base, ram_place="disk") as disk, own_cache(base, ram_place="tmpfs") as tmpfs:
        for settings, boot in ((disk, "first start"), (replace(disk, cache="off"), "cold"), (tmpfs, "")):
            agent, ssh = alone(started, settings)
            if boot:
                times[f"{boot} to agent"].append(agent)
                times[f"{boot} to ssh"].append(ssh)
        for _ in range(rounds):
            for what, seconds in one_round(disk, tmpfs).items():
                times[what] += seconds
        return times, alone(crowds, disk, sizes)


def main() -> None:
    """Print the tables, and write JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two rounds, small crowds, no stock image")
    parser.add_argument("--no-stock", action="store_true", help="leave the stock image out: it boots slowly")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    quick = arguments.quick
    load = [os.getloadavg()]
    times, found = measure(
        rounds=2 if quick else arguments.rounds,
        sizes=QUICK_CROWDS if quick else CROWDS,
        stock=not (quick or arguments.no_stock),
    )
    load.append(os.getloadavg())
    figures = rows(times, found)
    Console().print(table(figures), crowd_table(found))
    print(f"load of a minute: {load[0][0]:.1f} before, {load[1][0]:.1f} after; {os.cpu_count()} processors")
    if arguments.json:
        document = {
            "times": times,
            "crowds": [asdict(each) for each in found],
            "figures": [asdict(each) for each in figures],
            "load": load,
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
