"""Raw user-data is merged, or becomes a part of its own."""

from __future__ import annotations

import email

import pytest
import yaml

import pytest_kvm as kvm
from pytest_kvm.render.cloud_config import merge, user_data
from tests.golden_cases import IDENTITY


def rendered(raw):
    spec = kvm.GuestSpec(cloud_init=kvm.CloudInit(user_data=raw, run_commands=["generated"]))
    return user_data(spec, IDENTITY, packages=[])


def test_lists_are_appended_mappings_merged_scalars_replaced():
    config = yaml.safe_load(rendered({"runcmd": ["raw"], "ssh_keys": {"more": 1}, "disable_root": True}))
    assert config["runcmd"] == ["set -e", "generated", "raw"]
    assert config["ssh_keys"]["more"] == 1
    assert "ed25519_public" in config["ssh_keys"]
    assert config["disable_root"] is True


def test_a_cloud_config_text_is_merged():
    assert yaml.safe_load(rendered("#cloud-config\nruncmd: [raw]\n"))["runcmd"] == [
        "set -e",
        "generated",
        "raw",
    ]


def test_a_script_becomes_a_second_part():
    archive = email.message_from_string(rendered("#!/bin/sh\necho hi\n"))
    first, second = archive.get_payload()
    assert first.get_content_type() == "text/cloud-config"
    assert yaml.safe_load(first.get_payload(decode=True))["runcmd"] == ["set -e", "generated"]
    assert second.get_payload(decode=True) == b"#!/bin/sh\necho hi\n"


@pytest.mark.parametrize("broken", ["#cloud-config\na: [", "#cloud-config\n- 1\n"])
def test_a_broken_cloud_config_is_a_spec_error(broken):
    with pytest.raises(kvm.SpecError, match=r"CloudInit\.user_data"):
        rendered(broken)


def test_merge_leaves_its_arguments_alone():
    base, over = {"a": [1]}, {"a": [2]}
    assert merge(base, over) == {"a": [1, 2]}
    assert (base, over) == ({"a": [1]}, {"a": [2]})
