"""What is kept of a machine, and what is noted instead if a part fails."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import replace

import pytest

from pytest_kvm.errors import AgentError, DomainFailed, GuestGone
from pytest_kvm.host.artifact_folder import ArtifactFolder
from pytest_kvm.machine import core_dumps, evidence, questions, way_in
from pytest_kvm.machine.evidence import Evidence
from pytest_kvm.machine.vitals import Trouble
from tests.fakes import LocalShell, fake_machine

PICTURE = b"P6 1 1 255\n\0\0\0"
ENDED = Trouble(guest="web", what="has ended: QEMU died", has_ended=True)
SILENT = Trouble(guest="web", what="does not answer: its kernel is silent", details="RIP=1")
NO_MONITOR = Trouble(
    guest="web", what="does not answer: QEMU's monitor does not answer", monitor_answers=False
)
FROM_HOST = {"console.log", "domain.xml", "qemu.log"}
INSIDE = {"dmesg.txt", "journal.txt"}
PROGRAMS = {
    "dmesg": "echo '[ 1.0] Linux'",
    "journalctl": 'echo "$@" >&2; echo "1796074537.080000 web app[7]: up"',
    "systemctl": "exit 0",
}


@pytest.fixture
def guest(tmp_path, domain):
    """Return a function that makes a machine whose guest is this machine, with programs of the test's own."""
    domain.picture = PICTURE
    domain.log = tmp_path / "qemu.txt"
    domain.log.write_text("qemu-system-x86_64\n")

    def guest(**programs):
        shell = LocalShell({**PROGRAMS, **programs}, folder=tmp_path / "programs")
        return fake_machine(tmp_path, domain=domain, shell=shell)

    return guest


@pytest.fixture
def keep(tmp_path, monkeypatch):
    """Keep everything of a machine; return the texts of the files, and what is missing."""
    (tmp_path / "pattern").write_text(f"{tmp_path}/cores/core.%p\n")
    script = core_dumps.SCRIPT.replace("/proc/sys/kernel/core_pattern", str(tmp_path / "pattern"))
    monkeypatch.setattr(evidence, "_LIST_CORES", script)

    def keep(machine, trouble=None, **options):
        folder = ArtifactFolder(tmp_path / "kept")
        kept = Evidence(machine, folder, since=time.monotonic() - 60, **options)
        kept.keep(trouble)
        about = kept.finish()
        assert about["files"] == folder.files
        texts = {name: (folder.path / name).read_text(errors="replace") for name in folder.files}
        return texts, about["missing"]

    return keep


def test_everything_is_kept_of_a_guest_that_answers(guest, keep):
    texts, missing = keep(guest())
    assert missing == []
    assert texts.keys() >= {"screenshot.png"} | INSIDE | FROM_HOST - {"console.log"}
    assert texts["qemu.log"] == "qemu-system-x86_64\n"
    assert texts["domain.xml"] == "<domain><name>web</name></domain>"
    assert texts["dmesg.txt"] == "[ 1.0] Linux\n"
    assert texts["journal.txt"] == "2026-11-30 21:35:37.080000Z web app[7]: up\n"


def test_the_journal_is_that_of_the_test(guest, keep):
    begun = time.time() - 60
    texts, _ = keep(guest(journalctl='echo "1.000000 web app: ${*##*@}"'))
    since = re.search(r"app: ([\d.]+)$", texts["journal.txt"], re.MULTILINE)
    assert since is not None, texts["journal.txt"]
    assert abs(float(since[1]) - begun) < 30


def test_what_the_agent_logs_of_our_questions_is_left_out(guest, keep):
    now = time.time()
    entries = [
        f"{now - 40:.6f} web qemu-ga[9]: info: guest-exec called: a\n    test's own\n",
        f"{now + 40:.6f} web app[7]: late\n   and more\n",
        f"{now + 40:.6f} web qemu-ga[9]: info: guest-exec called: b\n    of ours\n",
        f"{now + 41:.6f} web app[7]: later\n",
    ]
    texts, _ = keep(guest(journalctl=f'echo "{"".join(entries)}"'))
    assert "test's own" in texts["journal.txt"]
    assert re.findall(r"app\[7\]: (.*)", texts["journal.txt"]) == ["late", "later"]
    assert "of ours" not in texts["journal.txt"]
    assert "and more" in texts["journal.txt"]


