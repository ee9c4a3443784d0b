"""In which order a lab is formed, frozen and started, and what follows when a step fails."""

from __future__ import annotations

import errno
import itertools
import re
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pytest_kvm as kvm
from pytest_kvm.boot_cache.template_store import TemplateStore
from pytest_kvm.errors import DomainFailed, GuestGone, StateDamaged
from pytest_kvm.machine.hosts_file import HostsFile
from pytest_kvm.options import settings_from
from pytest_kvm.provision import lab_template
from pytest_kvm.provision.disk_room import COLD_BOOT_MIB
from pytest_kvm.provision.lab_forming import Forming
from pytest_kvm.provision.lab_template import LabTemplates
from pytest_kvm.provision.start_request import Teardown
from pytest_kvm.provision.starter import Started
from pytest_kvm.render.plan import DiskPlan
from tests.unit.provision.start_requests import START_REQUEST
from tests.unit.provision.template_facts import FACTS

ADDRESSES = {"left": "10.1.0.1", "middle": "10.1.0.3", "right": "10.1.0.2"}
FULL = OSError(errno.ENOSPC, "No space left on device")


def segment(name="lan", **fields):
    nobody: Any = None
    return kvm.Segment(
        name,
        kvm.NetworkSpec(**fields),
        subnet=IPv4Network("10.1.0.0/24"),
        subnet6=IPv6Network("fd00:1::/64"),
        backend=nobody,
        faults=nobody,
        captures=nobody,
    )


LAN = segment()
SPEC = replace(START_REQUEST.spec, nics=[kvm.Nic(LAN), kvm.Nic(LAN)])


def nic(name, **changed):
    """Return a card on a segment."""
    address = ADDRESSES[name]
    fields = {
        "index": 0,
        "segment": LAN,
        "mac": "52:54:00:00:00:03",
        "address": address,
        "address6": None,
        "addresses": (f"{address}/24",),
        "names": (name,),
    }
    return SimpleNamespace(**(fields | changed))


def template(key, *, facts=FACTS):
    manifest = SimpleNamespace(facts=facts.to_json())
    made: Any = SimpleNamespace(key=key, manifest=manifest, path=lambda _name: Path("/dev/null"))
    return made


@dataclass
class FakeMachine:
    """A machine that runs, and does nothing."""

    name: str
    kind: str
    domain: Any
    links: Any
    folder: Path = Path("/var/tmp")
    savepoints: dict[str, object] = field(default_factory=lambda: {"savepoint-1": object()})
    hosts_file: HostsFile = field(default_factory=HostsFile)
    phases: dict[str, float] = field(default_factory=dict)
    access: Any = field(default_factory=lambda: SimpleNamespace(host_key="ssh-ed25519 BBBB"))


class FakeMachines:
    """Holds one guest's machine."""

    def __init__(self, world, name) -> None:
        self._world = world
        self.name = name
        nics: Any = (nic(name),)
        request = replace(
            START_REQUEST,
            spec=SPEC,
            name=name,
            hostname=name,
            teardown=Teardown(name),
            nics=nics,
            host_lines=world.host_lines,
        )
        plan: Any = SimpleNamespace(
            disks=[DiskPlan(path=world.folder / "root.qcow2", format="qcow2"), None],
            control_mac="52:54:00:00:00:02",
            all_nics=(),
        )
        self.current = Started(
            machine=world.machine(name, "first"),
            request=request,
            plan=plan,
            template=template(f"own template of {name}"),
            undo=ExitStack(),
            events=(),
        )
        self.current.undo.callback(world.note, f"remove first {name}")

    def successor(self):
        return replace(self.current.request, log=self._world.log)

    def replace_current(self, fresh):
        former, self.current = self.current, fresh
        return former

    def start_another(self):
        self._world.note(f"begin {self.name} anew")


