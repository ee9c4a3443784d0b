from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pytest_kvm.errors import LoginRefused, QemuDied, SshUnavailable, UnitNotActive
from pytest_kvm.machine.boot import Boot, Phases
from pytest_kvm.machine.console_errors import ConsoleWatch
from pytest_kvm.machine.readiness import log_in, wait_until_ready
from pytest_kvm.settings import Timeouts
from tests.fakes import output

ABSENT = "absent\n---\n\n---\n"
WRITTEN = json.dumps({"v1": {"init": {"finished": 1.0}}})


@pytest.fixture
def booting(machine, sshd):
    return replace(
        machine, access=replace(machine.access, port=sshd), timeouts=Timeouts(boot=10, login=3, cloud_init=5)
    )


def made_ready(machine, units=()):
    phases = Phases(machine.log)
    wait_until_ready(machine, phases=phases, units=units)
    return phases.seconds()


def test_the_rungs_are_reached_in_order(booting, shell, printed):
    shell.expect("result.json ]", ABSENT)
    shell.expect("systemctl show", "")
    printed("SeaBIOS\n")
    phases = made_ready(booting, units=["nginx.service"])
    assert list(phases) == ["power_on", "console", "banner", "login", "cloud_init", "nginx.service", "ready"]
    assert shell.connected


def test_an_early_refusal_is_retried_until_the_keys_are_written(booting, shell, domain):
    shell.logins = [LoginRefused("no key"), LoginRefused("no key"), SshUnavailable("dropped"), None]
    shell.expect("result.json ]", ABSENT)
    assert "ready" in made_ready(booting)


def test_a_refusal_is_final_once_the_keys_are_written(booting, shell, domain):
    domain.agent_has_file("/run/cloud-init/status.json", WRITTEN)
    refusal = LoginRefused("web: sshd refused the key", details="as root")
    shell.logins = [refusal] * 3
    with pytest.raises(LoginRefused, match=r"web: sshd refused the key(.|\n)*as root(.|\n)*→ the seed's key"):
        made_ready(replace(booting, timeouts=Timeouts(login=600)))
    assert len(shell.logins) == 1


def test_without_any_word_of_cloud_init_a_refusal_is_final_at_the_deadline(booting, shell):
    shell.logins = [LoginRefused("no key", resolution="use the right one")] * 99
    with pytest.raises(LoginRefused, match=r"no key(.|\n)*→ use the right one"):
        made_ready(replace(booting, timeouts=Timeouts(login=1)))


def test_the_time_for_the_login_is_what_the_banner_has_left(booting, shell):
    shell.logins = [SshUnavailable("dropped")] * 99
    phases = Phases(booting.log)
    boot = Boot(machine=booting, phases=phases, watch=ConsoleWatch(booting.console))
    reached = []

    def nothing_left():
        reached.extend(phases.seconds())
        return 0.0

    with pytest.raises(LoginRefused, match="dropped"):
        log_in(boot, banner=600, login=nothing_left)
    assert reached == ["power_on", "banner"]


def test_a_unit_that_failed_is_told_as_the_rung(booting, shell):
    shell.expect("result.json ]", ABSENT)
    shell.expect("systemctl show", output("ActiveState=failed\n", exit_code=76))
    shell.expect("systemctl status", "nginx: bad config")
    with pytest.raises(UnitNotActive, match=r"nginx.service will not become active(.|\n)*bad config"):
        made_ready(booting, units=["nginx.service"])


def test_a_guest_that_dies_while_a_unit_starts_is_told_by_its_rung(booting, shell, domain):
    def dies():
        domain.end("killed by signal 9")
        return shell.hang()

    shell.expect("result.json ]", ABSENT)
    shell.expect("systemctl show", dies)
    with pytest.raises(QemuDied, match="killed by signal 9"):
        made_ready(booting, units=["nginx.service"])