@pytest.mark.parametrize(
    "line",
    [
        "99999999999999.000000 web app: far",
        "99999999999.000000 web app: far",
        "x\\r99999999999.000000 web app: far",
        "cut web app: far",
    ],
)
def test_odd_lines_of_the_journal_lose_nothing(guest, keep, line):
    texts, missing = keep(guest(journalctl=f"printf '1796074537.080000 web app[7]: up\\n{line}\\n'"))
    assert missing == []
    assert texts["journal.txt"].startswith("2026-11-30 21:35:37.080000Z web app[7]: up\n")
    assert texts["journal.txt"].endswith("far\n")


def test_a_mistake_of_ours_keeps_no_other_part_from_being_kept(guest, keep, monkeypatch):
    def fails(*_arguments, **_named):
        raise ZeroDivisionError("by us")

    monkeypatch.setattr(evidence, "_journal", fails)
    machine = guest()
    machine.console.read = fails
    texts, missing = keep(machine, console_since=0)
    assert missing == [
        "console.log: ZeroDivisionError('by us')",
        "journal.txt: ZeroDivisionError('by us')",
    ]
    assert texts.keys() >= {"domain.xml", "qemu.log", "screenshot.png", "dmesg.txt"}


def test_errors_are_bounded(guest, keep):
    _, missing = keep(guest(dmesg="head -c 100000 /dev/zero | tr '\\0' x >&2; echo end >&2; exit 3"))
    (told,) = missing
    assert told.startswith("dmesg.txt: exit code 3: xxx")
    assert told.endswith("xxxend")


def test_a_silent_agent_does_not_take_its_time_for_each_question(guest, keep, domain, monkeypatch):
    monkeypatch.setattr(evidence, "_INSIDE_WITHIN", 0.5)
    monkeypatch.setattr(way_in, "_LAST", 0.1)
    monkeypatch.setattr(way_in, "_ask_clock", lambda begin: (0.0, 0.0))
    silence = threading.Event()
    domain.agent_replies["guest-exec"] = lambda _arguments: silence.wait(20)
    asked = []
    monkeypatch.setattr(
        way_in, "ask", lambda question, within: asked.append(within) or questions.ask(question, within=within)
    )
    _, missing = keep(guest())
    silence.set()
    assert sum(asked) < 0.6
    assert "journal.txt: does not answer" in missing


def test_the_console_is_parted_where_the_test_begins(guest, keep, printed):
    printed("before\r\n\x1b[31mof the test\x1b[0m\r\n")
    texts, _ = keep(guest(), console_since=8)
    assert texts["console-before.log"] == "before\n"
    assert texts["console.log"] == "of the test\n"
    (guest().console.log).write_text("anew\n")
    texts, _ = keep(guest(), console_since=100)
    assert texts["console.log"] == "anew\n"


def test_of_a_long_console_the_end_is_kept(guest, keep, printed, monkeypatch):
    monkeypatch.setattr(evidence, "TEXT_LIMIT", 4)
    printed("0123456789")
    texts, missing = keep(guest())
    assert texts["console.log"] == "6789"
    assert "console.log: the last 4 of 10 bytes are kept" in missing


def test_a_guest_that_has_ended_leaves_what_the_host_knows(guest, keep, domain, printed):
    printed("last words")
    domain.end("QEMU died")
    texts, missing = keep(guest(), ENDED)
    assert texts.keys() == FROM_HOST | {"trouble.txt", "missing.txt"}
    assert texts["trouble.txt"] == "web has ended: QEMU died\n"
    assert missing == ["what only the guest itself can tell: has ended: QEMU died"]


def test_a_guest_that_is_silent_has_a_screen(guest, keep):
    texts, missing = keep(guest(), SILENT)
    assert texts["trouble.txt"] == "web does not answer: its kernel is silent\nRIP=1\n"
    assert "screenshot.png" in texts
    assert missing == ["what only the guest itself can tell: does not answer: its kernel is silent"]


def test_a_monitor_that_is_silent_is_not_asked(guest, keep, domain):
    domain.screenshot = pytest.fail
    texts, _ = keep(guest(), NO_MONITOR)
    assert "screenshot.png" not in texts


def test_a_screenshot_is_taken_once(guest, tmp_path, domain):
    taken = []

    def screenshot():
        taken.append(1)
        return PICTURE

    domain.screenshot = screenshot
    kept = Evidence(guest(), ArtifactFolder(tmp_path / "kept"), since=0.0)
    kept.keep_screenshot()
    kept.keep(SILENT)
    assert taken == [1]


