"""Layers of changes: what is saved and undone, and above all what is not."""

from __future__ import annotations

import pytest

from pytest_kvm.errors import SnapshotFailed
from pytest_kvm.provision.joint_reset import DIRECT, PLANNED, make_ready
from pytest_kvm.provision.undo_log import Owner, UndoLog
from tests.fakes_state import FakeState


@pytest.fixture
def state():
    return FakeState()


@pytest.fixture
def events():
    return []


@pytest.fixture
def make(state, events):
    def make(reset="auto"):
        return UndoLog("web", state, reset=reset, tell=events.append)

    return make


@pytest.fixture
def undo_log(make):
    return make()


@pytest.fixture
def change(state):
    def change(undo_log, owner):
        use(undo_log, owner)
        state.content.append(owner.name)

    return change


def use(undo_log, owner):
    make_ready({undo_log: DIRECT}, owner)


def settle(undo_log, owner):
    make_ready({undo_log: PLANNED}, owner)


def ended(owner):
    owner.ended = True
    return owner


def test_the_first_to_change_a_guest_costs_nothing(undo_log, state, change):
    owner = Owner("a")
    settle(undo_log, owner)
    change(undo_log, owner)
    change(undo_log, owner)
    ended(owner)
    assert state.done == []


def test_the_next_owner_finds_the_guest_as_it_was(undo_log, state, change):
    first, second = Owner("a"), Owner("b")
    change(undo_log, first)
    ended(first)
    change(undo_log, second)
    assert state.content == ["b"]
    assert state.done == ["restore"]


def test_who_does_not_use_the_guest_costs_nothing(undo_log, state, change):
    change(undo_log, ended(Owner("a")))
    for name in "bcd":
        owner = Owner(name)
        settle(undo_log, owner)
        ended(owner)
    assert state.done == ["restore"]


def test_a_fixtures_changes_are_kept_for_each_test_and_saved_once(undo_log, state, change):
    fixture = Owner("fixture")
    change(undo_log, fixture)
    for name in "abc":
        test = Owner(name)
        settle(undo_log, test)
        change(undo_log, test)
        assert state.content == ["fixture", name]
        ended(test)
    assert state.done == ["take", "restore", "restore"]


def test_a_fixture_that_is_torn_down_sees_its_own_changes_only(undo_log, state, change):
    fixture, test = Owner("fixture"), Owner("test")
    change(undo_log, fixture)
    change(undo_log, test)
    ended(test)
    use(undo_log, fixture)
    assert state.content == ["fixture"]
    change(undo_log, ended(fixture))
    change(undo_log, Owner("next"))
    assert state.content == ["next"]


def test_scopes_that_end_together_cost_one_restore(undo_log, state, change):
    owners = [Owner(name) for name in "abc"]
    for owner in owners:
        change(undo_log, owner)
    for owner in owners:
        ended(owner)
    change(undo_log, Owner("d"))
    assert state.content == ["d"]
    assert state.done == ["take", "take", "restore"]


def test_points_that_nothing_leads_back_to_are_dropped_before_another_is_taken(undo_log, state, change):
    for name in "abcdef":
        fixture, test = Owner(f"fixture {name}"), Owner(name)
        change(undo_log, fixture)
        change(undo_log, test)
        assert state.points == 1
        ended(test)
        ended(fixture)


def test_what_lies_on_top_of_an_owners_own_changes_is_undone_and_no_more(undo_log, state, change):
    below, late, top = Owner("below"), Owner("late"), Owner("top")
    for owner in (below, late, top):
        change(undo_log, owner)
    ended(below)
    ended(top)
    use(undo_log, late)
    assert state.content == ["below", "late"]
    ended(late)
    use(undo_log, Owner("next"))
    assert state.content == []


def test_who_loses_its_changes(undo_log, change):
    below, late, top = Owner("below"), Owner("late"), Owner("top")
    for owner in (below, late, top, below):
        change(undo_log, owner)
    assert undo_log.losers(below) == [late, top]
    assert undo_log.losers(top) == [below]
    ended(top)
    assert undo_log.losers(below) == [late]
    assert undo_log.losers(Owner("stranger")) == []


def test_all_lose_theirs_when_the_guest_has_ended(undo_log, state, change):
    below, above = Owner("below"), Owner("above")
    first, test = Owner("first"), Owner("test")
    for owner in (first, below, test, above):
        change(undo_log, owner)
    state.is_lost = True
    assert undo_log.losers(test) == [first, below, above]
    assert undo_log.losers(first) == [below, test, above]
    for owner in (first, below, test, above):
        ended(owner)
    change(undo_log, Owner("next"))
    assert state.content == ["next"]


def test_changes_that_go_with_others_are_told(undo_log, change, caplog):
    below, late = Owner("below"), Owner("late")
    change(undo_log, below)
    change(undo_log, late)
    ended(below)
    use(undo_log, Owner("next"))
    assert "web: what late did is undone early" in caplog.messages