class World:
    """Two guests, the templates of a boot cache, and a list of what is done."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.log = START_REQUEST.log
        self.done: list[str] = []
        self.failures: dict[str, Exception] = {}
        """By step, what is raised there."""
        self.rooms: list[tuple[int, int]] = []
        """For how many MiB of RAM files there has to be room, each time that a part is begun."""
        self.digest = "as ever"
        self.bystanders: dict[str, str] = {}
        """Other guests on the segment, with their addresses."""
        self.stored: dict[str, Any] = {}
        self.lab = [FakeMachines(self, name) for name in ADDRESSES]
        resources: Any = None
        templates: Any = self
        self.labs = LabTemplates(resources, templates)

    def note(self, step):
        self.done.append(step)
        for begin, failure in self.failures.items():
            if step.startswith(begin):
                raise failure

    def machine(self, name, kind):
        domain = SimpleNamespace(suspend=lambda: self.note(f"pause {name}"))
        links = SimpleNamespace(
            attach=lambda _machine: self.note(f"attach {name}"), detach=lambda: self.note(f"detach {name}")
        )
        return FakeMachine(name, kind, domain, links)

    def host_lines(self):
        return [f"{address}\t{name}" for name, address in (ADDRESSES | self.bystanders).items()]

    def form(self):
        self.note("form")

    def start(self):
        """Start the lab; return why it had to be formed."""
        self.done.clear()
        lab: Any = self.lab
        forming = Forming(
            name="pair",
            function=self.form,
            digest=self.digest,
            digest_again=lambda: self.digest,
            on_step=lambda _step: None,
        )
        return self.labs.start(lab, forming)

    @property
    def steps(self):
        """What was done, whatever the guest; what was done for several at the same time counts once."""
        steps = [re.sub(f" ({'|'.join(ADDRESSES)})", "", step) for step in self.done]
        return [step for step, _ in itertools.groupby(steps)]

    @property
    def kinds(self):
        """Which machines the guests' handles lead to."""
        return [machines.current.machine.kind for machines in self.lab]

    # ------------------------------------------------------------ the run's templates

    def find(self, _request, *, key):
        return self.stored.get(key)

    def disk_full_as_no_capacity(self):
        return TemplateStore.of(replace(settings_from([]), cache_dir=self.folder)).disk_full_as_no_capacity()

    @contextmanager
    def building(self, request, *, key, ram_mib, disk_mib):
        self.note(f"lock {request.name}")
        self.rooms.append((ram_mib, disk_mib))
        yield SimpleNamespace(key=key)

    def publish(self, building, *, summary, facts):
        assert re.match(r"lab template pair, \w+: GuestSpec\(", summary)
        self.note(f"publish {facts.hostname}")
        self.stored[building.key] = template(building.key, facts=facts)
        return self.stored[building.key]

    def discard(self, request, dropped, *, reason):
        self.note(f"drop {request.name}: {reason}")
        del self.stored[dropped.key]


@pytest.fixture
def world(tmp_path, monkeypatch):
    world = World(tmp_path)

    def start_paused(_resources, request, *, template, stack, files=None, is_itself=False):
        kind = "itself" if is_itself else "copy"
        world.note(f"start {kind} {request.name}")
        assert (files is None) is is_itself
        stack.callback(world.done.append, f"remove {kind} {request.name}")
        clone: Any = SimpleNamespace(
            machine=world.machine(request.name, kind), plan=world.lab[0].current.plan
        )
        clone.wake = lambda *, host_lines=(): clone
        return clone

    monkeypatch.setattr(lab_template, "start_paused", start_paused)
    monkeypatch.setattr(lab_template, "copy_files", lambda _spec, *, base, building: (base, building))
    monkeypatch.setattr(lab_template, "log_out", lambda machine: world.note(f"log out {machine.name}"))
    monkeypatch.setattr(lab_template, "prestart", lambda _machine: None)
    monkeypatch.setattr(
        lab_template, "drop_former", lambda machine, names: world.note(f"drop {[*names]} of {machine.name}")
    )
    monkeypatch.setattr(
        lab_template, "save", lambda machine, _request, **_more: world.note(f"save {machine.name}")
    )
    return world


FORMING = ["start copy", "attach", "remove first", "form"]
FREEZING = ["drop ['savepoint-1'] of", "log out", "detach", "pause", "save", "publish"]
STARTING = ["start itself", "attach"]
ANEW = ["begin anew", "form"]


def test_the_first_run_forms_the_lab_on_copies_and_freezes_it(world):
    assert world.start() == "no template yet"
    assert world.steps == ["lock", *FORMING, *FREEZING, *STARTING, "remove copy"]
    assert world.kinds == ["itself"] * 3


def test_there_has_to_be_room_for_the_ram_files_of_all_guests(world):
    world.start()
    mib = SPEC.memory_kib // 1024
    assert world.rooms == [(number * mib, number * COLD_BOOT_MIB) for number in (1, 2, 3)]


