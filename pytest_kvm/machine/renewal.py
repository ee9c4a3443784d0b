"""Makes a restored guest a guest of its own, before anybody uses it.

Whatever was restored from one memory image has the same random numbers to
come, the same clock and the same names. A small program in the guest
(:mod:`~pytest_kvm.machine.renewal_script`) changes that: started by the guest
agent, over SSH where there is none, or *parked*: started before the guest was
frozen and waiting in each restored one, which spares a translated guest the
start of an interpreter.
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
from pytest_kvm.waiting import NotYet, wait_until

if TYPE_CHECKING:
    from pytest_kvm.host.keys import KeyPair
    from pytest_kvm.machine.machine import Machine
    from pytest_kvm.settings import Timeouts

_log = logging.getLogger("pytest_kvm.renewal")
_PYTHON = ("python3", "-I", "-S", "-c")
_FIFO = "/run/pytest-kvm-renewal-"
"""Followed by a random part: each program waits at its own."""
_SEED_BYTES = 256
_CONNECTED_WITHIN = 5.0
"""Seconds after which a guest has no agent; one that was resumed is not
connected for the first few milliseconds."""
_GREETING_WITHIN = 3.0
"""Seconds for the first answer: a question asked while the agent was about to
connect is lost, and whoever waits for the answer waits in vain."""
_LOOK_EVERY = 0.004
_VISIBLE = 100_000_000
"""Nanoseconds by which the clock has to be wrong for its being set to be noticed."""
_RIGHT = 30_000_000
"""Nanoseconds by which a clock that was set may be wrong."""
_MOVED_WITHIN = 2.0
_SAMPLES = 5
_GOOD_ROUND_TRIP = 60_000_000
"""Nanoseconds; the clock is then off by at most half of it."""


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """What a restored guest gets of its own, beside random numbers and the time."""

    hostname: str | None = None
    """The kernel's, ``/etc/hostname`` and the loopback lines of ``/etc/hosts``."""
    machine_id: str | None = None
    """32 hexadecimal digits for ``machine-id(5)``. Running daemons go on with
    what they have read: journald with its folder, D-Bus with its own copy."""
    host_key: KeyPair | None = None
    """sshd's ed25519 host key. Whoever logs in afterwards must pin the new one."""
    macs: Sequence[tuple[str, str]] = ()
    """(old, new) addresses of network cards; leases of ``systemd-networkd`` are renewed."""


class Parked(NamedTuple):
    """The agent's numbers of a parked program: part of the memory image it waits in."""

    pid: int
    handle: int
    """The FIFO's."""


def renew(machine: Machine, wish: Renewal | None = None, *, parked: Parked | None = None) -> None:
    """Reseed the guest's random numbers, set its clock, and renew what is wished for.

    The clock is measured from here and moved by the difference, so that the
    time it takes to tell the guest is not part of the error.

    Args:
        machine: The guest, running since a moment ago.
        wish: What else it gets of its own.
        parked: From :func:`park`, called before what it was restored from was saved.

    Raises:
        GuestError: The guest could not do it.
        GuestGone: The guest ended.
        SshUnavailable: It has no agent, and SSH did not answer either.
    """
    wish = wish or Renewal()
    agent = GuestAgent(machine.domain, timeout=machine.timeouts.agent)
    try:
        wait_until(
            partial(_check_connected, GuestAgent(machine.domain, timeout=_GREETING_WITHIN)),
            describe=f"the agent of {machine.name}",
            timeout=_CONNECTED_WITHIN if parked is None else machine.timeouts.agent,
            every=_LOOK_EVERY,
            error=AgentError,
            clock=machine.domain.clock,
        )
        failed = _renewed_by_agent(agent, wish, parked=parked, timeouts=machine.timeouts)
    except AgentError as absent:
        machine.log.info("%s: renewed over SSH: %s", machine.name, absent.brief)
        failed = _renewed_over_ssh(machine, wish)
    if failed:
        raise GuestError(
            f"{machine.name}: could not be made a guest of its own: {failed.splitlines()[-1]}",
            details=failed,
            resolution="the guest needs python3; what it cannot renew can be left out of the wish",
        )


