"""The ``xml`` hook of a guest is called once, whatever machines the guest has."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest_kvm as kvm
from tests.guest_specs import SMALL

SEEN: list[str] = []


def look_on(domain: ET.Element) -> ET.Element:
    """Leave the domain as it is, so that the guest is a clone of a template that others use."""
    SEEN.append(ET.tostring(domain, encoding="unicode"))
    return domain


@kvm.guest(scope="module")
def machine() -> kvm.GuestSpec:
    return replace(SMALL, xml=look_on)


def test_the_hook_is_given_placeholders_and_none_is_left(machine):
    machine.run(["touch", "/root/changed"])
    (seen,) = SEEN
    assert "/pytest-kvm-placeholder-folder/console.log" in seen
    assert machine.machine.domain.name in machine.domain_xml
    assert "placeholder" not in machine.domain_xml


def test_the_hook_is_not_called_for_a_reset(machine):
    assert not machine.run(["test", "-e", "/root/changed"], check=False).ok
    machine.power_off()


def test_nor_for_a_machine_that_takes_over(machine):
    assert machine.run(["true"]).ok
    assert len(SEEN) == 1