def test_parts_of_the_host_that_fail_are_noted(guest, keep, domain, monkeypatch):
    monkeypatch.setattr(evidence, "_PATIENCE", 0.2)

    def fails():
        raise DomainFailed("libvirt is busy")

    domain.xml, domain.screenshot, domain.log = threading.Event().wait, fails, None
    texts, missing = keep(guest())
    assert missing == [
        "domain.xml: does not answer",
        "qemu.log: only libvirt's daemon knows where it is",
        "screenshot.png: fails: libvirt is busy",
    ]
    assert texts.keys() >= INSIDE


@pytest.mark.parametrize(
    ("programs", "noted"),
    [
        ({"journalctl": "echo no journal >&2; exit 1"}, "journal.txt: exit code 1: no journal"),
        ({"dmesg": "echo a; echo not permitted >&2; exit 3"}, "dmesg.txt: exit code 3: not permitted"),
        ({"systemctl": "echo no bus >&2; exit 1"}, "failed-units.txt: exit code 1: no bus"),
    ],
)
def test_a_program_that_fails_is_noted_and_what_it_has_said_is_kept(guest, keep, programs, noted):
    texts, missing = keep(guest(**programs))
    assert missing == [noted]
    assert texts.get("dmesg.txt") in {"[ 1.0] Linux\n", "a\n"}


def test_units_that_have_failed_are_shown(guest, keep):
    systemctl = 'case $1 in list-units) echo a.service ;; status) echo "$*"; exit 3 ;; esac'
    texts, missing = keep(guest(systemctl=systemctl))
    assert missing == []
    assert texts["failed-units.txt"].startswith("status --no-pager")


def test_a_program_that_does_not_end_keeps_no_other_from_being_kept(guest, keep, monkeypatch):
    monkeypatch.setattr(evidence, "_INSIDE_WITHIN", 1.0)
    texts, missing = keep(guest(dmesg="exec sleep 5"))
    assert "dmesg.txt: does not answer" in missing
    assert "journal.txt" in texts


def test_output_is_bounded(guest, keep, monkeypatch):
    monkeypatch.setattr(evidence, "OUTPUT_LIMIT", 4)
    texts, missing = keep(guest(dmesg="echo 0123456789; exit 5", journalctl="exit 0"))
    assert texts["dmesg.txt"] == "789\n"
    assert missing == ["dmesg.txt: the last 4 bytes are kept", "dmesg.txt: exit code 5"]


def test_a_guest_that_nobody_gets_into_is_told(guest, keep, domain, tmp_path):
    def refuses(_arguments):
        raise AgentError("guest-exec has been disabled")

    domain.agent_replies["guest-exec"] = refuses
    machine = guest()

    def run(command, **options):
        raise GuestGone("the connection was dropped")

    machine.shell.run = run
    texts, missing = keep(machine)
    (told,) = missing
    assert told == (
        "what only the guest itself can tell: its agent fails: guest-exec has been disabled; "
        "SSH fails: the connection was dropped"
    )
    assert "domain.xml" in texts


def test_a_guest_that_does_not_know_the_time(guest, keep):
    _, missing = keep(guest(date="echo noon"))
    (told,) = missing
    assert told.endswith("; SSH tells no time: 'noon'")


def test_only_those_who_answer_are_asked(guest, keep):
    machine = guest()
    machine.shell.run = pytest.fail
    by_agent = Trouble(guest="web", what="runs, but its sshd does not answer", agent_answers=True)
    _, missing = keep(machine, by_agent)
    assert missing == [
        "what only the guest itself can tell: its agent fails: web: the guest agent is not connected"
    ]


def test_the_newest_core_dumps_are_kept(guest, keep, tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "_PIECE", 3)
    monkeypatch.setattr(evidence, "_CORE_LIMIT", 100)
    cores = tmp_path / "cores"
    cores.mkdir()
    for number in range(5):
        (cores / f"core.{number}").write_bytes(b"\x7fELF" + b"x" * (number if number != 4 else 100))
        (cores / f"core.{number}").touch()
    (cores / "core.9").symlink_to("core.1")
    texts, missing = keep(guest())
    assert missing == []
    lines = texts["core-dumps.txt"].splitlines()
    assert lines == [
        f"not kept\t104 bytes\t{cores}/core.4",
        f"core-2\t7 bytes\t{cores}/core.3",
        f"core-3\t6 bytes\t{cores}/core.2",
        f"not kept\t5 bytes\t{cores}/core.1",
        f"not kept\t4 bytes\t{cores}/core.0",
    ]
    assert (tmp_path / "kept" / "core-2").read_bytes() == b"\x7fELFxxx"
    assert "core-1" not in texts