def test_a_later_run_starts_from_the_template(world):
    world.start()
    assert world.start() == ""
    assert world.steps == [*STARTING, "remove itself"]


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "other"},
        {"hostname": "other"},
        {"nics": ()},
        {"nics": (nic("right", index=1),)},
        {"nics": (nic("right", mac="52:54:00:00:00:09"),)},
        {"nics": (nic("right", segment=segment("wan")),)},
        {"nics": (nic("right", segment=segment(mtu=9000)),)},
        {"nics": (nic("right", addresses=("10.1.0.9/24",)),)},
        {"nics": (nic("right", names=("other",)),)},
        {"spec": replace(SPEC, nics=[kvm.Nic(LAN, link="down")])},
        {"spec": replace(SPEC, nics=[kvm.Nic(LAN, dhcp=True)])},
        {"spec": replace(SPEC, identity="shared")},
    ],
    ids=[
        "name",
        "hostname",
        "no-card",
        "index",
        "mac",
        "segment",
        "mtu",
        "addresses",
        "names",
        "link",
        "dhcp",
        "identity",
    ],
)
def test_what_a_guest_is_called_and_knows_leads_to_another_template(world, changed):
    world.start()
    guest = world.lab[2]
    guest.current = replace(guest.current, request=replace(guest.current.request, **changed))
    assert world.start() == "no template yet"


def test_what_the_function_depends_on_leads_to_another_template(world):
    world.start()
    world.digest = "another"
    assert world.start() == "no template yet"


def test_another_template_of_a_guest_leads_to_another_template_of_the_lab(world):
    world.start()
    guest = world.lab[1]
    guest.current = replace(guest.current, template=template("another"))
    assert world.start() == "no template yet"


def test_the_order_of_the_guests_does_not_matter(world):
    world.start()
    world.lab.reverse()
    assert world.start() == ""


def test_guests_that_are_on_the_segment_by_chance_do_not_matter_but_their_names_are_told(world):
    world.start()
    lines = world.host_lines()
    world.bystanders = {"bystander": "10.1.0.9"}
    assert world.start() == ""
    for machines in world.lab:
        assert machines.current.machine.hosts_file.has(lines)
        assert not machines.current.machine.hosts_file.has(world.host_lines())


@pytest.mark.parametrize("gone", range(3))
def test_if_one_guest_s_part_is_gone_the_others_are_dropped_and_all_are_made_anew(world, gone):
    world.start()
    keys = sorted(world.stored)
    del world.stored[keys[gone]]
    assert world.start() == "no template yet"
    begun = world.done.index(next(step for step in world.done if step.startswith("start copy")))
    assert world.steps[0] == "lock", "another process may be publishing them"
    assert len([step for step in world.done[:begun] if step.startswith("drop ")]) == 2
    assert sorted(world.stored) == keys
    assert len({each.manifest.facts["lab"] for each in world.stored.values()}) == 1


def test_parts_of_two_moments_are_dropped(world):
    world.start()
    world.stored[next(iter(world.stored))].manifest.facts["lab"] = "another moment"
    assert world.start() == "no template yet"
    assert world.steps[:3] == ["lock", "drop: the templates of its lab's other guests are gone", "start copy"]


def test_a_process_that_has_waited_for_another_starts_what_that_one_has_made(world, monkeypatch):
    world.start()
    made, world.stored = world.stored, {}

    @contextmanager
    def building(_request, *, key, ram_mib, disk_mib):
        world.stored[key] = made[key]
        yield SimpleNamespace(key=key)

    monkeypatch.setattr(world, "building", building)
    assert world.start() == ""
    assert world.steps == [*STARTING, "remove itself"]


def test_two_processes_lock_the_parts_in_the_same_order(world, monkeypatch):
    locked = []

    @contextmanager
    def building(_request, *, key, ram_mib, disk_mib):
        locked.append(key)
        yield SimpleNamespace(key=key)

    monkeypatch.setattr(world, "building", building)
    for digest in ("one", "two", "three", "four"):
        locked.clear()
        world.digest = digest
        world.start()
        assert locked == sorted(locked)


