"""When a template is derived from the one without cards on segments, and what happens if that fails."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

import pytest_kvm as kvm
from pytest_kvm.boot_cache import template_store
from pytest_kvm.boot_cache.template import Template
from pytest_kvm.errors import (
    DomainFailed,
    GuestGone,
    HostCommandFailed,
    ImageError,
    NicWithoutDriver,
    NoCapacity,
    StateDamaged,
    WaitTimeout,
)
from pytest_kvm.host import disk_space
from pytest_kvm.provision import derived_template, run_templates
from pytest_kvm.provision.cache_key import fingerprint
from pytest_kvm.provision.derived_template import can_derive, copy_files, without_segments
from pytest_kvm.provision.events import cold_boot_event
from pytest_kvm.provision.machine_plan import direct_boot
from pytest_kvm.provision.run_templates import RunTemplates
from pytest_kvm.render.domain_draft import draft_domain
from pytest_kvm.settings import Settings, Timeouts
from pytest_kvm.spec.network import declare_network
from tests.unit.provision.key_cases import MACHINE, image
from tests.unit.provision.start_requests import START_REQUEST

LAN = declare_network("lan", kvm.NetworkSpec())
CLIENT = kvm.GuestSpec(memory="512MiB", nics=[kvm.Nic(LAN)])


def request_for(spec):
    of = image()
    domain = draft_domain(spec, accel="tcg", direct_boot=direct_boot(spec, of, accel="tcg"))
    return replace(START_REQUEST, spec=spec, image=of, domain=domain)


def key(request):
    return fingerprint(request.domain, image=request.image, machine=MACHINE, tied_macs=request.tied_macs)


@pytest.mark.parametrize(
    ("spec", "tier", "can"),
    [
        (CLIENT, "cow", True),
        (replace(CLIENT, nics=[kvm.Nic(), kvm.Nic(LAN)], packages=["curl"], hostname="web"), "cow", True),
        (replace(CLIENT, nics=[kvm.Nic()]), "cow", False),
        (CLIENT, "snapshot", False),
        (replace(CLIENT, prepare=["ls /sys/class/net"]), "cow", False),
        (replace(CLIENT, units=["dnsmasq.service"]), "cow", False),
        (replace(CLIENT, cmdline_extra="ip=::::::dhcp"), "cow", False),
        (replace(CLIENT, kernel="/boot/vmlinuz", initrd="/boot/initrd"), "cow", False),
        (replace(CLIENT, cloud_init=kvm.CloudInit(run_commands=["ip link"])), "cow", False),
    ],
)
def test_what_the_spec_runs_in_the_guest_has_to_find_its_cards(spec, tier, can):
    assert can_derive(spec, tier) is can


def test_the_template_that_cards_are_plugged_into_is_that_of_a_guest_without_them():
    lone = [kvm.Nic(), kvm.Nic(link="down")]
    on_segments = [kvm.Nic(LAN), kvm.Nic(LAN, model="e1000e"), kvm.Nic(LAN, mac="52:54:00:00:00:01")]
    mixed = [on_segments[0], lone[0], on_segments[1], lone[1], on_segments[2]]
    request = replace(request_for(replace(CLIENT, nics=mixed)), tied_macs={2: "52:54:00:00:00:02"})
    bare = without_segments(request)
    assert key(bare) == key(request_for(replace(CLIENT, nics=lone))) != key(request)
    assert [planned.index for planned in bare.domain.placeholders.nics] == [0, 1]


def test_a_hook_is_not_called_again():
    calls = []

    def hook(domain):
        calls.append(domain)
        return domain

    without_segments(request_for(replace(CLIENT, xml=hook)))
    assert len(calls) == 1


class MadeTemplate:
    def __init__(self, key):
        self.key = key

    def close(self):
        """Do nothing: it is in no store."""


@pytest.fixture
def attempts(tmp_path, monkeypatch):
    """What is done to make the template of a client; ``failure`` is raised when cards are plugged in."""
    attempts = SimpleNamespace(done=[], failure=None, free=10_000, request=request_for(CLIENT))

    def boot(_self, request, building, *, why, **_more: Any):
        left = [path.name for path in building.folder.glob("*.qcow2")]
        attempts.done.append(("boot", len(request.spec.nics), left))
        attempts.free -= 512
        event = cold_boot_event("web", spec=request.spec, seconds=0.0, why=why, for_template=True)
        return MadeTemplate(building.key), event

    def derive(_self, request, building, **_more: Any):
        attempts.done.append(("derive", len(request.spec.nics)))
        (building.folder / "root.qcow2").touch()
        if attempts.failure is not None:
            raise attempts.failure

    def publish(_self, _request, building, **_more: Any):
        return MadeTemplate(building.key)

    monkeypatch.setattr(RunTemplates, "_boot", boot)
    monkeypatch.setattr(RunTemplates, "_derive", derive)
    monkeypatch.setattr(RunTemplates, "_publish", publish)
    monkeypatch.setattr(run_templates, "machine_facts", lambda *_arguments, **_more: MACHINE)
    monkeypatch.setattr(run_templates, "disks_mib", lambda _base: 10)
    for module in (template_store, disk_space):
        monkeypatch.setattr(module, "disk_free_mib", lambda _folder: attempts.free)
    resources: Any = SimpleNamespace(hypervisor=SimpleNamespace(facts=lambda: None), accel="tcg")
    settings = Settings(cache_dir=tmp_path / "cache", run_dir=tmp_path, cache_ram="disk")
    attempts.templates = RunTemplates(settings, resources)
    attempts.get = lambda: attempts.templates.get(attempts.request, "cow", key=key(attempts.request))
    return attempts


def test_nothing_is_copied_of_a_template_whose_files_are_gone(tmp_path):
    manifest: Any = SimpleNamespace(files=["ram", "state"])
    held: Any = None
    building: Any = SimpleNamespace(folder=tmp_path)
    template = Template(tmp_path, manifest, held=held, on_close=lambda: None)
    with pytest.raises(StateDamaged, match="somebody has removed files of the template: ram, state"):
        copy_files(START_REQUEST.spec, base=template, building=building)


def test_one_boot_serves_guests_with_different_cards(attempts):
    template, events = attempts.get()
    assert template.key == key(attempts.request)
    assert [(event.kind, event.for_template) for event in events] == [("boot", True), ("template", True)]
    attempts.request = request_for(replace(CLIENT, nics=[kvm.Nic(LAN), kvm.Nic(LAN)]))
    _, events = attempts.get()
    assert [event.kind for event in events] == ["template"]
    assert attempts.done == [("boot", 0, []), ("derive", 1), ("derive", 2)]


FAILURES = [
    DomainFailed("QEMU takes no card"),
    GuestGone("QEMU of the copy has ended"),
    HostCommandFailed("the disk is full"),
    ImageError("qemu-img was too slow"),
    NicWithoutDriver("the driver is in the initrd"),
    StateDamaged("QEMU refused the state"),
    WaitTimeout("no card was found"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_guest_whose_cards_cannot_be_plugged_in_is_booted_with_them(attempts, failure, caplog):
    attempts.failure = failure
    template, (base, booted) = attempts.get()
    assert template.key == key(attempts.request)
    assert (base.kind, booted.kind) == ("boot", "boot")
    assert booted.why == f"no template yet; its cards could not be plugged in: {failure}"
    assert attempts.done == [("boot", 0, []), ("derive", 1), ("boot", 1, [])]
    assert f"web: its template was booted, and not derived: {failure}" in caplog.messages


def test_a_template_that_qemu_refuses_is_no_base_for_others(attempts):
    attempts.failure = StateDamaged("QEMU refused its state")
    attempts.get()
    attempts.failure = None
    attempts.request = request_for(replace(CLIENT, nics=[kvm.Nic(LAN), kvm.Nic(LAN)]))
    attempts.get()
    assert attempts.done[3:] == [("boot", 0, []), ("derive", 2)]


def test_a_derived_template_that_qemu_refuses_is_not_derived_again(attempts):
    template, _ = attempts.get()
    attempts.templates.discard(attempts.request, template, reason="QEMU refused its state")
    again, _ = attempts.get()
    assert again is not template
    assert attempts.done == [("boot", 0, []), ("derive", 1), ("boot", 1, [])]


def test_a_guest_that_was_removed_meanwhile_is_nothing_to_warn_of(attempts, monkeypatch, caplog):
    attempts.get()
    attempts.failure = DomainFailed("the domain has ended: destroyed")
    attempts.request = request_for(replace(CLIENT, nics=[kvm.Nic(LAN), kvm.Nic(LAN)]))

    def boot(*_arguments: Any, **_more: Any):
        raise GuestGone("web was removed")

    monkeypatch.setattr(RunTemplates, "_boot", boot)
    with pytest.raises(GuestGone):
        attempts.get()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_room_is_looked_for_when_the_base_is_there(attempts):
    attempts.free = 1000
    with pytest.raises(NoCapacity):
        attempts.get()
    assert attempts.done == [("boot", 0, [])]


def test_without_room_for_two_templates_there_is_none_but_the_guests_own(attempts, monkeypatch):
    whole = RunTemplates.get

    def get(self, request, tier, *, key):
        if not request.spec.nics:
            raise NoCapacity("no room for the base")
        return whole(self, request, tier, key=key)

    monkeypatch.setattr(RunTemplates, "get", get)
    _, (event,) = attempts.get()
    assert event.kind == "boot"
    assert attempts.done == [("boot", 1, [])]


CARD = "52:54:00:00:00:01"


class Kernel:
    """A guest's kernel that has a driver for a card or not, and notices it or has to be told to look."""

    def __init__(self, *, notices: bool = True, has_driver: bool = True):
        self.notices, self.has_driver = notices, has_driver
        self.log: list[str] = []

    def run(self, command, **_more: Any):
        text = command if isinstance(command, str) else " ".join(command)
        self.log.append(text)
        self.notices = self.notices or "rescan" in text
        if "find_idle" in text:
            return SimpleNamespace(stdout="" if self.has_driver else "0x8086 0x10d3\n")
        has_card = self.notices and self.has_driver
        return SimpleNamespace(stdout=f"00:00:00:00:00:00\n{CARD if has_card else ''}")


@pytest.fixture
def find_card(monkeypatch):
    monkeypatch.setattr(derived_template, "_LOOK_EVERY", 0.001)

    def find_card(kernel):
        seconds = itertools.count()
        machine: Any = SimpleNamespace(
            name="web",
            shell=kernel,
            timeouts=Timeouts(),
            domain=SimpleNamespace(clock=lambda: float(next(seconds))),
        )
        derived_template._wait_found(machine, CARD)
        return kernel.log

    return find_card


def test_a_kernel_that_notices_a_card_is_not_told_to_look(find_card):
    assert not any("rescan" in each for each in find_card(Kernel()))


def test_a_kernel_that_does_not_notice_a_card_is_told_to_look(find_card):
    log = find_card(Kernel(notices=False))
    assert sum("rescan" in each for each in log) == 1


def test_a_card_without_a_driver_is_not_waited_for_twice(find_card):
    kernel = Kernel(has_driver=False)
    with pytest.raises(NicWithoutDriver, match="e1000e"):
        find_card(kernel)
    assert "uname -r" in kernel.log
