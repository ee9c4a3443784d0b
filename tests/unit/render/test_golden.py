"""What is rendered is what was reviewed: files in tests/golden, rewritten by --regenerate-golden."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
import yaml

from pytest_kvm.render.cloud_config import meta_data, network_config, user_data
from pytest_kvm.render.domain_draft import draft_domain
from pytest_kvm.render.network_xml import network_xml
from tests.golden_cases import CASES, CONTROL_MAC, IDENTITY, NETWORK_PLAN, NETWORKS, plan_for


@pytest.fixture
def golden(request, project_root):
    def check(name, text):
        path = project_root / "tests" / "golden" / name
        if request.config.getoption("regenerate_golden"):
            path.write_text(text)
        assert text == path.read_text(), f"{name} differs; if it is meant so: pytest --regenerate-golden"

    return check


def _domain_xml(spec):
    plan = plan_for(spec)
    draft = draft_domain(spec, accel=plan.accel, direct_boot=plan.direct_boot, run_as=plan.run_as)
    return draft.filled_in(plan)


@pytest.mark.parametrize("case", CASES)
def test_domain_xml(case, golden):
    text = _domain_xml(CASES[case])
    ET.fromstring(text)
    golden(f"{case}.xml", text)


@pytest.mark.parametrize("case", ["plain", "nics", "segments", "libvirt_networks", "cloud_init"])
def test_cloud_init(case, golden):
    spec = CASES[case]
    nics = plan_for(spec).all_nics
    golden(f"{case}.user-data.yaml", user_data(spec, IDENTITY, packages=spec.packages))
    golden(f"{case}.network-config.yaml", network_config(spec, control_mac=CONTROL_MAC, nics=nics))


@pytest.mark.parametrize("name", NETWORKS)
def test_network_xml(name, golden):
    golden(f"networks/{name}.xml", network_xml(NETWORKS[name], NETWORK_PLAN))


def test_hostile_text_stays_data():
    """What a spec says ends up as one value, whatever characters it has."""
    spec = CASES["cloud_init"]
    config = yaml.safe_load(user_data(spec, IDENTITY, packages=[]))
    assert config["write_files"][0]["content"] == spec.cloud_init.files[0].content
    assert config["runcmd"][2] == ["touch", "/with space; rm -rf /"]
    cmdline = ET.fromstring(_domain_xml(CASES["small_virtio_console"]))
    assert cmdline.findtext("os/cmdline").endswith("loglevel=7 a=\"<&>'")


def test_meta_data_has_the_instance_id():
    assert yaml.safe_load(meta_data(IDENTITY)) == {
        "instance-id": IDENTITY.instance_id,
        "local-hostname": IDENTITY.hostname,
    }