def test_core_dumps_that_cannot_be_read_are_noted(guest, keep, tmp_path):
    (tmp_path / "cores").mkdir()
    (tmp_path / "cores" / "core.1").write_bytes(b"\x7fELF")
    texts, missing = keep(guest(head="exit 1"))
    assert missing == ["core-1: cannot be read, or changes"]
    assert "core-1" not in texts
    _, missing = keep(guest(find="echo broken >&2; exit 1"))
    assert missing[-1].startswith("core dumps: exit code ")


def test_lines_that_are_no_core_dumps_are_left_out():
    assert evidence._cores(b"1.0 5 relative\nnonsense\n2.0 x /a\n1.5 7 /a b\n2.5 8 /c\xff\n") == [
        (8, "/c\udcff"),
        (7, "/a b"),
    ]


def test_a_console_firmware_log_is_kept(guest, keep):
    machine = guest()
    (machine.folder / "console.firmware.log").write_text("SeaBIOS\n")
    texts, _ = keep(replace(machine))
    assert texts["console-firmware.log"] == "SeaBIOS\n"


@pytest.fixture
def dumped(monkeypatch):
    """Note what is dumped and when guests are renewed."""
    done = []

    def keep_dumps(_machine, folder, *, what):
        done.append(sorted(what))
        folder.write_together("frozen", lambda place: (place / "frozen.json").touch())

    monkeypatch.setattr(evidence, "keep_dumps", keep_dumps)
    monkeypatch.setattr(evidence, "renew", lambda machine: done.append(f"{machine.name} is renewed"))
    return done


def keep_with_dump(machine, tmp_path, trouble, **options):
    folder = ArtifactFolder(tmp_path / "dumped")
    kept = Evidence(machine, folder, since=time.monotonic() - 60, dump={"memory", "guest"}, **options)
    kept.keep(trouble)
    return folder


def test_a_guest_is_dumped_before_it_is_asked(guest, tmp_path, dumped):
    folder = keep_with_dump(guest(), tmp_path, None)
    assert dumped == [["guest", "memory"], "web is renewed"]
    assert folder.files.index("frozen/") < folder.files.index("journal.txt")
    assert folder.missing == []


@pytest.mark.parametrize("trouble", [SILENT, ENDED])
def test_a_guest_in_trouble_is_dumped_and_not_renewed(guest, tmp_path, dumped, trouble):
    folder = keep_with_dump(guest(), tmp_path, trouble)
    assert dumped == [["guest", "memory"]]
    assert "frozen/" in folder.files


def test_a_guest_with_a_way_in_is_renewed_whatever_is_the_matter(guest, tmp_path, dumped):
    keep_with_dump(guest(), tmp_path, replace(SILENT, agent_answers=True))
    assert dumped == [["guest", "memory"], "web is renewed"]


def test_a_guest_that_is_about_to_go_is_not_renewed(guest, tmp_path, dumped):
    keep_with_dump(guest(), tmp_path, None, goes_on=False)
    assert dumped == [["guest", "memory"]]


def test_a_clock_that_cannot_be_set_is_told(guest, tmp_path, dumped, monkeypatch):
    def renew(_machine):
        raise GuestGone("web has no python3")

    monkeypatch.setattr(evidence, "renew", renew)
    folder = keep_with_dump(guest(), tmp_path, None)
    assert "frozen/" in folder.files
    assert folder.missing == [
        "the right time in the guest, which has stood still: GuestGone('web has no python3')"
    ]


def test_a_monitor_that_is_silent_is_asked_for_no_dump(guest, tmp_path, dumped):
    folder = keep_with_dump(guest(), tmp_path, NO_MONITOR)
    assert dumped == []
    assert "dumps: does not answer: QEMU's monitor does not answer" in folder.missing


def test_nothing_is_dumped_unasked(guest, keep, dumped):
    keep(guest())
    assert dumped == []
