from __future__ import annotations

import ast
import inspect

import libvirt
import pytest

from pytest_kvm.errors import (
    AgentError,
    ConnectionFailed,
    DomainFailed,
    HypervisorError,
    KvmError,
    NetworkFailed,
    StateDamaged,
)
from pytest_kvm.hypervisor import libvirt_errors as errors


def failure(code, text="it broke"):
    made = libvirt.libvirtError("call failed")
    # virterror's tuple: code, domain, message, level, str1, str2, str3, int1, int2
    made.err = (code, libvirt.VIR_FROM_QEMU, text, 2, None, None, None, 0, 0)
    return made


@pytest.mark.parametrize("code", errors.MEANINGS)
def test_every_handled_code_has_its_class_and_remedy(code):
    meaning = errors.MEANINGS[code]
    with pytest.raises(KvmError) as caught, errors.translated("do it", error=DomainFailed):
        raise failure(code)
    assert type(caught.value) is (meaning.error or DomainFailed)
    assert caught.value.brief == "libvirt could not do it: it broke"
    assert caught.value.resolution == meaning.resolution != ""


def test_an_unknown_code_is_the_root_class_with_libvirts_text():
    with pytest.raises(HypervisorError) as caught, errors.translated("do it"):
        raise failure(999_999)
    assert type(caught.value) is HypervisorError
    assert str(caught.value) == "libvirt could not do it: it broke"


ENDED = "unexpected exit status 2: Error:"
NO_QDISC = "Specified qdisc kind is unknown.\n"
NO_ACTION = "Failed to load TC action module.\nWe have an error talking to the kernel\n"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("Cannot get interface MTU on 'br9': No such device", "make the bridge first"),
        ("Unable to add bridge ovs0 port kv1: Operation not supported", 'say virtualport="openvswitch"'),
        ("internal error: Unable to add port kv1 to OVS bridge br0", "see that Open vSwitch runs there"),
        (f"internal error: Child process (tc qdisc add dev kv1 … sfq) {ENDED} {NO_QDISC}", "sch_sfq"),
        (
            f"internal error: Child process (/sbin/tc filter add dev kv1 … u32 …) {ENDED} {NO_ACTION}",
            "act_police",
        ),
        ("Cannot find 'tc' in path: No such file or directory", "iproute2"),
    ],
)
def test_what_the_host_has_no_network_for_is_told_by_the_text(text, hint):
    with pytest.raises(KvmError) as caught, errors.translated("do it", error=DomainFailed):
        raise failure(libvirt.VIR_ERR_SYSTEM_ERROR, text)
    assert type(caught.value) is NetworkFailed
    assert hint in caught.value.resolution


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("Unable to add bridge br0 port kv1: Operation not permitted", DomainFailed),
        ("Cannot get interface MTU on 'br9': Permission denied", DomainFailed),
        (f"internal error: Child process (tc qdisc add dev kv1 … sfq) {ENDED} not permitted", DomainFailed),
        (f"internal error: guest said: Child process (tc qdisc … {NO_QDISC}", DomainFailed),
        (
            "monitor closed: Cannot find 'tc' in path: load of migration failed: Invalid argument",
            StateDamaged,
        ),
    ],
)
def test_what_only_looks_like_it_is_something_else(text, error):
    with pytest.raises(KvmError) as caught, errors.translated("do it", error=DomainFailed):
        raise failure(libvirt.VIR_ERR_SYSTEM_ERROR, text)
    assert type(caught.value) is error
    assert caught.value.resolution == ""


def test_a_code_that_says_more_than_the_text_is_heeded():
    text = "Cannot find 'tc' in path: No such file or directory"
    for code, error in (
        (libvirt.VIR_ERR_RPC, ConnectionFailed),
        (libvirt.VIR_ERR_AGENT_UNSYNCED, AgentError),
    ):
        with pytest.raises(error), errors.translated("do it", error=DomainFailed):
            raise failure(code, text)


def test_lines_behind_the_first_and_details_go_to_the_details():
    with (
        pytest.raises(HypervisorError) as caught,
        errors.translated("do it", details=lambda: "log says so"),
    ):
        raise failure(libvirt.VIR_ERR_INTERNAL_ERROR, "monitor closed:\nbad option\n")
    assert caught.value.brief == "libvirt could not do it: monitor closed:"
    assert caught.value.details == "bad option\nlog says so"


def test_a_silent_agent_is_the_guests_fault_whatever_the_call_was():
    with pytest.raises(AgentError), errors.translated("ping", error=DomainFailed):
        raise failure(libvirt.VIR_ERR_AGENT_UNRESPONSIVE)


def test_an_error_without_a_code_keeps_its_text():
    made = libvirt.libvirtError("call failed")
    made.err = None
    with pytest.raises(HypervisorError, match="call failed"), errors.translated("do it"):
        raise made


def test_other_exceptions_pass():
    with pytest.raises(ZeroDivisionError), errors.translated("do it"):
        raise ZeroDivisionError


def test_the_table_names_only_codes_that_the_oldest_libvirt_has():
    used = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(errors)))
        if isinstance(node, ast.Attribute) and node.attr.startswith("VIR_ERR_")
    }
    highest_in_9_0 = libvirt.VIR_ERR_MULTIPLE_DOMAINS
    assert max(getattr(libvirt, name) for name in used) <= highest_in_9_0
