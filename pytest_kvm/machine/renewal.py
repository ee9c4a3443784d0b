"""Gives a restored guest its own random numbers, clock and names, before a test uses it.

All guests that are restored from one memory image draw the same random numbers,
and have the same clock and the same names. A script in the guest
(:mod:`~pytest_kvm.machine.renewal_script`) changes that. The guest agent starts
it, or SSH where there is no agent. It can also be *prestarted*: started before
the guest is saved, so that it waits in each restored guest. Starting a Python
interpreter takes a guest under TCG a second or two.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pytest_kvm.errors import AgentError, GuestError, WaitTimeout
from pytest_kvm.machine import renewal_script
from pytest_kvm.machine.agent import GuestAgent
from pytest_kvm.machine.network_services import (
    CardNetwork,
    NetworkService,
    ask_for_lease,
    settings_file,
)
from pytest_kvm.waiting import NotYet, wait_until

if TYPE_CHECKING:
    from pytest_kvm.host.ssh_keys import KeyPair
    from pytest_kvm.machine.machine import Machine
    from pytest_kvm.settings import Timeouts

_log = logging.getLogger("pytest_kvm.renewal")
_PYTHON = ("python3", "-I", "-S", "-c")
_FIFO = "/run/pytest-kvm-renewal-"
"""Followed by a random part: each prestarted script waits at a FIFO of its own."""
_SEED_BYTES = 256
_CONNECTED_WITHIN = 5.0
"""Seconds to wait for the agent before the guest is taken to have none. After a
resume the agent is not connected for a few milliseconds."""
_GREETING_WITHIN = 3.0
"""Seconds to wait for the answer to one question. QEMU drops a question that is
asked just before the agent connects; it is asked again after this time."""
_LOOK_EVERY = 0.004
_VISIBLE = 100_000_000
"""Nanoseconds. A clock that was wrong by more is watched: it jumps when it is set."""
_RIGHT = 30_000_000
"""Nanoseconds by which a clock may be wrong after it was set."""
_MOVED_WITHIN = 2.0
_SAMPLES = 5
_GOOD_ROUND_TRIP = 60_000_000
"""Nanoseconds. The error of a measurement is at most half of its round trip."""


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """What is changed in a restored guest, besides its random numbers and its clock."""

    hostname: str | None = None
    """The kernel's, ``/etc/hostname`` and the loopback lines of ``/etc/hosts``."""
    machine_id: str | None = None
    """32 hexadecimal digits for ``machine-id(5)``. Daemons that run keep the old
    one: journald writes into its old folder, D-Bus has a copy of its own."""
    host_key: KeyPair | None = None
    """sshd's ed25519 host key. The next login must pin the new one."""
    hosts: str = ""
    """Text to append to ``/etc/hosts``."""
    macs: Sequence[tuple[str, str]] = ()
    """(old, new) addresses of network cards."""
    networks: Sequence[CardNetwork] = ()
    """Settings of cards on segments; made after their MAC addresses are changed."""
    network_service: NetworkService | None = None
    """What makes the settings of ``networks`` again when the guest boots."""
    renews_leases: bool = False
    """Whether ``systemd-networkd`` is to ask for addresses anew."""


class Prestarted(NamedTuple):
    """A prestarted script, as the guest agent knows it. Both numbers are part of the saved memory."""

    pid: int
    handle: int
    """The agent's handle of the FIFO that the script waits at."""


