"""What is told of calls of a guest's verbs."""

from __future__ import annotations

import inspect
import re
import threading
import time
from concurrent.futures import Future

import pytest

from pytest_kvm.errors import AgentError, CommandFailed, CommandTimeout
from pytest_kvm.handles import transcript as transcripts
from pytest_kvm.handles.callbacks import Callbacks
from pytest_kvm.handles.guest import Guest
from pytest_kvm.handles.savepoint import Savepoint
from pytest_kvm.handles.transcript import Transcript, noting_all, transcript_of
from pytest_kvm.results import CommandResult
from pytest_kvm.ssh.process import Process
from tests.fakes import output


@pytest.fixture
def guest(machine):
    boot = Future()
    boot.set_result(machine)
    return Guest("web", boot, callbacks=Callbacks())


@pytest.fixture
def told(guest):
    """Return what is told of the guest, without dates and seconds."""

    def told(since=0.0):
        text = transcript_of(guest).text(since=since)
        assert text == "" or text.endswith("\n")
        dates = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}Z ", re.MULTILINE)
        return re.sub(r"after [\d.]+ s", "after N s", dates.sub("DATE ", text)).splitlines()

    return told


class Job(Process):
    """Stands for a process in the background."""

    def __init__(self, result):
        self.result = result
        self.is_lost = False

    @property
    def running(self):
        return self.result.exit_code == -1 and not self.is_lost

    def so_far(self):
        return self.result


def result(code, out=b"", err=b""):
    return CommandResult(argv="job", exit_code=code, stdout_bytes=out, stderr_bytes=err, duration=1.5)


def test_nothing_is_told_of_a_guest_that_nobody_has_used(told):
    assert told() == []


def test_a_command_is_told_with_its_output(guest, shell, told):
    shell.expect("", result(0, b"one\ntwo\n", b"a warning\n"))
    guest.run(["echo", "it's one", "\x1b[2Jtwo"], user="root", timeout=5)
    guest.run("true &&\nfalse")
    assert told() == [
        "DATE run(user='root', timeout=5): exit code 0 after N s",
        "  $ echo 'it'\"'\"'s one' 'two'",
        "  out: one",
        "  out: two",
        "  err: a warning",
        "DATE run(): exit code 0 after N s",
        "  $ true &&",
        "    false",
        "  out: one",
        "  out: two",
        "  err: a warning",
    ]


def test_failures_are_told_with_what_was_written(guest, shell, told):
    shell.expect("fails", output("so far\n", exit_code=3))
    shell.expect("lasts", CommandTimeout("web: `lasts`: still running", result=result(-1, b"partly")))
    for command, error in (("fails", CommandFailed), ("lasts", CommandTimeout)):
        with pytest.raises(error):
            guest.run(command)
    assert told() == [
        "DATE run(): CommandFailed: `fake`: exit code 3 after N s after N s",
        "  $ fails",
        "  out: so far",
        "DATE run(): CommandTimeout: web: `lasts`: still running after N s",
        "  $ lasts",
        "  out: partly",
    ]


def test_secrets_are_not_told(guest, shell, told, monkeypatch):
    shell.expect("refused", ValueError("no environment variable can be MY-TOKEN='hunter2'"))
    shell.expect("", result(0))
    guest.run("login", input="hunter2", env={"PASSWORD": "hunter2"})
    with pytest.raises(AssertionError):
        guest.write_text("/etc/key", "hunter2")
    guest.type_text("hunter2")
    guest.send_keys("h", "u", "n")
    with pytest.raises(AssertionError):
        guest.write_bytes("/etc/key", bytearray(b"hunter2"))
    with pytest.raises(ValueError, match="hunter2"):
        guest.run("refused", env={"MY-TOKEN": "hunter2"})
    assert not any("hunter2" in line or "'h'" in line for line in told())
    assert any(line == "DATE run(env=<1>): ValueError after N s" for line in told())
    assert told()[:2] == ["DATE run(input=<7>, env=<1>): exit code 0 after N s", "  $ login"]
    assert "DATE write_text(path='/etc/key', text=<7>): AssertionError after N s" in told()


def test_of_long_texts_the_end_is_told(guest, shell, told):
    shell.expect("", result(0, b"x" * 5000 + b"\nlast"))
    guest.run(["echo", "y" * 5000])
    first, command, size, *lines = told()
    assert first.startswith("DATE run(): ")
    assert len(command) < 2100
    assert command.endswith("y…")
    assert size == "  out: (the end of 5005 bytes)"
    assert lines[-1] == "  out: last"
    assert sum(map(len, lines)) < 4200


def test_of_calls_with_the_same_end_the_first_and_the_last_are_told(guest, shell, told):
    same = result(1, b"not yet")
    shell.expect("", same, same, same, same, result(1, b"nearly"), result(0, b"done"))
    for _ in range(6):
        guest.run("look", check=False)
    guest.run("look again")
    assert [line for line in told() if not line.startswith("  $")] == [
        "DATE run(check=False): exit code 1 after N s",
        "  out: not yet",
        "DATE run(check=False): exit code 1 after N s (2 times more before)",
        "  out: not yet",
        "DATE run(check=False): exit code 1 after N s",
        "  out: nearly",
        "DATE run(check=False): exit code 0 after N s",
        "  out: done",
        "DATE run(): exit code 0 after N s",
        "  out: done",
    ]


def test_how_much_other_verbs_return_is_told(guest, shell, told):
    shell.expect("journalctl", result(0, b"up\n"))
    guest.journal(lines=3)
    assert told() == ["DATE journal(lines=3): returned 3 characters after N s"]


