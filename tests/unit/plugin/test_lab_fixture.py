"""What ``@kvm.lab_template`` takes as guests, what its template depends on, and which mistakes it names."""

from __future__ import annotations

import re
from concurrent.futures import Future

import pytest

from pytest_kvm.errors import SpecError
from pytest_kvm.handles.guest import Guest
from pytest_kvm.plugin import lab_fixture
from pytest_kvm.plugin.lab_fixture import lab_template

SUITE = """
import pytest
import pytest_kvm as kvm


@pytest.fixture(scope="module")
def port():
    return 80


@kvm.lab_template
def pair(one, two, port):
    print("forming")


def test_value(pair, one, two):
    assert isinstance(pair, kvm.Lab)
    assert pair.guests == (one, two)


def test_again(pair):
    pass
"""


class FakeRun:
    """Forms labs by calling their functions."""

    def __init__(self) -> None:
        self.formed: list[str] = []
        self.digests: list[str] = []

    def form(self, guests, *, name, function, digest):
        """Do as :meth:`pytest_kvm.provision.run.Run.form` does without a template."""
        self.formed.append(f"{name} of {', '.join(guest.name for guest in guests)}")
        self.digests.append(digest())
        function()
        self.digests[-1] = digest()


class Guests:
    """Gives an inner run two guests that are never used."""

    @pytest.fixture(scope="session")
    def one(self):
        return Guest("one", Future())

    @pytest.fixture(scope="session")
    def two(self):
        return Guest("two", Future())


@pytest.fixture
def run(monkeypatch):
    run = FakeRun()
    monkeypatch.setattr(lab_fixture, "run_of", lambda _config: run)
    return run


@pytest.fixture
def outcomes(pytester, run):
    """Run a suite and return its outcomes."""

    def outcomes(suite, *, name="test_suite"):
        pytester.makepyfile(**{name: suite})
        arguments = ("-p", "no:cacheprovider", "--import-mode=importlib", f"{name}.py")
        return pytester.inline_run(*arguments, plugins=[Guests()])

    return outcomes


def failure_of(result):
    [report] = [each for each in result.getreports("pytest_runtest_logreport") if each.failed][:1]
    return str(report.longrepr)


def digest_of(outcomes, run, suite, *, name="test_suite"):
    outcomes(suite, name=name)
    return run.digests[-1]


def test_the_value_is_the_lab_of_the_guests_among_the_arguments(outcomes, run):
    outcomes(SUITE).assertoutcome(passed=2)
    assert run.formed == ["pair of one, two"]


def test_the_same_suite_in_another_folder_has_the_same_template(outcomes, run, pytester):
    first = digest_of(outcomes, run, SUITE)
    assert digest_of(outcomes, run, SUITE, name="test_copy") == first


@pytest.mark.parametrize(
    "changed",
    [
        SUITE.replace("return 80", "return 8080"),
        SUITE.replace("forming", "forming otherwise"),
        SUITE.replace("return 80", "return '80'"),
        SUITE.replace("return 80", "return (80, [None, 1.5])"),
        SUITE.replace("@kvm.lab_template", "@kvm.lab_template(depends_on=['notes'])"),
        SUITE.replace("def pair(one, two, port)", "def pair(two, one, port)"),
    ],
    ids=["value", "text", "type", "nested", "depends_on", "order"],
)
def test_what_the_function_is_and_gets_leads_to_another_template(outcomes, run, pytester, changed):
    (pytester.path / "notes").write_text("x")
    first = digest_of(outcomes, run, SUITE)
    assert digest_of(outcomes, run, changed, name="test_changed") != first


def test_a_file_it_depends_on_leads_to_another_template(outcomes, run, pytester):
    suite = SUITE.replace("@kvm.lab_template", "@kvm.lab_template(depends_on=['notes'])")
    (pytester.path / "notes").mkdir()
    (pytester.path / "notes" / "one").write_text("x")
    first = digest_of(outcomes, run, suite)
    (pytester.path / "notes" / "one").write_text("y")
    assert digest_of(outcomes, run, suite) != first


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ("return 80", "return object()", "asks for port, whose value is of type object"),
        ("one, two, port):\n    print", "port):\n    print", "the lab template pair asks for no guest"),
        ('print("forming")', "return 1", "the lab template pair returned int"),
        (
            "@kvm.lab_template",
            "@kvm.lab_template(depends_on=['gone'])",
            r"depends_on\[0\]: .*gone does not exist",
        ),
        ("one, two, port):\n    print", "request, one):\n    print", "asks for request"),
    ],
    ids=["object", "no guest", "value", "no file", "request"],
)
def test_a_mistake_is_an_error_of_set_up_that_names_it(outcomes, was, becomes, says):
    assert was in SUITE
    result = outcomes(SUITE.replace(was, becomes, 1))
    assert {report.when for report in result.getfailures()} == {"setup"}
    assert re.search(says, failure_of(result))


async def asynchronous(one):
    pass


def generator(one):
    yield


@pytest.mark.parametrize(
    ("function", "arguments", "says"),
    [
        (generator, {}, "the lab template generator yields, but it has no teardown"),
        (asynchronous, {}, "the lab template asynchronous is asynchronous"),
        (lambda one: None, {"scope": "function"}, 'has the scope "function"'),
    ],
    ids=["yield", "async", "scope"],
)
def test_a_mistake_in_the_declaration_is_found_at_collection(function, arguments, says):
    with pytest.raises(SpecError, match=says):
        lab_template(**arguments)(function)


def test_one_path_is_no_list_of_paths():
    with pytest.raises(SpecError, match="depends_on is the text 'notes'"):
        lab_template(depends_on="notes")(lambda one: None)


def test_a_function_without_a_file_is_refused():
    scope = {}
    exec("def pair(one):\n    pass\n", scope)
    with pytest.raises(SpecError, match="the file of pair cannot be read"):
        lab_template(scope["pair"])