def renew(machine: Machine, renewal: Renewal | None = None, *, prestarted: Prestarted | None = None) -> None:
    """Reseed the guest's random numbers, set its clock, and make the changes that ``renewal`` lists.

    The host measures how wrong the guest's clock is, and the guest moves it by
    that difference. So the time that the message takes does not count.

    Args:
        machine: The guest; it was resumed a moment ago.
        renewal: What to change besides random numbers and clock.
        prestarted: What :func:`prestart` returned before the guest was saved.

    Raises:
        GuestError: The guest could not do it.
        GuestGone: The guest ended.
        SshUnavailable: The guest has no agent, and SSH did not answer either.
    """
    renewal = renewal or Renewal()
    agent = GuestAgent(machine.domain, timeout=machine.timeouts.agent)
    try:
        wait_until(
            partial(_check_connected, GuestAgent(machine.domain, timeout=_GREETING_WITHIN)),
            describe=f"the agent of {machine.name}",
            timeout=_CONNECTED_WITHIN if prestarted is None else machine.timeouts.agent,
            every=_LOOK_EVERY,
            error=AgentError,
            clock=machine.domain.clock,
        )
        failed = _renew_by_agent(agent, renewal, prestarted=prestarted, timeouts=machine.timeouts)
    except AgentError as absent:
        machine.log.info("%s: renewed over SSH: %s", machine.name, absent.brief)
        failed = _renew_over_ssh(machine, renewal)
    if failed:
        raise GuestError(
            f"{machine.name}: could not be made a guest of its own: {failed.splitlines()[-1]}",
            details=failed,
            resolution="the guest needs python3; with --kvm-cache=off it is not cloned",
        )


def prestart(machine: Machine) -> Prestarted | None:
    """Start the renewal script in the guest; it waits at a FIFO until :func:`renew` sends it orders.

    The script waits in the saved guest and in each guest that is restored from
    it. It ends when it is used, so call :func:`renew` also for a saved guest
    that runs on.

    Returns:
        What to give to :func:`renew`; None if the guest's agent cannot start the script.
    """
    agent = GuestAgent(machine.domain, timeout=machine.timeouts.agent)
    fifo = _FIFO + secrets.token_hex(4)
    try:
        pid = agent.start([*_PYTHON, _script(), fifo])
        handle = wait_until(
            partial(_open_fifo, agent, fifo),
            describe=f"{machine.name} to be ready to be renewed",
            timeout=machine.timeouts.agent,
            every=0.02,
            clock=machine.domain.clock,
        )
    except (AgentError, WaitTimeout) as error:
        machine.log.info("%s: the renewal script was not prestarted: %s", machine.name, error.brief)
        return None
    return Prestarted(pid, handle)


def _open_fifo(agent: GuestAgent, fifo: str) -> int:
    try:
        return agent.open(fifo)
    except AgentError as error:
        raise NotYet(error.brief) from error


# ------------------------------------------------------------ orders and clock


def _orders(renewal: Renewal, *, clock: int) -> bytes:
    orders = [f"seed {_base64(os.urandom(_SEED_BYTES))}"]
    if renewal.hostname is not None:
        orders.append(f"hostname {_base64(renewal.hostname.encode())}")
    if renewal.machine_id is not None:
        orders.append(f"machine-id {renewal.machine_id}")
    if renewal.hosts:
        orders.append(f"hosts {_base64(renewal.hosts.encode())}")
    orders += [f"mac {old} {new}" for old, new in renewal.macs]
    for card in renewal.networks:
        orders.append(" ".join(["network", card.mac, str(card.mtu), *card.addresses]))
        orders += [f"router {card.mac} {each} {card.metric}" for each in card.gateways]
        if renewal.network_service is not None:
            orders += _settings_orders(renewal.network_service, card)
    if renewal.renews_leases:
        orders.append("leases")
    if renewal.host_key is not None:
        private, public = renewal.host_key.private.encode(), f"{renewal.host_key.public}\n".encode()
        orders.append(f"host-key {_base64(private)} {_base64(public)}")
    return "".join(f"{order}\n" for order in [*orders, f"clock {clock}", "end"]).encode()


def _settings_orders(service: NetworkService, card: CardNetwork) -> list[str]:
    file = settings_file(service, card)
    orders = [f"settings {card.mac} {file.path} {file.mode:o} {_base64(file.text.encode())}"]
    if card.dhcp:
        orders += [f"run {card.mac} {' '.join(command)}" for command in ask_for_lease(service, card)]
    return orders


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _script() -> str:
    return Path(renewal_script.__file__).read_text(encoding="utf-8")


