"""Readiness check of cloud-init: waits until cloud-init has ended, and reads its status files.

``/run/cloud-init/status.json`` and ``result.json`` are documented interfaces
(https://docs.cloud-init.io/en/latest/explanation/boot.html and
"/reference/cli.html#status"). ``cloud-init status --wait`` would tell the same,
but starts a Python interpreter, which takes seconds under TCG.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from pytest_kvm.errors import (
    AgentError,
    CloudInitFailed,
    CloudInitTimeout,
    CommandFailed,
    CommandTimeout,
    DomainFailed,
    GuestError,
    SshUnavailable,
)
from pytest_kvm.machine.agent import GuestAgent
from pytest_kvm.machine.boot import Boot
from pytest_kvm.results import streams_of
from pytest_kvm.waiting import NotYet, wait_until

if TYPE_CHECKING:
    from pytest_kvm.ssh.shell import Shell

_STATUS = "/run/cloud-init/status.json"
_OUTPUT = "/var/log/cloud-init-output.log"
_READ_TIMEOUT = 30.0
_EXIT_CODES_OF_THE_SCRIPT = range(129)
"""Exit codes of a program that ended by itself, not by a signal or a lost connection."""
_CUT = "\n---\n"
_WAIT = r"""
run=/run/cloud-init
end() {
    printf '%s\n---\n' "$1"; cat $run/status.json; printf '\n---\n'; cat $run/result.json; exit 0
} 2>/dev/null
[ ! -e $run/disabled ] || end absent
[ -d $run ] || command -v cloud-init >/dev/null 2>&1 || end absent
# Only what the shell has built in, but for the sleep: the guest is still booting.
said= turns=0
until [ -e $run/result.json ]; do
    now=
    [ -e $run/status.json ] && while read -r key value; do
        case $key in '"stage":') now=$value ;; esac
    done <$run/status.json
    [ "$now" = "$said" ] || { said=$now; echo "stage $said"; }
    turns=$((turns + 1))
    if [ $((turns % 25)) = 0 ] && command -v systemctl >/dev/null; then
        case $(systemctl show --property=ActiveState,Job cloud-final.service) in
            *Job=[1-9]* | *=activating* | *=active*) ;;
            *) [ -e $run/result.json ] || end ended ;;
        esac
    fi
    sleep 0.2
done
# power_state leaves a child of cloud-init behind that restarts the guest when cloud-init has ended.
at_work() {
    for process in /proc/[0-9]*/comm; do
        read -r name <"$process" && case $name in cloud-init | shutdown) return 0 ;; esac
    done
    return 1
} 2>/dev/null
while at_work; do sleep 0.2; done
state=
if command -v systemctl >/dev/null; then
    state=$(systemctl is-system-running) || [ $? -le 128 ] || state=stopping
