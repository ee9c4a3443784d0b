from __future__ import annotations

import json
import threading

import pytest

from pytest_kvm.errors import (
    CloudInitFailed,
    CloudInitTimeout,
    CommandFailed,
    CommandTimeout,
    DomainFailed,
    KernelPanicked,
    SshUnavailable,
)
from pytest_kvm.machine import cloud_init
from pytest_kvm.machine.boot import Boot, Phases
from pytest_kvm.machine.cloud_init import Status, keys_are_written, wait_for_cloud_init
from pytest_kvm.machine.console_errors import ConsoleWatch
from tests.fakes import LocalShell, fake_machine, output

# As cloud-init 25.1 writes it, shortened.
STATUS = {
    "v1": {
        "datasource": "DataSourceNoCloud [seed=/dev/sr0]",
        "init": {"errors": [], "finished": 9.5, "recoverable_errors": {}, "start": 8.0},
        "init-local": {"errors": [], "finished": 7.2, "recoverable_errors": {}, "start": 6.1},
        "modules-final": {
            "errors": ["('scripts_user', RuntimeError('Runparts: 1 failures (runcmd) in 1 attempted'))"],
            "finished": None,
            "recoverable_errors": {"WARNING": ["cloud-config failed schema validation!"]},
            "start": 12.0,
        },
        "stage": "modules-final",
    }
}
RESULT = {"v1": {"datasource": "DataSourceNoCloud", "errors": ["scripts_user failed"]}}


def ending(verdict, status=None, result=None):
    """Return what the script prints when cloud-init has come to an end."""
    texts = [json.dumps(each, indent=1) if each else "" for each in (status, result)]
    return "\n---\n".join([f'stage "init",\nstage\n{verdict}', texts[0] + "\n", texts[1]])


def test_a_status_is_read():
    status = Status.parse(json.dumps(STATUS))
    assert status.network_stage_over
    assert status.errors == tuple(STATUS["v1"]["modules-final"]["errors"])
    assert status.warnings == ("cloud-config failed schema validation!",)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"v1": 5}', '{"v1": {"errors": 5, "init": []}}', '{"v1": {"stage": null}}'],
)
def test_a_status_that_makes_no_sense_says_nothing(text):
    assert Status.parse(text) == Status()


def test_a_clean_end_passes(boot, shell):
    clean = {"v1": {"stage": None, "init": {"finished": 1.0, "errors": []}}}
    shell.expect("result.json ]", ending("done", clean, {"v1": {"errors": []}}))
    wait_for_cloud_init(boot, timeout=60)


def test_an_image_without_cloud_init_passes(boot, shell):
    shell.expect("result.json ]", ending("absent"))
    wait_for_cloud_init(boot, timeout=60)


def test_its_own_errors_and_output_are_told(boot, shell, caplog):
    shell.expect("result.json ]", ending("done", STATUS, RESULT))
    shell.expect("tail", "sh: 3: nosuchcommand: not found\n")
    with pytest.raises(CloudInitFailed, match=r"scripts_user.*1 failures \(runcmd\)") as failed:
        wait_for_cloud_init(boot, timeout=60)
    assert "nosuchcommand: not found" in failed.value.details
    assert "schema validation" in caplog.text


def test_an_end_without_a_result_is_a_failure(boot, shell):
    shell.expect("result.json ]", ending("ended"))
    shell.expect("tail", output("", exit_code=1))
    with pytest.raises(CloudInitFailed, match="never ran to its end"):
        wait_for_cloud_init(boot, timeout=60)


def test_the_deadline_names_the_stage(boot, shell):
    progress = 'stage "init",\nstage\nstage "modules-final",\n'
    shell.expect("result.json ]", CommandTimeout("late", result=output(progress)))
    shell.expect("tail", "Unpacking nginx\n")
    with pytest.raises(CloudInitTimeout, match="still ran after 60 s, in its stage modules-final") as late:
        wait_for_cloud_init(boot, timeout=60)
    assert "Unpacking nginx" in late.value.details


def test_a_connection_that_user_data_breaks_is_made_again(boot, shell):
    shell.expect("result.json ]", SshUnavailable("reset"), ending("done"))
    wait_for_cloud_init(boot, timeout=60)


def test_a_restart_that_user_data_asks_for_ends_no_boot(boot, shell):
    """sshd ends with SIGTERM what it runs, and the connection a moment later."""
    going_down = output('stage "modules-final",\n', exit_code=143)
    shell.expect("result.json ]", going_down, SshUnavailable("no connection"), ending("done"))
    wait_for_cloud_init(boot, timeout=60)


@pytest.mark.parametrize("exit_code", [0, 1, 127])
def test_a_wait_that_ends_by_itself_without_a_word_fails_the_boot(boot, shell, exit_code):
    """A restart ends it by a signal; a login shell that runs no commands by itself, again and again."""
    shell.expect("result.json ]", output("This account is not available.\n", exit_code=exit_code))
    with pytest.raises(CloudInitFailed, match=f"could not wait for .*: sh exited with {exit_code}") as failed:
        wait_for_cloud_init(boot, timeout=60)
    assert "This account is not available." in failed.value.details