def test_a_test_that_repeats_the_call_of_the_one_before_has_its_own(guest, shell, told):
    shell.expect("", result(0))
    for _ in range(4):
        since = time.monotonic()
        guest.run("look")
        assert told(since)[1:] == ["  $ look"]


def test_only_what_has_begun_since_is_told(guest, shell, told):
    shell.expect("", result(0))
    guest.run("before")
    since = time.monotonic()
    guest.run("after")
    assert told(since) == ["DATE run(): exit code 0 after N s", "  $ after"]


def test_a_process_is_told_of_while_it_runs_and_when_it_has_ended(guest, told, monkeypatch):
    transcript, job = transcript_of(guest), Job(result(-1, b"begun"))
    with transcript.noting("start()", "serve") as entry:
        entry.end(job)
    assert told() == ["DATE start(): has not ended", "  $ serve", "  out: begun"]
    job.result = result(7, b"begun, ended")
    with transcript.noting("run()", "next"):
        pass
    assert told()[0] == "DATE start(): exit code 7", "nobody has seen when it ended"
    job.result = result(7, b"begun, ended late")
    monkeypatch.setattr(transcripts, "_LATE_OUTPUT", 0)
    with transcript.noting("run()", "next"):
        pass
    assert entry.process is None, "its output is not kept for ever"
    assert told()[:3] == ["DATE start(): exit code 7", "  $ serve", "  out: begun, ended late"]


def test_a_process_that_was_lost_is_told(guest, told):
    job = Job(result(-1, b"begun"))
    with transcript_of(guest).noting("start()") as entry:
        entry.end(job)
    job.is_lost = True
    assert told()[0] == "DATE start(): nobody knows how it has ended"


def test_of_many_processes_the_oldest_are_let_go(guest, told):
    transcript = transcript_of(guest)
    entries = []
    for number in range(103):
        with transcript.noting("start()", f"serve {number}") as entry:
            entry.end(Job(result(-1, b"begun")))
        entries.append(entry)
    assert [entry.process is None for entry in entries] == [True] * 3 + [False] * 100
    assert told()[2] == "  out: begun"


def test_threads_may_ask_at_the_same_time(guest):
    transcript = transcript_of(guest)
    failures = []

    class Slow(Job):
        def so_far(self):
            threading.Event().wait(0.05)
            return self.result

    def ask(action):
        try:
            action()
        except Exception as failure:  # noqa: BLE001 - the test asserts that there is none
            failures.append(failure)

    def call():
        with transcript.noting("run()"):
            pass

    for _ in range(4):
        with transcript.noting("start()") as entry:
            entry.end(Slow(result(0)))
    threads = [
        threading.Thread(target=ask, args=[action]) for action in [call, lambda: transcript.text(since=0)] * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_call_under_way_is_told(guest, shell, told):
    begun, end = threading.Event(), threading.Event()

    def hang():
        begun.set()
        assert end.wait(20)
        return result(0)

    shell.expect("", hang)
    thread = threading.Thread(target=guest.run, args=["hangs"])
    thread.start()
    assert begun.wait(20)
    assert told() == ["DATE run(): has not ended", "  $ hangs"]
    end.set()
    thread.join()


def test_wrong_arguments_are_told_by_python_itself(guest, told):
    with pytest.raises(TypeError, match=r"run\(\) got an unexpected keyword argument 'shell'"):
        guest.run("true", shell=True)
    with pytest.raises(TypeError, match="expected str"):  # of the shell's double
        guest.run([1, None])
    assert told()[1] == "  $ 1 None"


def test_verbs_keep_their_names_and_signatures():
    assert list(inspect.signature(Guest.run).parameters)[:3] == ["self", "command", "input"]
    assert Guest.run.__name__ == "run"
    assert (Guest.run.__doc__ or "").startswith("Run a command in the guest")


def test_programs_that_the_agent_runs_are_told(guest, domain, told):
    ended = {"exited": True, "exitcode": 4, "out-data": "eWVz"}
    domain.agent_replies["guest-exec"] = lambda _: {"pid": 1}
    domain.agent_replies["guest-exec-status"] = lambda _: ended
    with pytest.raises(CommandFailed):
        guest.agent.exec(["cat", "/etc/key"])
    del domain.agent_replies["guest-exec"]
    with pytest.raises(AgentError):
        guest.agent.exec(["id"], input="hunter2")
    assert told() == [
        "DATE agent.exec(): CommandFailed: `cat /etc/key`: exit code 4 after N s after N s",
        "  $ cat /etc/key",
        "  out: yes",
        "DATE agent.exec(input=<7>): AgentError: web: the guest agent is not connected after N s",
        "  $ id",
    ]


def test_a_restore_is_told_to_all_guests_of_the_savepoint():
    both = [Transcript(), Transcript()]
    Savepoint("clean", tag="hand-1", machines=[], use=list, transcripts=both).restore()
    for each in both:
        assert "Z restore() of 'clean': after " in each.text(since=0)


def test_what_a_block_raises_is_told_to_all():
    both = [Transcript(), Transcript()]
    with pytest.raises(ValueError, match="broken"), noting_all(both, "lab.pause()"):
        raise ValueError("broken\nand more")
    for each in both:
        assert "lab.pause(): ValueError: broken?and more after " in each.text(since=0)


def test_names_that_users_give_are_shown_on_one_line():
    transcript = Transcript()
    with transcript.noting("restore() of \x1b[2J\nrun(): forged"):
        pass
    (line,) = transcript.text(since=0).splitlines()
    assert "Z restore() of ?run(): forged: after " in line


def test_the_oldest_calls_are_forgotten():
    transcript = Transcript()
    for number in range(1100):
        with transcript.noting(f"call-{number}()"):
            pass
    text = transcript.text(since=0)
    assert "call-1099()" in text
    assert "call-99()" not in text
