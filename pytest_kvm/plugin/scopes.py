"""Follows pytest's scopes: which test or fixture is at work, and when its changes to guests end.

A test owns the changes that it and its function-scoped fixtures make. Every
fixture of a wider scope owns the changes that it makes itself. Undoing an
owner's changes also undoes all changes that were made after them. So a fixture
that was set up after a narrower one, or while a test ran, is torn down together
with that narrower fixture or test, and is set up again when it is next asked
for. The same holds for every fixture that changed a guest which a test has
switched off.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_kvm.provision.undo_log import Owner

if TYPE_CHECKING:
    import pytest

    from pytest_kvm.provision.reset_coordinator import ResetCoordinator


@dataclass(frozen=True, kw_only=True)
class _Fixture:
    """A wider-scoped fixture that is set up."""

    definition: pytest.FixtureDef[Any]
    request: pytest.FixtureRequest
    param: object

    def finish(self) -> None:
        """Tear the fixture down now; pytest sets it up again when it is next asked for."""
        self.definition.finish(self.request)  # type: ignore[arg-type]  # a SubRequest, whose type is private


def _no_hook(owner: Owner) -> None:
    """Do nothing: for a session in which no hook is called."""
    del owner


class Scopes:
    """Tells the coordinator which test or fixture is at work, and ends their changes.

    Args:
        coordinator: Knows the owners and the changes to guests.
        finish_hook: Ends an owner that is a hook's call and no fixture.
    """

    def __init__(
        self, coordinator: ResetCoordinator, *, finish_hook: Callable[[Owner], None] = _no_hook
    ) -> None:
        self._coordinator = coordinator
        self._finish_hook = finish_hook
        self._fixtures: dict[Owner, _Fixture] = {}
        """Fixtures that can be finished: those that are set up and not being torn down."""
        self._test: Owner | None = None
        """The test that runs, until its own fixtures are torn down."""
        self._test_is_over = False

    # ------------------------------------------------------------ tests

    def begin(self, item: pytest.Item) -> None:
        """Put a test at work; to be called before its set-up."""
        self._test = Owner(item.name, reset=_reset_of(item))
        self._test_is_over = False
        self._coordinator.enter(self._test)
        self.finish_outdated(item, only_changed=True)

    @contextmanager
    def tearing_down(self) -> Generator[None]:
        """Follow a test's teardown, and that of fixtures which no later test uses, during a block."""
        test = self._test
        self._test_is_over = True
        try:
            yield
        finally:
            try:
                self._end_test()
            finally:
                if test is not None:
                    self._coordinator.leave(test)

    def _end_test(self) -> None:
        """End the test as an owner, once its own fixtures are torn down: its changes are to be undone."""
        test, self._test = self._test, None
        if test is not None:
            self._end(test)

    def finish_outdated(self, item: pytest.Item, *, only_changed: bool = False) -> None:
        """Finish fixtures that this test needs with other parameters.

        pytest finishes them too, with all that depends on them, but only when it
        sets them up anew. By then the test may already have a fixture that has to
        be finished together with them, or have asked for the room that their guests have.

        Args:
            item: The test.
            only_changed: Whether only those count after which guests were changed.
        """
        wanted = getattr(item, "fixturenames", ())
        params: dict[str, object] = getattr(getattr(item, "callspec", None), "params", {})
        fixtures = list(self._fixtures.items())
        for index, (owner, fixture) in reversed(list(enumerate(fixtures))):
            name = fixture.definition.argname
            is_outdated = name in wanted and not _is_same(params.get(name), fixture.param)
            later = [each for each, _ in fixtures[index:]]
            if is_outdated and (not only_changed or any(map(self._coordinator.has_changes_of, later))):
                self._finish(owner)

    # ------------------------------------------------------------ fixtures

    @contextmanager
    def setting_up(
        self, definition: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None]:
        """Put a wider-scoped fixture at work during a block, its set-up."""
        if request.scope == "function":
            yield
            return
        owner = Owner(f"fixture {definition.argname}")
        # Finalizers run last in, first out: this one runs after the fixture's own …
        definition.addfinalizer(partial(self._end_fixture, owner))
        try:
            with self._coordinator.at_work(owner):
                yield
        except BaseException:
            self._end(owner)
            raise
        self._fixtures[owner] = _Fixture(
            definition=definition, request=request, param=getattr(request, "param", None)
        )
        # … and this one before the fixture's own.
        definition.addfinalizer(partial(self._begin_teardown, owner))

    def _begin_teardown(self, owner: Owner) -> None:
        """Put a fixture at work for its teardown."""
        del self._fixtures[owner]
        # Before anything is finished: this fixture may need a fixture that is
        # finished here; pytest then completes this fixture's teardown first.
        self._coordinator.enter(owner)
        if self._test_is_over:
            # The test's own fixtures are torn down by now: pytest begins with them.
            self._end_test()
        self._finish_losers(owner)

    def _end_fixture(self, owner: Owner) -> None:
        self._coordinator.leave(owner)
        self._end(owner)

    # ------------------------------------------------------------ both

    def _end(self, owner: Owner) -> None:
        """Mark an owner's changes as to be undone, and finish the fixtures that lose theirs with them."""
        with ExitStack() as stack:  # does the rest if one step fails; the last is the first
            stack.callback(self._coordinator.cut_off, owner)
            stack.callback(self._finish_losers, owner)  # for their teardown they may need the segments
            stack.callback(owner.end)

    def _finish_losers(self, owner: Owner) -> None:
        """Finish the fixtures whose changes are lost when the owner's are undone."""
        with ExitStack() as stack:  # finishes the rest if one fails
            for each in reversed(self._coordinator.losers(owner)):
                stack.callback(self._finish, each)

    def _finish(self, owner: Owner) -> None:
        fixture = self._fixtures.get(owner)
        if fixture is None:
            self._finish_hook(owner)
        else:
            fixture.finish()


def _is_same(param: object, other: object) -> bool:
    """Compare parameters as pytest does; comparing some values, such as arrays, gives no single answer."""
    try:
        return bool(param == other)
    except (ValueError, RuntimeError):
        return param is other


def _reset_of(item: pytest.Item) -> Any:  # noqa: ANN401 - checked at collection, as all of the marker is
    """Return the ``reset`` of the closest ``kvm`` marker that has one, else None."""
    return next((each.kwargs["reset"] for each in item.iter_markers("kvm") if "reset" in each.kwargs), None)