fi
# A shutdown ends this shell, perhaps a moment after the program that it runs.
while [ "$state" = stopping ]; do sleep 1; done
end done
"""
_STAGE = re.compile(r'^stage "([a-z-]+)"', re.MULTILINE)
_NETWORK_STAGE_OVER = re.compile(r"running 'modules:(?:config|final)'|Cloud-init v\. \S+ finished")


def wait_for_cloud_init(boot: Boot, *, timeout: float) -> None:
    """Wait until cloud-init has finished; return at once if the image has no cloud-init.

    Raises:
        CloudInitFailed: cloud-init finished with errors, or its last stage ended
            without a result; with its error texts and the tail of its output.
        CloudInitTimeout: cloud-init still runs; the message names its stage.
        BootFailed: The guest died on the way.
    """
    verdict, status = _wait_for_end(boot, timeout=timeout)
    if verdict == "absent":
        boot.machine.log.debug("no cloud-init in this image")
        return
    for warning in status.warnings:
        boot.machine.log.warning("cloud-init: %s", warning)
    if status.errors or verdict == "ended":
        raise boot.failure(
            CloudInitFailed,
            f"cloud-init failed: {'; '.join(status.errors) or 'its last stage never ran to its end'}",
            details=_output(boot.machine.shell),
            resolution="the last lines of its output above usually name the command or module",
        )


def _wait_for_end(boot: Boot, *, timeout: float) -> tuple[str, Status]:
    """Wait until cloud-init ends; return the script's verdict (done, ended, absent) and the status."""
    shell, clock = boot.machine.shell, boot.machine.domain.clock
    deadline = clock() + timeout

    def wait_for_file() -> str:
        try:
            left = max(1.0, deadline - clock())
            waited = boot.run_watched(lambda: shell.run(["sh", "-c", _WAIT], timeout=left, check=False))
        except SshUnavailable as lost:  # user-data may restart the network
            raise NotYet(lost.brief) from lost
        except CommandFailed as never_run:
            raise _wait_failed(boot, never_run.brief, details=never_run.details) from never_run
        if waited.exit_code not in _EXIT_CODES_OF_THE_SCRIPT:  # the guest shuts down, and so ended the script
            shell.close()
            raise NotYet("the guest's shutdown ended the wait")
        if waited.stdout.count(_CUT) < 2:
            raise _wait_failed(boot, f"sh exited with {waited.exit_code}", details=streams_of(waited))
        return waited.stdout

    try:
        said = wait_until(
            wait_for_file, describe="cloud-init's end", timeout=timeout, error=CloudInitTimeout, clock=clock
        )
    except (CommandTimeout, CloudInitTimeout) as late:
        stages = _STAGE.findall(late.result.stdout) if isinstance(late, CommandTimeout) else []
        raise boot.failure(
            CloudInitTimeout,
            f"cloud-init still ran after {timeout:.0f} s, in its stage {stages[-1] if stages else 'unknown'}",
            details=_output(shell),
            resolution="shorten what it has to do (packages belong into the image) or raise boot_timeout",
        ) from late
    progress, status, result = said.split(_CUT, 2)
    return progress.split()[-1], Status.parse(status).or_else(Status.parse(result))


def _wait_failed(boot: Boot, why: str, *, details: str) -> GuestError:
    return boot.failure(
        CloudInitFailed,
        f"could not wait for cloud-init: {why}",
        details=details,
        resolution="see that the guest's login shell runs the commands it is given",
    )


@dataclass(frozen=True, kw_only=True)
class Status:
    """What cloud-init's status files say."""

    network_stage_over: bool = False
    """Whether users and their keys are written."""
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """Recoverable errors (cloud-init 23.4): bad user-data keys among them."""

    @classmethod
    def parse(cls, text: str) -> Status:
        """Read status.json or result.json; ignore what is not as documented."""
        try:
            v1 = _as_dict(_as_dict(json.loads(text)).get("v1"))
        except ValueError:
            return cls()
        stages = [_as_dict(part) for part in v1.values()]
        recoverable = [_as_dict(part.get("recoverable_errors")) for part in [v1, *stages]]
        return cls(
            network_stage_over=bool(_as_dict(v1.get("init")).get("finished")),
            errors=_texts(part.get("errors") for part in [v1, *stages]),
            warnings=_texts(messages for levels in recoverable for messages in levels.values()),
        )

    def or_else(self, other: Status) -> Status:
        """Return this status; errors or warnings that it lacks are taken from ``other``.

        The two are not added up, because result.json repeats the errors of status.json.
        """
        return replace(self, errors=self.errors or other.errors, warnings=self.warnings or other.warnings)


def keys_are_written(boot: Boot) -> bool:
    """Say whether cloud-init is past the stage that writes users and keys.

    Asks the guest agent, which needs no login; searches the console if the agent does not answer.
    """
    agent = GuestAgent(boot.machine.domain, timeout=5.0)
    try:
        return Status.parse(agent.read_text(_STATUS)).network_stage_over
    except (AgentError, DomainFailed):  # if QEMU has ended, the next check says so
        return bool(_NETWORK_STAGE_OVER.search(boot.machine.console.text()))


def _output(shell: Shell) -> str:
    try:
        result = shell.run(["tail", "-n", "40", _OUTPUT], user="root", timeout=_READ_TIMEOUT, check=False)
    except GuestError as failure:
        return f"{_OUTPUT} could not be read: {failure.brief}"
    return f"{_OUTPUT}, last 40 lines:\n{result.stdout}" if result.ok else ""


def _as_dict(value: object) -> dict[str, Any]:
    """Return the value if it is a JSON object, else an empty one: a guest may write anything."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _texts(lists: Iterable[object]) -> tuple[str, ...]:
    """Return every text in these lists once, in order."""
    found = [cast("list[object]", each) for each in lists if isinstance(each, list)]
    return tuple(dict.fromkeys(str(text) for each in found for text in each))
