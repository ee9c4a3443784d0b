"""Notes of what a run has made on its host, which are carried out if it is killed."""

from __future__ import annotations

import pytest

from pytest_kvm.host import undo_notes
from pytest_kvm.host.undo_notes import UndoNotes, carry_out


@pytest.fixture(autouse=True)
def _program(monkeypatch):
    monkeypatch.setitem(undo_notes._PROGRAMS, "network", "tests.unit.host.undo_program")


@pytest.fixture
def add(tmp_path):
    return UndoNotes(tmp_path).add


def test_what_is_left_is_undone_the_newest_first(tmp_path, add):
    log = tmp_path / "log"
    for word in ("first", "second"):
        add("network", "log", str(log), word)
    add("network", "fail")()
    assert carry_out(tmp_path)
    assert log.read_text().split() == ["second", "first"]
    assert carry_out(tmp_path)
    assert log.read_text().split() == ["second", "first"]


def test_there_may_be_nothing_to_undo(tmp_path):
    assert carry_out(tmp_path)


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (["fail", "the daemon is away"], "the daemon is away"),
        (["fail"], "exit status 1"),
        ([], "TimeoutExpired"),
    ],
    ids=["told", "silent", "hanging"],
)
def test_what_fails_is_told_and_tried_again(tmp_path, add, facts, why, monkeypatch, capsys):
    if not facts:
        monkeypatch.setattr(undo_notes, "_PATIENCE", 0.5)
    add("network", *facts)
    if facts:
        add("network", "log", str(tmp_path / "other"), "undone")
    for _ in range(2):
        assert not carry_out(tmp_path)
        told = capsys.readouterr().err
        assert "000001.json is not undone, and a later run will try again" in told
        assert why in told
    assert not facts or (tmp_path / "other").read_text() == "undone\n"


@pytest.mark.parametrize("text", ["", "[]", "7", '["house"]', '["network", 7]'])
def test_a_damaged_note_keeps_no_other_from_being_carried_out(tmp_path, add, text, capsys):
    add("network", "log", str(tmp_path / "log"), "undone")
    (tmp_path / undo_notes.FOLDER / "000002.json").write_text(text)
    assert not carry_out(tmp_path)
    assert "000002.json is not undone" in capsys.readouterr().err
    assert (tmp_path / "log").exists()


def test_a_note_that_another_process_carries_out_is_no_problem(tmp_path, add, monkeypatch):
    add("network", "fail")()
    (tmp_path / undo_notes.FOLDER / "000002.json").symlink_to("gone")
    assert carry_out(tmp_path)