@pytest.mark.parametrize(
    ("step", "failure", "why"),
    [
        ("lock", FULL, "no room for a template: No space left on device"),
        ("start copy", FULL, "no room"),
        ("start copy", DomainFailed("no more processes"), "no more processes"),
        ("save right", FULL, "no room"),
        ("save right", GuestGone("right has ended: QEMU was killed"), "right has ended"),
        ("publish left", FULL, "no room"),
        ("start itself left", DomainFailed("no more processes"), "no more processes"),
    ],
)
def test_without_a_template_the_lab_is_formed_on_guests_begun_anew(world, step, failure, why):
    world.failures[step] = failure
    assert re.search(why, world.start())
    assert world.steps[-2:] == ANEW


def test_what_could_not_be_frozen_is_not_tried_again_in_this_run(world):
    world.failures["save middle"] = DomainFailed("QEMU has failed")
    world.start()
    assert world.start() == "QEMU has failed"
    assert world.steps == ["form"]


def test_a_part_that_was_published_when_another_could_not_be_is_not_started_with_those_of_another_run(world):
    world.failures["publish left"] = FULL
    world.start()
    assert len(world.stored) == 2
    world.failures.clear()
    world.labs = LabTemplates(None, world)
    assert world.start() == "no template yet"
    assert len({each.manifest.facts["lab"] for each in world.stored.values()}) == 1


def test_a_damaged_template_is_dropped(world):
    world.start()
    world.failures["start itself"] = StateDamaged("QEMU refuses the state")
    assert world.start() == "QEMU refuses the state"
    assert world.stored == {}


def test_a_guests_own_template_that_is_damaged_is_dropped(world, monkeypatch):
    dropped = []
    monkeypatch.setattr(world, "discard", lambda request, *_template, reason: dropped.append(request.name))
    world.failures["start copy right"] = StateDamaged("somebody has removed files of the template: ram")
    assert "somebody has removed files" in world.start()
    assert dropped == ["right"]
    assert world.steps[-2:] == ANEW


def test_if_one_guest_cannot_be_started_no_machine_of_the_attempt_is_left(world):
    world.failures["start copy right"] = DomainFailed("no more processes")
    world.start()
    assert "remove copy left" in world.done


def test_a_guest_that_was_removed_ends_it_all(world):
    world.failures["start copy"] = DomainFailed("it was destroyed")
    world.failures["begin"] = GuestGone("left was removed")
    with pytest.raises(GuestGone):
        world.start()
    assert "form" not in world.done


def test_what_the_function_raises_is_passed_on(world):
    world.failures["form"] = ValueError("of the user")
    with pytest.raises(ValueError, match="of the user"):
        world.start()
    assert world.done.count("form") == 1
    assert world.stored == {}


def test_a_full_disk_that_the_function_meets_is_its_own_error(world):
    world.failures["form"] = FULL
    with pytest.raises(OSError, match="No space left on device"):
        world.start()


def test_what_the_function_raises_without_a_template_comes_alone(world):
    world.failures["lock"] = FULL
    world.failures["form"] = ValueError("of the user")
    with pytest.raises(ValueError, match="of the user") as failure:
        world.start()
    assert failure.value.__context__ is None


def test_a_machine_that_cannot_be_removed_keeps_no_other_from_its_guest(world):
    world.failures["remove first left"] = DomainFailed("it is stuck")
    world.start()
    assert {step for step in world.done if step.startswith("remove first")} == {
        f"remove first {name}" for name in ADDRESSES
    }


def test_a_file_that_changes_meanwhile_is_no_part_of_a_template(world, monkeypatch):
    def form():
        world.note("form")
        world.digest += " changed"

    monkeypatch.setattr(world, "form", form)
    assert "what pair depends on changed" in world.start()
    assert world.stored == {}


def test_guests_that_cannot_be_frozen_have_no_template(world):
    lab: Any = world.lab
    assert world.labs.why_none(lab) == ""
    lab[1].current = replace(lab[1].current, template=template("x", facts=replace(FACTS, tier="snapshot")))
    assert world.labs.why_none(lab) == "the template of middle has no RAM file"
    own: Any = SimpleNamespace(segment=segment("out", forward="nat"))
    changed = replace(lab[0].current.request, nics=(own,))
    lab[0].current = replace(lab[0].current, request=changed)
    assert world.labs.why_none(lab) == "each run has addresses of its own on out"
    lab[0].current = replace(lab[0].current, template=None)
    assert world.labs.why_none(lab) == "left was booted"
