"""Keeps the objects of one pytest session in ``config.stash``, and starts guests of its run."""

from __future__ import annotations

import shlex
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvm.errors import HostError, SpecError
from pytest_kvm.plugin.hook_calls import BootOutcomes, Node, modify_spec
from pytest_kvm.plugin.record import Record
from pytest_kvm.plugin.scopes import Scopes
from pytest_kvm.provision.events import EventListener, EventLog, ignore
from pytest_kvm.provision.reset_coordinator import ResetCoordinator

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.handles.segment import Segment
    from pytest_kvm.provision.run import Run
    from pytest_kvm.settings import Settings
    from pytest_kvm.spec.guest import GuestSpec
    from pytest_kvm.spec.network import NetworkSpec

_SETTINGS = pytest.StashKey["Settings"]()
_RECORD = pytest.StashKey[Record]()
_COORDINATOR = pytest.StashKey[ResetCoordinator]()
_OUTCOMES = pytest.StashKey[BootOutcomes]()
_SCOPES = pytest.StashKey[Scopes]()
_RUN = pytest.StashKey["Run"]()
_TEST = pytest.StashKey[str]()
_RESERVED = pytest.StashKey[defaultdict[object, set[str]]]()
"""Addresses that specs give to cards, by the function of the segment's fixture."""


def begin_session(config: pytest.Config, settings: Settings) -> None:
    """Put the settings and what follows from them into the stash.

    Raises:
        pytest.UsageError: The file of events cannot be written.
    """
    config.stash[_SETTINGS] = settings
    config.stash[_RESERVED] = defaultdict[object, set[str]](set)
    config.stash[_RECORD] = record = Record(_event_log(settings))
    config.stash[_COORDINATOR] = coordinator = ResetCoordinator(tell=record.tell)
    config.stash[_OUTCOMES] = outcomes = BootOutcomes(coordinator)
    config.stash[_SCOPES] = Scopes(coordinator, finish_hook=outcomes.finish)


def _event_log(settings: Settings) -> EventListener:
    if settings.events is None:
        return ignore
    try:
        return EventLog(settings.events).tell
    except HostError as error:
        raise pytest.UsageError(str(error)) from None


def settings_stashed(config: pytest.Config) -> Settings:
    """Return the session's settings."""
    return config.stash[_SETTINGS]


def record_of(config: pytest.Config) -> Record:
    """Return the record, which collects the events of the session's guests."""
    return config.stash[_RECORD]


def coordinator_of(config: pytest.Config) -> ResetCoordinator:
    """Return the coordinator, which has guests of the session reset."""
    return config.stash[_COORDINATOR]


def scopes_of(config: pytest.Config) -> Scopes:
    """Return the object that follows the session's scopes."""
    return config.stash[_SCOPES]


def run_of(config: pytest.Config) -> Run:
    """Return the session's run; the first call makes it."""
    if _RUN not in config.stash:
        from pytest_kvm.plugin.progress import listener_for  # noqa: PLC0415 - not needed before
        from pytest_kvm.provision.run import Run  # noqa: PLC0415 - loads libvirt and paramiko

        config.stash[_RUN] = Run(
            settings_stashed(config),
            progress=listener_for(config),
            coordinator=coordinator_of(config),
            tell=record_of(config).tell,
            about=_about(config),
        )
        config.stash[_RUN].note_test(config.stash.get(_TEST, ""))
    return config.stash[_RUN]


def _about(config: pytest.Config) -> dict[str, str]:
    """Return what ``pytest-kvm ps`` tells of the run."""
    of_worker: dict[str, Any] = getattr(config, "workerinput", {})
    program, *arguments = of_worker.get("mainargv", sys.argv)
    name = Path(program).name
    return {
        "command": shlex.join(["pytest" if name == "__main__.py" else name, *arguments]),
        "started_in": str(config.invocation_params.dir),
        "worker": str(of_worker.get("workerid", "")),
    }


