"""Guests that there is never room for are told before anything starts; a skipped test asks for nothing."""

from __future__ import annotations

import re

import pytest

HEAD = "import pytest\nimport pytest_kvm as kvm\n"


@pytest.fixture
def run(pytester, tmp_path):
    def run(source, *arguments):
        pytester.makepyfile(HEAD + source)
        places = [f"--kvm-limits-dir={tmp_path / 'limits'}", f"--kvm-cache-dir={tmp_path}"]
        return pytester.runpytest(*places, *arguments)

    return run


BIG = """
@kvm.guest
def machine():
    return kvm.GuestSpec(memory="2GiB", vcpus=4)

def test_big(machine):
    pass
"""
KNOWN_LATE = """
@pytest.fixture(scope="module")
def memory():
    return "2GiB"

@kvm.guest
def machine(memory):
    return kvm.GuestSpec(memory=memory, vcpus=1)

def test_big(machine):
    machine.run("true")
"""
MARKED = """
@kvm.guest
def machine():
    return kvm.GuestSpec(memory="512MiB")

@pytest.mark.kvm(memory="2GiB")
def test_big(machine):
    pass
"""
TOGETHER = """
@kvm.guest
def one():
    return kvm.GuestSpec(memory="512MiB", vcpus=2)

@kvm.guest(scope="module")
def two():
    return kvm.GuestSpec(memory="600MiB", vcpus=2)

def test_big(one, two):
    pass
"""
ON_THE_FLY = """
def test_big(kvm_guests):
    kvm_guests.boot_all(*[kvm.GuestSpec(memory="512MiB", vcpus=2)] * 3)
"""


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (
            BIG,
            ["--kvm-max-memory=1GiB"],
            "the guests of *::test_big: there is never room for 2 GiB of memory: * may have 1 GiB*",
        ),
        (BIG, ["-o", "kvm_max_vcpus=3"], "*room for 4 virtual processors: * may have 3 virtual processors*"),
        (KNOWN_LATE, ["--kvm-max-memory=1GiB"], "machine: there is never room for 2 GiB of memory*"),
        (MARKED, ["--kvm-max-memory=1GiB"], "*there is never room for 2 GiB of memory*"),
        (TOGETHER, ["--kvm-max-memory=1GiB"], "*there is never room for 1.09 GiB of memory*"),
        (TOGETHER, ["--kvm-max-guests=1"], "*never room for 2 guests: * may have 1 guest (--kvm-max-guests)"),
        (ON_THE_FLY, ["--kvm-max-guests=2"], "*there is never room for 3 guests*"),
    ],
)
def test_what_there_is_never_room_for_is_an_error_at_once(run, source, arguments, message):
    result = run(source, *arguments)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*NoCapacity: {message}", "*raise the limit with --kvm-max-*"])


