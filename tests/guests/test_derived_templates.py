"""Guests that differ in their cards on segments only: one boot for all, and the cards are plugged in."""

from __future__ import annotations

import json

import pytest

from pytest_kvm.boot_cache.inventory import Inventory
from pytest_kvm.boot_cache.template_store import TemplateStore
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
@kvm.guest
def client(lan):
    return replace(SMALL, nics=[kvm.Nic(lan)])

@kvm.guest
def router(lan, wan):
    nics = [kvm.Nic(lan, model="e1000e", mac="52:54:00:de:12:ed"), kvm.Nic(model="e1000e"), kvm.Nic(wan)]
    return replace(SMALL, packages=["linux-image-amd64"], nics=nics)  # its kernel has the drivers

def test_cards(client, router, lan):
    client.run(["ping", "-c", "1", "-W", "20", router.address(lan)])
    before = cards(router)
    assert before.count("\\n") == 5
    assert f"{router.nics[0].device}/address:52:54:00:de:12:ed" in before
    router.reboot()
    assert cards(router) == before
    client.run(["ping", "-c", "1", "-W", "20", router.address(lan)])
"""

REFUSED = """
def refuse_cards(domain):
    for controller in domain.iter("controller"):
        if controller.get("model") == "pcie-root-port":
            ET.SubElement(controller, "target", hotplug="off")
    return domain

@kvm.guest
def router(lan, wan):
    return replace(SMALL, hostname="takes-no-cards", xml=refuse_cards, nics=[kvm.Nic(lan), kvm.Nic(wan)])

def test_cards(router):
    assert cards(router).count("\\n") == 4
"""


@pytest.fixture
def router_events(pytester, pytestconfig):
    """Return a function that runs a suite, and returns how its router was started.

    Its template is made anew, if an earlier run has left it in the cache.
    """

    def router_events(suite, *, spec_has):
        settings = settings_stashed(pytestconfig)
        for known in Inventory.of(settings).list():
            if known.manifest and all(text in known.manifest.summary for text in (spec_has, "<Segment")):
                TemplateStore.of(settings).discard(known.key, reason="a test makes it")
        pytester.makepyfile(test_suite=PREAMBLE + suite)
        file = pytester.path / "events.jsonl"
        cache = f"--kvm-cache-dir={settings.cache_dir}"
        result = pytester.runpytest_subprocess("-v", cache, f"--kvm-events={file}", timeout=900)
        result.assert_outcomes(passed=1)
        events = [json.loads(line) for line in file.read_text().splitlines()]
        return [(each["kind"], each["why"]) for each in events if each["guest"] == "router"]

    return router_events


def test_cards_are_plugged_into_a_copy_of_the_template(router_events):
    *_, template, clone, reboot = router_events(PLUGGED_IN, spec_has="52:54:00:de:12:ed")
    assert template[0] == "template"
    assert (clone[0], reboot[0]) == ("clone", "reboot")


def test_a_machine_that_takes_no_cards_while_it_runs_is_booted_with_them(router_events):
    *_, booted, clone = router_events(REFUSED, spec_has="takes-no-cards")
    assert booted[0] == "boot"
    assert "its cards could not be plugged in: " in booted[1]
    assert "does not support hotplugging" in booted[1]
    assert clone[0] == "clone"
