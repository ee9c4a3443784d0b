"""The readiness ladder: from power on to a guest that a test can use.

::

    power on → console speaks → SSH banner → login → cloud-init done → units active

Each rung has error classes of its own (:mod:`pytest_kvm.errors`). A boot fails as
soon as the guest shows that it is broken, without waiting for the deadline.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from pytest_kvm.errors import (
    GuestGone,
    LoginRefused,
    SshNeverAnswered,
    SshUnavailable,
    UnitFailed,
    UnitNotActive,
    WaitTimeout,
)
from pytest_kvm.machine.boot import Boot, Phases
from pytest_kvm.machine.cloud_init import keys_are_written, wait_for_cloud_init
from pytest_kvm.machine.console_errors import ConsoleWatch
from pytest_kvm.machine.machine import Machine
from pytest_kvm.machine.ssh_wait import SshStuckDetector, wait_for_banner
from pytest_kvm.machine.waits import wait_for_unit
from pytest_kvm.waiting import NotYet, wait_until

_LOGIN_PAUSE = 0.5


def wait_until_ready(
    machine: Machine, *, phases: Phases, units: Sequence[str] = (), boot_timeout: float | None = None
) -> None:
    """Wait until the guest is ready.

    Args:
        machine: The guest, powered on; its shell is logged in afterwards.
        phases: The boot's stopwatch, started at power on.
        units: systemd units that must be active.
        boot_timeout: Seconds for all rungs together; None: each rung has its own
            (:class:`~pytest_kvm.settings.Timeouts`).

    Raises:
        BootFailed: The guest did not become ready; the subclass names the rung.
    """
    clock = machine.domain.clock
    begun = clock() - phases.elapsed()
    boot = Boot(machine=machine, phases=phases, watch=ConsoleWatch(machine.console, clock=clock))

    def seconds_left(own: float) -> float:
        return own if boot_timeout is None else max(0.0, boot_timeout - (clock() - begun))

    limits = machine.timeouts
    log_in(boot, banner=seconds_left(limits.boot), login=lambda: seconds_left(limits.login))
    wait_for_cloud_init(boot, timeout=seconds_left(machine.timeouts.cloud_init))
    phases.reached("cloud_init")
    for unit in units:
        _wait_for_wanted_unit(boot, unit, timeout=seconds_left(machine.timeouts.command))
    phases.reached("ready")


def log_in(boot: Boot, *, banner: float, login: Callable[[], float]) -> None:
    """Wait for sshd's banner and log in; the machine's shell is connected afterwards.

    A refused key is final once cloud-init has written the users' keys. Before
    that, sshd has only started early, and the login is tried again.

    Args:
        boot: The boot.
        banner: Seconds to wait for the banner.
        login: Returns the seconds from the banner to a login; called when the banner has come.

    Raises:
        SshNeverAnswered: No banner came.
        LoginRefused: sshd refused the key, or showed a foreign host key.
        BootFailed: The guest died on the way.
    """
    clock = boot.machine.domain.clock
    line = wait_for_banner(boot, timeout=banner, check_stuck=SshStuckDetector(boot, clock=clock))
    boot.phases.reached("banner")
    seconds = login()
    attempts = _LoginAttempts(boot, line, until=clock() + seconds)
    try:
        wait_until(
            attempts.make,
            describe="a login",
            timeout=seconds,
            every=_LOGIN_PAUSE,
            error=LoginRefused,
            log=boot.machine.log,
            clock=clock,
        )
    except (LoginRefused, SshNeverAnswered) as error:
        last = attempts.refusal or error
        if isinstance(last, SshNeverAnswered):
            raise
        raise boot.failure(
            LoginRefused, last.brief, details=last.details, resolution=last.resolution or _WHY_REFUSED
        ) from error
    boot.phases.reached("login")


class _LoginAttempts:
    """Logins, tried until one works.

    Args:
        boot: The boot.
        line: A connection with sshd's banner unread, for the first attempt.
        until: When the last attempt has to be over, by the domain's clock.
    """

    def __init__(self, boot: Boot, line: socket.socket, *, until: float) -> None:
        self._boot = boot
        self._line: socket.socket | None = line
        self._until = until
        self.refusal: LoginRefused | None = None
        """The last error with which sshd refused the key."""

    def make(self) -> None:
        """Try to log in once; raise NotYet if another attempt may succeed."""
        shell = self._boot.machine.shell
        line, self._line = self._line or self._next_line(), None
        is_final = self.refusal is not None and keys_are_written(self._boot)
        try:
            self._boot.run_watched(lambda: shell.connect(line))
        except LoginRefused as error:
            self.refusal = error
            if is_final:
                raise
            raise NotYet(error.brief) from error
        except SshUnavailable as error:
            raise NotYet(error.brief) from error
        finally:
            if not shell.connected:
                line.close()

    def _next_line(self) -> socket.socket:
        return wait_for_banner(
            self._boot, timeout=self._until - self._boot.machine.domain.clock(), known=True
        )


_WHY_REFUSED = (
    "the seed's key never reached the user's authorized_keys: does the image run cloud-init, "
    "and does the spec's user-data replace 'users' or 'ssh_authorized_keys'?"
)


def _wait_for_wanted_unit(boot: Boot, unit: str, *, timeout: float) -> None:
    try:
        wait_for_unit(boot.machine, unit, timeout=timeout)
    except GuestGone:
        boot.check()  # raises the boot's own error if it can tell why
        raise
    except (UnitFailed, WaitTimeout) as error:
        raise boot.failure(
            UnitNotActive, error.brief, details=error.details, resolution=error.resolution
        ) from error
    boot.phases.reached(unit)