def park(machine: Machine) -> Parked | None:
    """Start the program that renews a guest, and leave it waiting there.

    It ends with the renewal: :func:`renew` the guest after it was saved, too.

    Returns:
        What :func:`renew` has to be given; None where the guest's agent
        cannot start it, and nothing is waiting.
    """
    agent = GuestAgent(machine.domain, timeout=machine.timeouts.agent)
    fifo = _FIFO + secrets.token_hex(4)
    try:
        pid = agent.start([*_PYTHON, _script(), fifo])
        handle = wait_until(
            partial(_opened, agent, fifo),
            describe=f"{machine.name} to be ready to be renewed",
            timeout=machine.timeouts.agent,
            every=0.02,
            clock=machine.domain.clock,
        )
    except (AgentError, WaitTimeout) as error:
        machine.log.info("%s: nothing is parked: %s", machine.name, error.brief)
        return None
    return Parked(pid, handle)


def _opened(agent: GuestAgent, fifo: str) -> int:
    try:
        return agent.open(fifo)
    except AgentError as error:
        raise NotYet(error.brief) from error


# ------------------------------------------------------------ what is ordered


def _orders(wish: Renewal, *, clock: int) -> bytes:
    orders = [f"seed {_encoded(os.urandom(_SEED_BYTES))}"]
    if wish.hostname is not None:
        orders.append(f"hostname {_encoded(wish.hostname.encode())}")
    if wish.machine_id is not None:
        orders.append(f"machine-id {wish.machine_id}")
    orders += [f"mac {old} {new}" for old, new in wish.macs]
    if wish.macs:
        orders.append("leases")
    if wish.host_key is not None:
        private, public = wish.host_key.private.encode(), f"{wish.host_key.public}\n".encode()
        orders.append(f"host-key {_encoded(private)} {_encoded(public)}")
    return "".join(f"{order}\n" for order in [*orders, f"clock {clock}", "end"]).encode()


def _encoded(data: bytes) -> str:
    return b64encode(data).decode()


def _script() -> str:
    return Path(renewal_script.__file__).read_text(encoding="utf-8")


def _clock_error(ask: Callable[[], int]) -> int:
    """Return by how many nanoseconds the guest's wall clock is ahead of the host's.

    Args:
        ask: Returns the guest's time. The answer was true at some moment of
            the call; the shorter the call, the less that says.
    """
    looks: list[tuple[int, int]] = []
    while len(looks) < _SAMPLES and (not looks or min(looks)[0] > _GOOD_ROUND_TRIP):
        looks.append(_look(ask))
    return min(looks)[1]


def _look(ask: Callable[[], int]) -> tuple[int, int]:
    """Return the nanoseconds a look at the guest's clock took, and by how many it is ahead."""
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


def _renewed_by_agent(agent: GuestAgent, wish: Renewal, *, parked: Parked | None, timeouts: Timeouts) -> str:
    """Return why it failed, "" if it did not."""
    if parked is not None:
        try:
            failed = _carried_out(agent, wish, give=partial(_tell, agent, parked), timeout=timeouts.agent)
        except (AgentError, WaitTimeout) as error:
            failed = error.brief
        if not failed:
            return ""
        _log.warning("the parked program is of no use, another is started: %s", failed)
    return _carried_out(agent, wish, give=partial(_start, agent), timeout=timeouts.command)


def _tell(agent: GuestAgent, parked: Parked, orders: bytes) -> int:
    agent.write(parked.handle, orders)
    return parked.pid


def _start(agent: GuestAgent, orders: bytes) -> int:
    return agent.start([*_PYTHON, _script()], input=orders)


def _carried_out(agent: GuestAgent, wish: Renewal, *, give: Callable[[bytes], int], timeout: float) -> str:
    """Give orders to a program in the guest; return why it failed, "" if it did not.

    The clock is the last order: once it is right, all is done. The program's
    end, which says the same, takes a translated guest a tenth of a second more.
    """
    error = _clock_error(partial(_agent_time, agent))
    pid = give(_orders(wish, clock=-error))
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


def _renewed_over_ssh(machine: Machine, wish: Renewal) -> str:
    """Return why it failed, "" if it did not."""
    process = machine.shell.start([*_PYTHON, _script()], user="root")
    try:
        lines = process.lines()

        def ask() -> int:
            process.write("time\n")
            return int(next(lines))

        process.write(_orders(wish, clock=-_clock_error(ask)))
        result = process.wait()
    finally:
        process.release()
    return "" if result.exit_code == 0 else result.stderr.strip() or f"exit code {result.exit_code}"