# ---------------------------------------------------------------- reset="never" and "always"


def test_a_guest_that_is_never_reset(make, state, change):
    undo_log = make("never")
    for name in "abc":
        settle(undo_log, owner := Owner(name))
        change(undo_log, owner)
        ended(owner)
    assert state.content == ["a", "b", "c"]
    assert state.done == []


def test_a_test_that_continues_the_work_of_the_one_before(undo_log, state, change):
    fixture = Owner("fixture")
    change(undo_log, fixture)
    for name in "ab":
        change(undo_log, ended(Owner(name, reset="never")))
    test = Owner("test")
    settle(undo_log, test)
    change(undo_log, test)
    assert state.content == ["fixture", "a", "b", "test"]
    change(undo_log, ended(test))
    change(undo_log, Owner("next"))
    assert state.content == ["fixture", "a", "b", "next"]
    ended(fixture)


def test_its_changes_go_with_the_fixture_below(undo_log, state, change):
    fixture = Owner("fixture")
    change(undo_log, fixture)
    change(undo_log, ended(Owner("a", reset="never")))
    ended(fixture)
    change(undo_log, Owner("next"))
    assert state.content == ["next"]


def test_a_test_of_its_own_after_ones_that_continue(undo_log, state, change):
    """Nothing is below: what they did is the guest's state from then on."""
    change(undo_log, ended(Owner("a", reset="never")))
    change(undo_log, ended(Owner("b")))
    change(undo_log, Owner("c"))
    assert state.content == ["a", "c"]


def test_always_asks_not_whether_the_guest_was_used(make, state):
    undo_log = make("always")
    for name in "ab":
        settle(undo_log, owner := Owner(name))
        state.content.append("behind our back")
        ended(owner)
    settle(undo_log, Owner("c"))
    assert state.content == []
    assert state.done == ["restore", "restore"]


def test_the_marker_is_heard_before_the_spec(make, state, change):
    undo_log = make("never")
    change(undo_log, ended(Owner("a", reset="auto")))
    change(undo_log, Owner("b"))
    assert state.content == ["b"]


def test_a_use_outside_of_tests_joins_the_topmost_changes(undo_log, state, change):
    fixture = Owner("fixture")
    change(undo_log, fixture)
    settle(undo_log, Owner("a"))
    undo_log.touch()
    state.content.append("outside")
    change(undo_log, ended(Owner("b")))
    change(undo_log, Owner("c"))
    assert state.content == ["fixture", "outside", "c"]


# ---------------------------------------------------------------- failures and events


def test_a_savepoint_that_is_refused_names_both_sides_and_what_to_do(undo_log, state, change):
    change(undo_log, Owner("fixture server"))
    state.refuses = "`nc -l 80` runs in the background"
    with pytest.raises(SnapshotFailed) as caught:
        settle(undo_log, Owner("test_a"))
    assert caught.value.brief == (
        "web: no savepoint between what fixture server did and test_a: `nc -l 80` runs in the background"
    )
    assert 'or say reset="never"' in caught.value.resolution
    state.refuses = ""
    change(undo_log, Owner("test_b"))
    assert state.content == ["fixture server", "test_b"]


def test_a_restore_that_fails_is_tried_again_by_the_next(undo_log, state, change):
    change(undo_log, Owner("fixture"))
    change(undo_log, ended(Owner("a")))
    state.is_lost = True
    for _ in range(2):
        with pytest.raises(SnapshotFailed):
            settle(undo_log, Owner("b"))
    state.is_lost = False
    change(undo_log, Owner("c"))
    assert state.content == ["fixture", "c"]


def test_events_say_how_and_why(undo_log, events, change):
    fixture, test = Owner("fixture"), Owner("test_a")
    change(undo_log, fixture)
    change(undo_log, test)
    ended(test)
    settle(undo_log, Owner("test_b"))
    assert [(each.guest, each.kind, each.tier, each.why) for each in events] == [
        ("web", "savepoint", None, "before test_a"),
        ("web", "reset", "load", "after test_a"),
    ]


def test_a_savepoint_that_is_lost_holds_nothing_that_anybody_misses(undo_log, state, change):
    """Neighbours have sent something before anybody was at work, and then the guest was switched off."""
    base = list(state.content)
    state.content.append("frames")
    state.frames += 1
    change(undo_log, test := Owner("test"))
    assert state.content == [*base, "frames", "test"]
    state.is_lost = True
    ended(test)
    settle(undo_log, Owner("next"))
    assert state.content == base


def test_a_savepoint_that_is_lost_with_changes_of_somebody_is_an_error(undo_log, state, change):
    change(undo_log, Owner("fixture"))
    change(undo_log, test := Owner("test"))
    state.is_lost = True
    ended(test)
    with pytest.raises(SnapshotFailed, match="it is lost"):
        settle(undo_log, Owner("next"))
