"""Events on their way into reports."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pytest_kvm.plugin.record import Record
from pytest_kvm.provision.events import Event


@pytest.fixture
def record():
    return Record()


@pytest.fixture
def properties(record):
    """Return a new test's properties, given the guests it holds."""

    def properties(*guests):
        item = SimpleNamespace(user_properties=[])
        record.add_properties(item, guests)
        return dict(item.user_properties)

    return properties


def event(kind, tier, *, guest="web", why="", for_template=False):
    return Event(guest=guest, kind=kind, tier=tier, seconds=1, why=why, for_template=for_template)


def test_every_test_that_holds_a_guest_says_how_it_was_started(record, properties):
    record.tell(event("clone", "cow", why="from the boot cache"))
    for _ in range(2):
        assert properties("web") == {"kvm_guest_web": "clone cow 1.00 s (from the boot cache)"}
    assert properties("database") == {}


def test_a_guest_whose_template_was_booted_for_it_says_both(record, properties):
    record.tell(event("boot", "cold", for_template=True))
    record.tell(event("clone", "cow"))
    assert properties("web") == {"kvm_guest_web": "boot cold 1.00 s, clone cow 1.00 s"}


def test_a_guest_whose_template_was_derived_for_it_says_all_three(record, properties):
    record.tell(event("boot", "cold", for_template=True))
    record.tell(event("template", None, for_template=True))
    record.tell(event("clone", "cow"))
    record.tell(event("template", None, guest="router", for_template=True))
    record.tell(event("clone", "cow", guest="router"))
    assert properties("web", "router") == {
        "kvm_guest_web": "boot cold 1.00 s, template 1.00 s, clone cow 1.00 s",
        "kvm_guest_router": "template 1.00 s, clone cow 1.00 s",
    }


def test_a_guest_of_a_name_that_was_there_before_says_its_own(record, properties):
    record.tell(event("boot", "cold"))
    record.tell(event("clone", "cow"))
    record.tell(event("clone", "pool"))
    assert properties("web") == {"kvm_guest_web": "clone pool 1.00 s"}


def test_it_is_said_once_a_test(record):
    item = SimpleNamespace(user_properties=[])
    record.tell(event("clone", "cow"))
    record.add_properties(item, ["web"])
    record.add_properties(item, ["web"])
    assert len(item.user_properties) == 1


def test_each_event_goes_with_one_report(record):
    item = SimpleNamespace(user_properties=[])
    told = [event("reset", "load"), event("reset", "pool", guest="database")]
    for each in told:
        record.tell(each)
    assert record.add_properties(item, []) == told
    assert record.add_properties(item, []) == []
