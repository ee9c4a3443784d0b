"""Resets as tests cause them: somebody changed the guest, somebody else wants it as it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from bench.boot import Quiet
from bench.processes import wait_parked
from pytest_kvm.handles.guest import Guest
from pytest_kvm.provision.reset_coordinator import ResetCoordinator
from pytest_kvm.provision.run import Run
from pytest_kvm.provision.undo_log import Owner
from pytest_kvm.settings import Settings
from pytest_kvm.spec.guest import GuestSpec
from pytest_kvm.spec.network import NetworkSpec
from pytest_kvm.spec.nic import Nic

Use = Callable[[Guest], object]
FIRST: dict[str, Use] = {"agent": lambda guest: guest.agent.ping(), "ssh": lambda guest: guest.run(["true"])}
"""What the test does first after the reset."""
Times = dict[str, list[float]]


@contextmanager
def running(
    settings: Settings, spec: GuestSpec, *, coordinator: ResetCoordinator
) -> Iterator[tuple[Run, Guest]]:
    """Start a guest in a run of its own, with the template in the cache."""
    run = Run(settings, progress=Quiet(), coordinator=coordinator)
    try:
        guest = run.start(spec, name="bench")
        guest.wait_ready()
        yield run, guest
    finally:
        run.close()


def by_pool(settings: Settings, spec: GuestSpec, *, rounds: int) -> Times:
    """Swap in a clone that is parked already."""
    return _by_clone(replace(settings, pool=1), spec, rounds=rounds, prepare=_parked)


def by_new_clone(settings: Settings, spec: GuestSpec, *, rounds: int) -> Times:
    """Make a clone and swap it in."""
    return _by_clone(replace(settings, pool=0), spec, rounds=rounds, prepare=lambda _: None)


def by_load(settings: Settings, spec: GuestSpec, *, rounds: int) -> Times:
    """Load a savepoint in place; also how long it takes to take one."""
    times: Times = {each: [] for each in [*FIRST, "take"]}
    with running(replace(settings, pool=0), spec, coordinator=ResetCoordinator()) as (_, guest):
        began = time.perf_counter()
        point = guest.savepoint()
        times["take"].append(time.perf_counter() - began)
        for _ in range(rounds):
            for what, use in FIRST.items():
                _change(guest)
                began = time.perf_counter()
                point.restore()
                use(guest)
                times[what].append(time.perf_counter() - began)
                _check_undone(guest)
    return times


def of_several(
    settings: Settings, spec: GuestSpec, *, counts: tuple[int, ...], rounds: int, spares: bool
) -> dict[int, list[float]]:
    """Return the seconds until so many guests, of those that a segment joins, answer after their reset.

    Args:
        settings: Where the template is, among others.
        spec: The guests', but for their cards.
        counts: How many guests are reset, in turn.
        rounds: How many times.
        spares: Whether a clone is parked for each guest.
    """
    times: dict[int, list[float]] = {count: [] for count in counts}
    coordinator = ResetCoordinator()
    run = Run(replace(settings, pool=1 if spares else 0), progress=Quiet(), coordinator=coordinator)
    try:
        segment = run.segments.make("lan", NetworkSpec())
        spec = replace(spec, nics=[Nic(segment)])
        guests = [run.start(spec, name=f"guest{number}") for number in range(max(counts))]
        for _ in range(rounds):
            for count in counts:
                with _test(coordinator, "a test changes some"):
                    for guest in guests[:count]:
                        _change(guest)
                    if spares:
                        _parked(*guests)
                times[count].append(_reset_together(coordinator, guests[:count]))
        return times
    finally:
        run.close()


def _reset_together(coordinator: ResetCoordinator, guests: list[Guest]) -> float:
    with _test(coordinator, "the next finds nothing"):
        began = time.perf_counter()
        coordinator.settle(guests)
        for guest in guests:
            guest.agent.ping()
        took = time.perf_counter() - began
        for guest in guests:
            _check_undone(guest)
    return took


def _by_clone(settings: Settings, spec: GuestSpec, *, rounds: int, prepare: Callable[[Guest], None]) -> Times:
    coordinator = ResetCoordinator()
    times: Times = {each: [] for each in FIRST}
    with running(settings, spec, coordinator=coordinator) as (_, guest):
        for number in range(rounds):
            for what, use in FIRST.items():
                with _test(coordinator, f"test {number} changes"):
                    _change(guest)
                    prepare(guest)
                with _test(coordinator, f"test {number} finds nothing"):
                    began = time.perf_counter()
                    coordinator.settle([guest])
                    use(guest)
                    times[what].append(time.perf_counter() - began)
                    _check_undone(guest)
    return times


@contextmanager
def _test(coordinator: ResetCoordinator, name: str) -> Iterator[None]:
    """Do what the plugin does around a test."""
    owner = Owner(name)
    with coordinator.at_work(owner):
        yield
    owner.ended = True
    coordinator.cut_off(owner)


def _change(guest: Guest) -> None:
    guest.run(["touch", "/root/changed"])


def _check_undone(guest: Guest) -> None:
    guest.run(["test", "!", "-e", "/root/changed"])


def _parked(*guests: Guest) -> None:
    pids = {guest.machine.domain.pid for guest in guests} - {None}
    if len(pids) < len(guests):
        raise SystemExit("bench: guests must run on this machine")
    wait_parked({pid for pid in pids if pid is not None})
