"""A domain is rendered once, and filled in for each machine."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import SpecError
from pytest_kvm.render.domain_draft import draft_domain
from pytest_kvm.render.plan import DiskPlan, RamFile
from tests.golden_cases import CASES, plan_for

ARGUMENTS = "{http://libvirt.org/schemas/domain/qemu/1.0}commandline"


def filled_in(spec, **changes):
    """Return the domain of a machine whose plan differs from the usual one."""
    plan = plan_for(spec)
    draft = draft_domain(spec, accel=plan.accel, direct_boot=plan.direct_boot)
    return ET.fromstring(draft.filled_in(replace(plan, **changes)))


def arguments(domain):
    return [each.get("value") for each in domain.find(ARGUMENTS)]


@pytest.mark.parametrize("case", CASES)
def test_no_placeholder_is_left(case):
    assert "placeholder" not in ET.tostring(filled_in(CASES[case]), encoding="unicode")


def test_a_hook_is_called_once_for_any_number_of_machines():
    seen = []

    def hook(domain):
        seen.append(domain.findtext("name"))
        return domain

    spec = replace(CASES["plain"], xml=hook)
    plan = plan_for(spec)
    draft = draft_domain(spec, accel=plan.accel, direct_boot=plan.direct_boot)
    names = [ET.fromstring(draft.filled_in(replace(plan, name=name))).findtext("name") for name in "ab"]
    assert names == ["a", "b"]
    assert seen == ["pytest-kvm-placeholder-name"]


def test_what_a_hook_makes_of_placeholders_is_filled_in():
    def hook(domain):
        log = Path(domain.find("devices/serial/log").get("file"))
        description = f"{domain.findtext('uuid')} {domain.findtext('os/kernel')} {log.parent / 'mine'}"
        description += f" /var/log/{domain.findtext('name')}.log"
        ET.SubElement(domain, "description").text = description
        value = json.dumps({"path": domain.find("devices/disk/source").get("file")})
        ET.SubElement(domain.find(ARGUMENTS), "{http://libvirt.org/schemas/domain/qemu/1.0}arg", value=value)
        return domain

    domain = filled_in(replace(CASES["plain"], xml=hook))
    assert domain.findtext("description") == (
        f"{domain.findtext('uuid')} /images/vmlinuz /run/kvm/mine /var/log/{domain.findtext('name')}.log"
    )
    assert json.loads(arguments(domain)[-1]) == {"path": "/run/kvm/root.qcow2"}


@pytest.mark.parametrize("returned", [None, "<domain/>"])
def test_a_hook_that_returns_no_element_is_told(returned):
    with pytest.raises(SpecError, match=rf"hook returned {type(returned).__name__}, not an element"):
        draft_domain(kvm.GuestSpec(xml=lambda domain: returned), accel="tcg", direct_boot=None)


def test_a_clone_has_overlays_and_goes_on_with_the_log():
    spec = CASES["disks"]
    overlays = [
        DiskPlan(path=Path(f"/run/kvm/{number}.qcow2"), format="qcow2")
        for number in range(len(spec.disks) + 2)
    ]
    domain = filled_in(spec, disks=overlays, continues_log=True)
    assert {driver.get("type") for driver in domain.iterfind("devices/disk/driver")} == {"qcow2"}
    assert domain.find("devices/serial/log").get("append") == "on"
    assert filled_in(spec).find("devices/serial/log").get("append") == "off"


def test_a_disk_that_the_hook_put_elsewhere_is_left_alone():
    def hook(domain):
        disk = domain.find("devices/disk")
        disk.find("driver").set("type", "raw")
        disk.find("source").set("file", "/dev/ram0")
        return domain

    disk = filled_in(replace(CASES["plain"], xml=hook)).find("devices/disk")
    assert (disk.find("driver").get("type"), disk.find("source").get("file")) == ("raw", "/dev/ram0")


def test_memory_in_a_file_comes_after_what_the_hook_left():
    def hook(domain):
        domain.remove(domain.find(ARGUMENTS))
        return domain

    ram = RamFile(path=Path('/a "quoted" folder/ram'), shared=False, incoming=True)
    for spec in (CASES["plain"], replace(CASES["plain"], xml=hook)):
        *_, backend, _, _, incoming, defer = arguments(filled_in(spec, ram_file=ram))
        assert json.loads(backend)["mem-path"] == str(ram.path)
        assert (incoming, defer) == ("-incoming", "defer")
    *_, backend, _, _ = arguments(filled_in(spec, ram_file=replace(ram, shared=True, incoming=False)))
    assert json.loads(backend)["share"]


def test_a_users_address_is_no_placeholder():
    control = draft_domain(CASES["plain"], accel="tcg", direct_boot=None).placeholders.control_mac
    spec = replace(CASES["plain"], nics=[kvm.Nic(mac=control)])
    plan = plan_for(spec)
    plan = replace(plan, nics=[replace(plan.nics[0], mac=control)])
    text = draft_domain(spec, accel="tcg", direct_boot=plan.direct_boot).filled_in(plan)
    assert text.count(control) == 1
    assert text.count(plan.control_mac) == 1