def test_a_shell_that_never_runs_the_wait_fails_the_boot(boot, shell):
    never = CommandFailed("web: the login shell ended", details="bye", result=output(""))
    shell.expect("result.json ]", never)
    with pytest.raises(
        CloudInitFailed, match="could not wait for cloud-init: web: the login shell"
    ) as failed:
        wait_for_cloud_init(boot, timeout=60)
    assert "bye" in failed.value.details


def test_output_that_cannot_be_read_hides_no_error(boot, shell):
    shell.expect("result.json ]", ending("done", STATUS, RESULT))
    shell.expect("tail", SshUnavailable("web: the connection was lost"))
    with pytest.raises(CloudInitFailed, match=r"1 failures \(runcmd\)") as failed:
        wait_for_cloud_init(boot, timeout=60)
    assert "could not be read: web: the connection was lost" in failed.value.details


def test_a_panic_ends_the_wait(boot, shell, printed):
    shell.expect("result.json ]", shell.hang)
    printed("Kernel panic - not syncing: x\n")
    with pytest.raises(KernelPanicked):
        wait_for_cloud_init(boot, timeout=600)


@pytest.fixture
def scripted(tmp_path, domain, monkeypatch):
    """Run the script on this machine, with a run folder and a systemctl of the test's own."""

    def made(*, unit):
        elsewhere = cloud_init._WAIT.replace("/run/cloud-init", str(tmp_path / "run"))
        monkeypatch.setattr(cloud_init, "_WAIT", elsewhere.replace("/proc/", f"{tmp_path}/proc/"))
        programs = {
            "systemctl": f"""
                [ $1 = show ] || exec cat {tmp_path}/system
                printf 'Job=%s\\nActiveState=%s\\n' {unit}
            """,
            "sleep": f"""
                [ $1 != 1 ] || {{
                    [ -e {tmp_path}/killed ] && echo running >{tmp_path}/system && kill $PPID
                    touch {tmp_path}/killed
                }}
                exec /bin/sleep 0.01
            """,
        }
        machine = fake_machine(tmp_path, domain=domain, shell=LocalShell(programs, folder=tmp_path / "bin"))
        return Boot(machine=machine, phases=Phases(machine.log), watch=ConsoleWatch(machine.console))

    return made


def test_a_machine_without_cloud_init_is_recognised(scripted):
    wait_for_cloud_init(scripted(unit="'' active"), timeout=10)


def test_a_disabled_cloud_init_is_not_waited_for(scripted, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "disabled").touch()
    wait_for_cloud_init(scripted(unit="'' inactive"), timeout=10)


def test_the_result_is_waited_for_and_read(scripted, tmp_path, caplog):
    run = tmp_path / "run"
    run.mkdir()
    (run / "status.json").write_text(json.dumps(STATUS, indent=1))
    timer = threading.Timer(0.3, (run / "result.json").write_text, [json.dumps(RESULT)])
    timer.start()
    with pytest.raises(CloudInitFailed, match="1 failures"):
        wait_for_cloud_init(scripted(unit="17 inactive"), timeout=10)


def test_a_restart_after_its_end_is_waited_for(scripted, tmp_path):
    """As power_state does it: a child of cloud-init outlives it, and asks for the restart."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("{}")
    child, system = tmp_path / "proc/17/comm", tmp_path / "system"
    child.parent.mkdir(parents=True)
    child.write_text("cloud-init\n")
    system.write_text("running\n")

    def restart():
        system.write_text("stopping\n")
        child.unlink()

    timer = threading.Timer(0.3, restart)
    timer.start()
    wait_for_cloud_init(scripted(unit="'' active"), timeout=30)
    assert not child.exists()
    # The shutdown ended a sleep of the wait, then the wait, which began again.
    assert system.read_text() == "running\n"


def test_a_last_stage_that_will_never_run_ends_the_wait(scripted, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(CloudInitFailed, match="never ran to its end"):
        wait_for_cloud_init(scripted(unit="'' inactive"), timeout=30)


def test_of_a_qemu_that_has_ended_the_console_tells_about_keys(boot, domain, printed, monkeypatch):
    def gone(*_, **__):
        raise DomainFailed("requested operation is not valid: domain is not running")

    monkeypatch.setattr(domain, "agent", gone)
    printed("Cloud-init v. 22.4.2 running 'modules:config' at ...\n")
    assert keys_are_written(boot)


def test_keys_are_written_once_the_network_stage_is_over(boot, domain, printed):
    assert not keys_are_written(boot)
    domain.agent_has_file("/run/cloud-init/status.json", json.dumps(STATUS))
    assert keys_are_written(boot)
    domain.agent_replies.clear()
    printed("[   21.3] cloud-init[412]: Cloud-init v. 25.1 running 'modules:config' at Sun, 22 Nov\n")
    assert keys_are_written(boot)