def note_test(config: pytest.Config, test: str) -> None:
    """Note for those who look from outside which test has begun; "" when it has ended."""
    config.stash[_TEST] = test
    run = existing_run(config)
    if run is not None:
        run.note_test(test)


def start_guest(node: Node, spec: GuestSpec, *, name: str, resets: bool) -> Guest:
    """Start a guest of the session's run, with the spec that ``pytest_kvm_modify_spec`` hooks leave.

    Args:
        node: What the guest is started for.
        spec: What the guest is made of.
        name: The guest's name.
        resets: Whether the guest outlives a test, and is reset before the next test uses it.

    Raises:
        SpecError: The guest's cards are on networks that the connection does not have, or another guest
            on a segment has an address or a name of the guest.
        SwitchFailed: The switch has ended.
    """
    spec = modify_spec(node, spec, name=name)
    check_connection(spec, settings_stashed(node.config))
    return run_of(node.config).start(
        spec,
        name=name,
        resets=resets,
        on_booted=partial(node.config.stash[_OUTCOMES].tell, node=node),
    )


def reserve_addresses(config: pytest.Config, addresses: Iterable[str], *, function: object) -> None:
    """Note that specs give these addresses to cards, so that no other guest on the segment gets one.

    Args:
        config: The session's configuration.
        addresses: The addresses.
        function: The function of the segment's fixture.
    """
    config.stash[_RESERVED][function].update(addresses)


def make_segment(spec: NetworkSpec, config: pytest.Config, *, name: str, function: object) -> Segment:
    """Make a segment of the session's run; addresses that specs give to cards on it are for these cards.

    Args:
        spec: What the segment is made of.
        config: The session's configuration.
        name: The segment's name.
        function: The function of its fixture.

    Raises:
        SpecError: No automatic subnet is free.
        SwitchFailed: The switch did not start.
    """
    return run_of(config).segments.make(name, spec, reserved=config.stash[_RESERVED][function])


def existing_run(config: pytest.Config) -> Run | None:
    """Return the session's run; None if no guest was asked for."""
    return config.stash.get(_RUN, None)


def check_image(spec: GuestSpec, settings: Settings) -> None:
    """Make sure, without building anything, that a spec's image exists or can be built.

    Raises:
        UnknownImage: The image is not in the store and cannot be built.
    """
    from pytest_kvm.images.ensure import check_known  # noqa: PLC0415 - only projects with guests pay for it
    from pytest_kvm.spec.image import ImageRef  # noqa: PLC0415 - as above

    check_known(spec.image_ref or ImageRef.parse(settings.default_image), settings=settings)


def check_connection(spec: GuestSpec, settings: Settings) -> None:
    """Make sure that the run's connection has the networks that a spec's cards are on.

    Raises:
        SpecError: A card is on a libvirt network or a bridge, which only the system daemon has.
    """
    if settings.is_system:
        return
    for index, nic in enumerate(spec.nics):
        if nic.is_on_host_network:
            field, name = ("network", nic.network) if nic.bridge is None else ("bridge", nic.bridge)
            raise SpecError(
                f"GuestSpec.nics[{index}]: Nic.{field} is {name!r}, a network of the host, "
                f"and the connection {settings.uri} has none",
                resolution="for a segment of the run, give the value of a @kvm.network fixture, not its "
                "name; for a network of the host, run with --kvm-uri=qemu:///system",
            )


def check_network(spec: NetworkSpec, settings: Settings, *, name: str) -> None:
    """Make sure that the run's connection makes the network that a spec asks for.

    Raises:
        SpecError: Only libvirt's system daemon makes it.
    """
    from pytest_kvm.spec import network  # noqa: PLC0415 - few projects have segments

    network.check_connection(name, spec, uri=settings.uri, is_system=settings.is_system)


def check_sources(spec: GuestSpec) -> None:
    """Make sure that the host files of a spec's prepare steps can be read.

    Raises:
        SpecError: A file is missing, or is not what its step needs.
    """
    if spec.prepare:
        from pytest_kvm.provision import file_digests as contents  # noqa: PLC0415 - few guests are prepared

        contents.check_sources(spec.prepare)