@pytest.mark.parametrize("option", ["--kvm-max-memory=8", "--kvm-max-vcpus=0", "--kvm-max-guests=many"])
def test_a_limit_that_is_none_is_refused(run, option):
    result = run(BIG, option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{option.partition('=')[0]}: '*' does not fit*"])


@pytest.mark.parametrize("how", ["mark", "hook"])
def test_a_skipped_test_asks_for_nothing(run, pytester, tmp_path, how):
    if how == "hook":
        pytester.makeconftest("import pytest\ndef pytest_runtest_setup(item): pytest.skip('not today')")
    run("pytestmark = pytest.mark.skip\n" * (how == "mark") + BIG).assert_outcomes(skipped=1)
    assert not (tmp_path / "limits").exists()


@pytest.mark.parametrize("option", ["--setup-plan", "--collect-only"])
def test_a_plan_asks_for_nothing(run, tmp_path, option):
    assert run(BIG, option).ret in {0, pytest.ExitCode.NO_TESTS_COLLECTED}
    assert not (tmp_path / "limits").exists()


SHOWS_PEAK = """
from pytest_kvm.plugin.reservation import _peak_of

def pytest_collection_finish(session):
    print("peak:", *_peak_of(session))
"""
SCOPES = """
@kvm.guest(scope="session")
def everywhere():
    return kvm.GuestSpec(memory="1GiB", vcpus=1)

@kvm.guest(scope="class", params=["100MiB", "200MiB"])
def by_class(request):
    return kvm.GuestSpec(memory=request.param, vcpus=1)

@kvm.guest
def each():
    return kvm.GuestSpec(memory="500MiB", vcpus=1)

def test_session(everywhere):
    pass

class TestA:
    def test_class(self, by_class):
        pass

    def test_other(self):
        pass

    @pytest.mark.kvm(memory="600MiB")
    def test_marked(self, each):
        pass

def test_alone(each):
    pass
"""


@pytest.mark.parametrize(
    ("more", "peak"),
    [
        # All of the session, the larger of the class's, and what the marked test has for itself.
        ("", (1024 + 200 + 600, 3, 3)),
        ("def test_factory(kvm_guests): pass", (1024 + 1024, 3, 3)),
        # Nothing is known of the guest of the module, and it lives beside all of the above.
        (KNOWN_LATE.replace("@kvm.guest", "@kvm.guest(scope='module')"), (2848, 5, 4)),
    ],
)
def test_the_most_that_a_session_will_have_is_known_before_it_begins(pytester, more, peak):
    pytester.makepyfile(HEAD + SCOPES + more)
    pytester.makeconftest(SHOWS_PEAK)
    result = pytester.runpytest("--collect-only", "-s")
    result.stdout.fnmatch_lines([f"peak: {' '.join(map(str, peak))}"])


OVERRIDING = """
@kvm.guest
def web():
    return kvm.GuestSpec(memory="512MiB", vcpus=1)

class TestWithMore:
    @pytest.fixture
    def web(self, web):
        return web

    def test_it(self, web):
        pass
"""
PACKAGE = """
@kvm.guest(scope="package")
def shared():
    return kvm.GuestSpec(memory="300MiB", vcpus=1)

@kvm.guest
def own():
    return kvm.GuestSpec(memory="500MiB", vcpus=1)

def test_shared(shared):
    pass

def test_own(own):
    pass
"""


@pytest.mark.parametrize(
    ("source", "peak"),
    [
        (OVERRIDING, (512, 1, 1)),
        # A package's guest may live until the session ends.
        (PACKAGE, (800, 2, 2)),
    ],
)
def test_guests_that_are_easily_overlooked_count(pytester, source, peak):
    pytester.makepyfile(HEAD + source)
    pytester.makeconftest(SHOWS_PEAK)
    result = pytester.runpytest("--collect-only", "-s")
    result.stdout.fnmatch_lines([f"peak: {' '.join(map(str, peak))}"])


WITHOUT_GUESTS = """
import pytest
from pytest_kvm.provision.run import Run

@pytest.fixture(autouse=True, scope="session")
def no_guests():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "start", start)
        patch.setattr(Run, "remove", lambda run, *guests: print("removed", *guests))
        yield

def start(run, spec, *, name, **rest):
    room = run._admission.room(name, Amount.of(spec))
    room.take_reserved()
    print("start", name, *room.granted)
    return name

from pytest_kvm.provision.admission_rules import Amount
"""
OTHER_PARAMETERS = """
@kvm.guest(scope="session", params=["3GiB", "1GiB"])
def box(request):
    return kvm.GuestSpec(memory=request.param, vcpus=1)

@kvm.guest
def web():
    return kvm.GuestSpec(memory="2GiB", vcpus=1)

def test_here(box, web):
    pass
"""


def test_a_guest_of_other_parameters_is_removed_before_there_is_asked_for_room(run, pytester):
    """Else it would take the room that is asked for, and the new one would not be asked for."""
    pytester.makeconftest(WITHOUT_GUESTS)
    result = run(OTHER_PARAMETERS, "-s", "--kvm-max-memory=8GiB")
    result.assert_outcomes(passed=2)
    assert re.findall(r"(?:start|removed) (?:box|web).*", result.stdout.str()) == [
        "start box 3072 1 1",
        "start web 2048 1 1",
        "removed web",
        "removed box",
        "start box 1024 1 1",
        "start web 2048 1 1",
        "removed web",
        "removed box",
    ]
