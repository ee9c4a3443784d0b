"""Guests that differ in their cards on segments only: one boot for all, and the cards are plugged in."""

from __future__ import annotations

import json
import secrets

from pytest_kvm.plugin.session import settings_stashed

PREAMBLE = """
from dataclasses import replace
import xml.etree.ElementTree as ET

import pytest_kvm as kvm

SMALL = kvm.GuestSpec(memory="512MiB", vcpus=1)

@kvm.network
def lan():
    return kvm.NetworkSpec()

@kvm.network
def wan():
    return kvm.NetworkSpec()

def cards(guest):
    return guest.run("cd /sys/class/net && grep . */address | sort").stdout
"""

PLUGGED_IN = """
# With drivers for an e1000e, whose template nobody else can have made: no other has its address.
WITH_DRIVERS = replace(SMALL, packages=["linux-image-amd64"])

@kvm.guest
def client(lan):
    return replace(SMALL, nics=[kvm.Nic(lan)])

@kvm.guest
def router(lan, wan):
    nics = [kvm.Nic(lan, model="e1000e", mac="{mac}"), kvm.Nic(model="e1000e"), kvm.Nic(wan)]
    return replace(WITH_DRIVERS, nics=nics)

def test_cards(client, router, lan):
    client.run(["ping", "-c", "1", "-W", "20", router.address(lan)])
    before = cards(router)
    assert before.count("\\n") == 5
    assert f"{router.nics[0].device}/address:{mac}" in before
    router.reboot()
    assert cards(router) == before
    client.run(["ping", "-c", "1", "-W", "20", router.address(lan)])
"""

REFUSED = """
def without_hot_plug(domain):
    for controller in domain.iter("controller"):
        if controller.get("model") == "pcie-root-port":
            ET.SubElement(controller, "target", hotplug="off")
    return domain

@kvm.guest
def unwilling(lan, wan):
    return replace(SMALL, xml=without_hot_plug, nics=[kvm.Nic(lan), kvm.Nic(wan)])

@kvm.guest
def unaware(lan):
    return replace(SMALL, cmdline_extra="acpiphp.disable=1", nics=[kvm.Nic(lan)])

def test_cards(unwilling, unaware):
    assert cards(unwilling).count("\\n") == 4
    unaware.run(["ping", "-c", "1", "-W", "20", "unwilling"])
"""


def events_of(pytester, pytestconfig, suite):
    pytester.makepyfile(test_suite=PREAMBLE + suite)
    file = pytester.path / "events.jsonl"
    cache = f"--kvm-cache-dir={settings_stashed(pytestconfig).cache_dir}"
    result = pytester.runpytest_subprocess("-v", cache, f"--kvm-events={file}", timeout=900)
    result.assert_outcomes(passed=1)
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_cards_are_plugged_into_a_copy_of_the_template(pytester, pytestconfig):
    mac = f"52:54:00:{secrets.token_hex(1)}:{secrets.token_hex(1)}:01"
    events = events_of(pytester, pytestconfig, PLUGGED_IN.replace("{mac}", mac))
    started = [event["kind"] for event in events if event["guest"] == "router"]
    assert started[-3:] == ["template", "clone", "reboot"]


def test_a_machine_that_takes_no_more_cards_is_booted_with_them(pytester, pytestconfig):
    events = events_of(pytester, pytestconfig, REFUSED)
    kinds = [event["kind"] for event in events if event["guest"] == "unaware"]
    assert kinds[0] == "clone" or kinds[-2:] == ["template", "clone"]  # the cache may have it already
    started = next(event for event in events if event["guest"] == "unwilling")
    assert started["kind"] == "clone" or "does not support hotplugging" in started["why"]