def _clock_error(ask: Callable[[], int]) -> int:
    """Return by how many nanoseconds the guest's wall clock is ahead of the host's.

    Args:
        ask: Returns the guest's time. It was read at some moment of the call, so a
            short call makes a good measurement.
    """
    looks: list[tuple[int, int]] = []
    while len(looks) < _SAMPLES and (not looks or min(looks)[0] > _GOOD_ROUND_TRIP):
        looks.append(_look(ask))
    return min(looks)[1]


def _look(ask: Callable[[], int]) -> tuple[int, int]:
    """Return how long a look at the guest's clock took, and how far the clock is ahead, in nanoseconds."""
    before = time.time_ns()
    told = ask()
    after = time.time_ns()
    return after - before, told - (before + after) // 2


# ------------------------------------------------------------ by the agent


def _agent_time(agent: GuestAgent) -> int:
    return int(agent.call("guest-get-time"))


def _check_connected(agent: GuestAgent) -> None:
    try:
        _agent_time(agent)
    except AgentError as error:
        raise NotYet(error.brief) from error


def _renew_by_agent(
    agent: GuestAgent, renewal: Renewal, *, prestarted: Prestarted | None, timeouts: Timeouts
) -> str:
    """Return why it failed, "" if it did not."""
    if prestarted is not None:
        try:
            failed = _carry_out(
                agent, renewal, give=partial(_tell, agent, prestarted), timeout=timeouts.agent
            )
        except (AgentError, WaitTimeout) as error:
            failed = error.brief
        if not failed:
            return ""
        _log.info("the prestarted script failed, another is started: %s", failed)
        again = _carry_out(agent, renewal, give=partial(_start, agent), timeout=timeouts.command)
        # Not before: a guest that was removed meanwhile fails twice, which is nothing to warn of.
        _log.warning("a restored guest was renewed late, as its prestarted script failed: %s", failed)
        return again
    return _carry_out(agent, renewal, give=partial(_start, agent), timeout=timeouts.command)


def _tell(agent: GuestAgent, prestarted: Prestarted, orders: bytes) -> int:
    agent.write(prestarted.handle, orders)
    return prestarted.pid


def _start(agent: GuestAgent, orders: bytes) -> int:
    return agent.start([*_PYTHON, _script()], input=orders)


def _carry_out(agent: GuestAgent, renewal: Renewal, *, give: Callable[[bytes], int], timeout: float) -> str:
    """Send orders to a script in the guest; return why they failed, "" if they did not.

    Setting the clock is the last order: once the clock has jumped, all orders were
    carried out. Waiting for the script to end takes 0.1 s more under TCG.
    """
    error = _clock_error(partial(_agent_time, agent))
    pid = give(_orders(renewal, clock=-error))
    if abs(error) > _VISIBLE:
        with contextlib.suppress(WaitTimeout):
            wait_until(
                partial(_check_moved, agent),
                describe="the guest's clock to be set",
                timeout=_MOVED_WITHIN,
                every=_LOOK_EVERY,
            )
            return ""
    result = agent.finish(["renewal"], pid, timeout=timeout, every=_LOOK_EVERY)
    return "" if result.exit_code == 0 else result.stderr.strip() or f"exit code {result.exit_code}"


def _check_moved(agent: GuestAgent) -> None:
    round_trip, error = _look(partial(_agent_time, agent))
    if abs(error) - round_trip // 2 > _RIGHT:
        raise NotYet(f"off by {error / 1e9:.3f} s")


# ------------------------------------------------------------ over SSH


def _renew_over_ssh(machine: Machine, renewal: Renewal) -> str:
    """Return why it failed, "" if it did not."""
    process = machine.shell.start([*_PYTHON, _script()], user="root")
    try:
        lines = process.lines()

        def ask() -> int:
            process.write("time\n")
            return int(next(lines))

        process.write(_orders(renewal, clock=-_clock_error(ask)))
        result = process.wait()
    finally:
        process.release()
    return "" if result.exit_code == 0 else result.stderr.strip() or f"exit code {result.exit_code}"
