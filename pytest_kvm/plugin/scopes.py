"""pytest's scopes as owners of changes: who is at work, and when its changes end.

A test owns what it and its function-scoped fixtures do; every fixture of a
wider scope owns what it does itself. What lies on top of an owner's changes
cannot outlive them: a fixture that was set up after a narrower one, or in the
midst of a test, ends with it, and is set up again for whoever asks next. So
does every fixture that changed a guest which a test has switched off.
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
        """Tear it down now; pytest sets it up again for the next who asks."""
        self.definition.finish(self.request)  # type: ignore[arg-type]  # a SubRequest, whose type is private


def _no_hook(owner: Owner) -> None:
    """Stand in where no hook is called."""
    del owner


class Scopes:
    """Tells the coordinator who is at work.

    Args:
        coordinator: Keeps the guests' changes apart.
        finish_hook: Ends an owner that is no fixture but a hook's call.
    """

    def __init__(
        self, coordinator: ResetCoordinator, *, finish_hook: Callable[[Owner], None] = _no_hook
    ) -> None:
        self._coordinator = coordinator
        self._finish_hook = finish_hook
        self._fixtures: dict[Owner, _Fixture] = {}
        """Those that can be finished: set up, and not being torn down."""
        self._test: Owner | None = None
        """The test under way, until its own fixtures are torn down."""
        self._test_is_over = False

    # ------------------------------------------------------------ tests

    def begin(self, item: pytest.Item) -> None:
        """Let a test be at work: its set-up is about to begin."""
        self._test = Owner(item.name, reset=_reset_of(item))
        self._test_is_over = False
        self._coordinator.enter(self._test)
        self._finish_outdated(item)

    @contextmanager
    def tearing_down(self) -> Generator[None]:
        """Watch a test's teardown, and with it that of the fixtures no further test wants."""
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
        """Undo the test's changes from now on: its own fixtures are torn down."""
        test, self._test = self._test, None
        if test is not None:
            self._end(test)

    def _finish_outdated(self, item: pytest.Item) -> None:
        """Finish fixtures that changed guests and that this test wants with other parameters.

        pytest does so too, but only when it comes to them: a fixture that ends
        with them might then be in the test's hands already.
        """
        wanted = getattr(item, "fixturenames", ())
        params: dict[str, object] = getattr(getattr(item, "callspec", None), "params", {})
        for owner, fixture in reversed(list(self._fixtures.items())):
            name = fixture.definition.argname
            is_outdated = name in wanted and not _is_same(params.get(name), fixture.param)
            if is_outdated and self._coordinator.has_changes_of(owner):
                self._finish(owner)

    # ------------------------------------------------------------ fixtures

    @contextmanager
    def setting_up(
        self, definition: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None]:
        """Let a fixture be at work during its set-up, if it is not the test's own."""
        if request.scope == "function":
            yield
            return
        owner = Owner(f"fixture {definition.argname}")
        # Finalizers run last in, first out: this one when the fixture's own are done …
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
        # … and this one before them.
        definition.addfinalizer(partial(self._begin_teardown, owner))

    def _begin_teardown(self, owner: Owner) -> None:
        """Let a fixture be at work during its teardown."""
        del self._fixtures[owner]
        # First of all: what is finished here may be needed by the fixture itself,
        # whose teardown pytest then completes on the way.
        self._coordinator.enter(owner)
        if self._test_is_over:
            # pytest tears down what is the test's own before anything wider.
            self._end_test()
        self._finish_losers(owner)

    def _end_fixture(self, owner: Owner) -> None:
        self._coordinator.leave(owner)
        self._end(owner)

    # ------------------------------------------------------------ both

    def _end(self, owner: Owner) -> None:
        """Undo an owner's changes from now on."""
        owner.ended = True
        self._finish_losers(owner)

    def _finish_losers(self, owner: Owner) -> None:
        """Finish the fixtures whose changes would go with the owner's."""
        with ExitStack() as stack:  # goes on when one of them fails
            for each in reversed(self._coordinator.losers(owner)):
                stack.callback(self._finish, each)

    def _finish(self, owner: Owner) -> None:
        fixture = self._fixtures.get(owner)
        if fixture is None:
            self._finish_hook(owner)
        else:
            fixture.finish()


def _is_same(param: object, other: object) -> bool:
    """Compare as pytest does: some values, such as arrays, have no one answer."""
    try:
        return bool(param == other)
    except (ValueError, RuntimeError):
        return param is other


def _reset_of(item: pytest.Item) -> Any:  # noqa: ANN401 - checked at collection, as all of the marker is
    """Return what the closest marker says about the test's changes."""
    return next((each.kwargs["reset"] for each in item.iter_markers("kvm") if "reset" in each.kwargs), None)
