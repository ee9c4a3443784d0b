"""Lab templates: two guests with a connection between them, formed by one run and found by another."""

from __future__ import annotations

from uuid import uuid4

import pytest

from pytest_kvm.boot_cache.inventory import Inventory
from pytest_kvm.plugin.session import settings_stashed
from tests.plugin.inner_suite import PAIR

SUITE = (
    PAIR
    + """

SERVER = '''
import pathlib, socket
client, _ = socket.create_server(("", 7000)).accept()
for line in client.makefile():
    pathlib.Path("/run/heard.new").write_text(line)
    pathlib.Path("/run/heard.new").rename("/run/heard")
    client.sendall(line.encode())
'''
CLIENT = '''
import itertools, socket
server = socket.create_connection(("right", 7000))
for number in itertools.count(1):
    server.sendall(b"%d\\\\n" % number)
    assert int(server.recv(100)) == number
'''


def start(guest, unit, script):
    guest.write_text(f"/root/{unit}.py", script)
    guest.run(["systemd-run", f"--unit={unit}", "--quiet", "python3", f"/root/{unit}.py"])


@kvm.lab_template
def talk(lan, left, right):
    start(right, "server", SERVER)
    right.wait_until("ss -Hltn 'sport = 7000' | grep .")
    start(left, "client", CLIENT)
    right.wait_for_file("/run/heard")
    savepoint = kvm.lab(left, right).savepoint()
    left.write_text("/root/undone", "x")
    savepoint.restore()
    left.write_text("/root/formed", left.run(["cat", "/proc/sys/kernel/random/uuid"]).stdout)


@pytest.mark.parametrize("number", range(3))
def test_goes_on(talk, left, right, number):
    before = int(right.read_text("/run/heard"))
    right.wait_until(f"test $(cat /run/heard) -gt {before + 20}")
    with open("formed", "a") as file:
        file.write(left.read_text("/root/formed"))
    assert talk.guests == (left, right)
    right.run(["ping", "-c", "1", "left"])
    assert left.run(["ls", "/root"]).stdout.split() == ["client.py", "formed"]
    with left.savepoint():
        left.write_text("/root/changed", "x")
    left.wait_for_file("/root/changed", absent=True)
    left.write_text("/root/changed", "x")
    if number == 1:
        left.power_off()

"""
)

WITHOUT = (
    PAIR
    + """

@kvm.lab_template(scope="class")
def with_a_process(left, right):
    left.start(["sleep", "1000"])


class TestWithAProcess:
    def test_is_an_error(self, with_a_process):
        pass


@kvm.lab_template(scope="class", depends_on=["notes"])
def cannot_be_frozen(left, right):
    with open("notes", "a") as notes:
        notes.write("x")
    left.run("echo formed >>/root/formed")


class TestCannotBeFrozen:
    def test_is_formed_on_guests_begun_anew(self, cannot_be_frozen, left):
        assert left.read_text("/root/formed") == "formed\\n"


@pytest.fixture(scope="module")
def changed(right):
    right.run(["touch", "/root/changed"])


@kvm.lab_template(scope="class")
def on_changed_guests(changed, left, right):
    left.write_text("/root/formed", "in another way")


class TestOnChangedGuests:
    def test_both_changes_are_there(self, on_changed_guests, left, right):
        right.run(["test", "-e", "/root/changed"])
        assert left.read_text("/root/formed") == "in another way"
"""
)


@pytest.fixture
def inventory(pytestconfig):
    """The boot cache; what a test adds to it is removed."""
    inventory = Inventory.of(settings_stashed(pytestconfig))
    before = {each.key for each in inventory.list()}
    yield inventory
    for each in inventory.list():
        if each.key not in before and each.manifest is not None and each.manifest.facts.get("lab"):
            inventory.remove(each.key)


@pytest.fixture
def run(pytester, inventory):
    """Run the suite, which is another one in each test."""
    new = uuid4()

    def run(suite, *arguments):
        pytester.makepyfile(test_inner=f"{suite}\n# {new}\n")
        return pytester.runpytest_subprocess("-vv", *arguments, timeout=500)

    return run


def test_a_formed_lab_is_frozen_once_and_later_runs_start_from_it(run, pytester):
    first = run(SUITE)
    first.assert_outcomes(passed=3)
    first.stdout.fnmatch_lines(["talk: forming * (no template yet) in *test_goes_on?0?"])
    first.stdout.fnmatch_lines(["talk: lab start * in *test_goes_on?2?"])
    later = run(SUITE)
    later.assert_outcomes(passed=3)
    assert not [line for line in later.outlines if line.startswith("talk: forming")]
    formed = (pytester.path / "formed").read_text().split()
    assert len(formed) == 6
    assert len(set(formed)) == 1


def test_a_lab_without_a_template_is_formed_all_the_same(run, pytester):
    (pytester.path / "notes").touch()
    result = run(WITHOUT)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["cannot_be_frozen: forming * (what cannot_be_frozen depends on changed *"])
    result.stdout.fnmatch_lines(
        ["*SpecError: the lab template with_a_process has left *<Process left: `sleep 1000`*"]
    )
    result.stdout.fnmatch_lines(
        ["on_changed_guests: forming * (right was changed by fixture changed before) *"]
    )
