"""Doors that guest text goes through: errors, observations, a guest's log."""

from __future__ import annotations

import inspect

import pytest

from pytest_kvm import errors
from pytest_kvm.plaintext import guest_log
from pytest_kvm.results import CommandResult
from pytest_kvm.waiting import NotYet, wait_until

HOSTILE = "\x1b]0;owned\x07\x1b[2Jfine\x9b31m\u202e\x08"
KINDS = [
    each
    for _, each in inspect.getmembers(errors, inspect.isclass)
    if issubclass(each, errors.KvmError) and not each.__name__.startswith("_")
]


@pytest.mark.parametrize("kind", KINDS)
def test_no_error_holds_control_characters(kind):
    more = {"result": CommandResult(argv="x", exit_code=1)} if issubclass(kind, errors._CommandError) else {}
    error = kind(HOSTILE, details=HOSTILE, resolution=HOSTILE, **more)
    for text in (str(error), repr(error), error.brief, error.details, error.resolution, *error.args):
        assert "fine" in text
        assert not any(
            (ord(each) < 32 and each not in "\n\t") or ord(each) in range(127, 160) for each in text
        )
        assert "\u202e" not in text


def test_what_a_wait_has_seen_is_plain(caplog):
    caplog.set_level("DEBUG", "pytest_kvm.wait")

    def never():
        raise NotYet(HOSTILE)

    with pytest.raises(errors.WaitTimeout) as late:
        wait_until(never, describe="nothing", timeout=0)
    assert str(late.value).endswith("last seen: fine31m")
    assert caplog.messages == ["waiting for nothing: fine31m"]


def test_a_guests_log_is_plain(caplog):
    caplog.set_level("DEBUG", "pytest_kvm.web")
    log = guest_log("web")
    assert guest_log("web") is log
    log.info("it said %s", HOSTILE)
    log.warning(HOSTILE)
    assert caplog.messages == ["it said fine31m", "fine31m"]
