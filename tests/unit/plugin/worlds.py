"""Generated suites of tests and fixtures that change fake guests, and what each must find there."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st

from pytest_kvm.plugin.session import coordinator_of
from tests.fakes_state import FakeGuest, FakeSegment

GUESTS = ("web", "database")
SCOPES = ("session", "package", "module", "class")
WORLD = pytest.StashKey["World"]()

CONFTEST = """
import pytest
from tests.unit.plugin.worlds import GUESTS, WORLD

@pytest.fixture(scope="session")
def world(pytestconfig):
    return pytestconfig.stash[WORLD]

@pytest.fixture
def me(world, request):
    me = world.begin(request.node.name)
    world.act(me, GUESTS[:1])
    yield me
    world.act(me, GUESTS[1:])
    world.end(me)
"""


@dataclass(frozen=True, kw_only=True)
class Fixture:
    name: str
    scope: str
    needs: tuple[str, ...]
    changes: tuple[str, ...]
    talks: bool
    """Whether the first guest that it changes changes the other one by a frame."""
    params: int
    """How many it has for all tests; -1: a test may choose one."""
    fails: bool


@dataclass(frozen=True, kw_only=True)
class Test:
    wants: tuple[str, ...]
    """Fixtures, in the order of its arguments."""
    chosen: tuple[tuple[str, int], ...]
    """Parameters it has for some of them, which other tests have not."""
    asks: tuple[str, ...]
    """Fixtures it sets up in its midst."""
    changes: tuple[str, ...]
    talks: bool


@st.composite
def suites(draw):
    """Return fixtures, the widest first, and tests by module and class."""
    scopes = sorted(draw(st.lists(st.sampled_from(SCOPES), min_size=1, max_size=4)), key=SCOPES.index)
    fixtures = []
    for number, scope in enumerate(scopes):
        known = [each.name for each in fixtures]
        fixtures.append(
            Fixture(
                name=f"f{number}",
                scope=scope,
                needs=tuple(draw(st.permutations(known))[: draw(st.integers(0, min(1, len(known))))]),
                changes=draw(some_guests()),
                talks=draw(st.booleans()),
                params=draw(st.sampled_from([0, 0, -1, 2])),
                fails=draw(st.integers(0, 9)) == 0,
            )
        )
    tests = st.lists(st.lists(one_test(fixtures), min_size=1, max_size=3), min_size=1, max_size=2)
    return fixtures, draw(st.lists(tests, min_size=1, max_size=2))


def some_guests():
    return st.lists(st.sampled_from(GUESTS), unique=True, max_size=2).map(tuple)


@st.composite
def one_test(draw, fixtures):
    names = draw(st.permutations([each.name for each in fixtures]))
    wants = names[: draw(st.integers(0, len(names)))]
    by_name = {each.name: each for each in fixtures}

    def needs_params(name):
        return by_name[name].params or any(map(needs_params, by_name[name].needs))

    free = [name for name in names if name not in wants and not needs_params(name)]
    open_ones = [name for name in wants if by_name[name].params]
    chosen = (
        draw(st.dictionaries(st.sampled_from(open_ones), st.integers(7, 8), max_size=1)) if open_ones else {}
    )
    talks = draw(st.booleans())
    # A fixture that is set up in the midst of a test keeps what the test did by frames: see life-cycle.md.
    is_told_nothing = not talks and not any(each.talks for each in fixtures)
    return Test(
        wants=tuple(wants),
        chosen=tuple(chosen.items()),
        asks=tuple(free[: draw(st.integers(0, 1))]) if is_told_nothing else (),
        changes=draw(some_guests()),
        talks=talks,
    )


def written(suite, folder):
    """Write a suite to a folder, a package in a package."""
    fixtures, modules = suite
    package = folder / "generated"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "conftest.py").write_text(CONFTEST + "\n".join(map(_fixture_source, fixtures)))
    for number, classes in enumerate(modules):
        text = "import pytest\n\n" + "".join(
            _class_source(index, tests) for index, tests in enumerate(classes)
        )
        (package / f"test_{number}.py").write_text(text)


def _fixture_source(fixture):
    params = f", params=range({fixture.params})" if fixture.params > 0 else ""
    return textwrap.dedent(f"""
        @pytest.fixture(scope="{fixture.scope}"{params})
        def {fixture.name}({", ".join(["world", *fixture.needs])}):
            me = world.begin("{fixture.name}")
            world.act(me, {fixture.changes}, talks={fixture.talks})
            if {fixture.fails}:
                world.end(me)
                raise RuntimeError
            yield me
            world.act(me, {fixture.changes}, talks={fixture.talks}, is_ending=True)
            world.end(me)
    """)


def _class_source(index, tests):
    lines = [f"class Test{index}:"]
    for number, test in enumerate(tests):
        lines += [
            *(
                f"    @pytest.mark.parametrize('{name}', [{value}], indirect=True)"
                for name, value in test.chosen
            ),
            f"    def test_{number}(self, request, world, me, {', '.join(test.wants)}):",
            f"        world.act(me, {test.changes}, talks={test.talks})",
            *(f"        world.ask(request, '{name}')" for name in test.asks),
            f"        world.act(me, {test.changes}, talks={test.talks})",
            f"        world.expect({', '.join(test.wants)})",
            "",
        ]
    return "\n".join(lines) + "\n"


class World:
    """Knows what each guest must hold: the changes of all who have not ended.

    The obvious model: a list for each guest. What an owner that has ended did
    stays only while somebody who built on it is being torn down.
    """

    def __init__(self) -> None:
        self.guests: dict[str, FakeGuest] = {}
        self.changes: dict[str, list[str]] = {name: [] for name in GUESTS}
        """What each guest must hold: who changed it, in order."""
        self.ended: set[str] = set()
        self.begun = 0
        self.wrong: list[str] = []
        """Whatever was not as it had to be."""

    def begin(self, name):
        self.begun += 1
        return f"{name}#{self.begun}"

    def act(self, owner, guests, *, talks=False, is_ending=False):
        """Look at guests and change them; the first may change the other guest, too."""
        for name in guests:
            self._expect(owner, name, self.guests[name].look(), is_ending=is_ending)
            self.guests[name].change(owner)
            self.changes[name].append(owner)
        for other in set(GUESTS).difference(guests) if talks and guests else ():
            found = self.guests[guests[0]].talk_to(self.guests[other], owner)
            self._expect(owner, other, found, is_ending=is_ending)
            self.changes[other].append(owner)

    def _expect(self, owner, name, found, *, is_ending):
        expected = list(self.changes[name])
        left = [each for each in expected if each in self.ended]
        if left and not is_ending:
            self.wrong.append(f"{owner}: the model itself has {left} in {name}")
        if found != expected:
            self.wrong.append(f"{owner}: {name} holds {found}, not {expected}")

    def expect(self, *owners):
        """Look at whether what a test was given is still there."""
        self.wrong += [f"{owner} ended under a test" for owner in owners if owner in self.ended]

    def ask(self, request, name):
        """Set a fixture up in the midst of a test."""
        try:
            request.getfixturevalue(name)
        except RuntimeError:
            return

    def end(self, owner):
        """Note that an owner has ended."""
        self.ended.add(owner)
        for changes in self.changes.values():
            while changes and changes[-1] in self.ended:
                changes.pop()


class WorldPlugin:
    """Gives a suite its world."""

    def __init__(self) -> None:
        self.world = World()

    @pytest.hookimpl
    def pytest_sessionstart(self, session):
        coordinator = coordinator_of(session.config)
        self.world.guests = {name: FakeGuest(name, coordinator) for name in GUESTS}
        FakeSegment(*self.world.guests.values())
        session.config.stash[WORLD] = self.world
