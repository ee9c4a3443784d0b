"""Captures that are kept of tests, and the names of their files."""

from __future__ import annotations

import pytest

from pytest_kvm.errors import SwitchFailed
from pytest_kvm.plugin.captures import copy_captures
from pytest_kvm.plugin.file_names import place_of


class Captured:
    """A capture, as far as keeping it is concerned."""

    def __init__(self, path, content, *, problem=""):
        self.path = path
        self._content = content
        self._problem = problem

    def flush(self):
        """Write its file, as far as it comes."""
        self.path.write_text(self._content)
        if self._problem:
            raise SwitchFailed(self._problem)


@pytest.fixture
def captured(tmp_path):
    def captured(content, *, problem=""):
        return Captured(tmp_path / f"of {content}", content, problem=problem)

    return captured


def test_captures_of_the_same_name_have_files_of_their_own(tmp_path, captured):
    folder = tmp_path / "there"
    folder.mkdir()
    names = ["lan", "lan-2", "lan", "lan", "a b"]
    lines = list(copy_captures([(name, captured(f"{at}")) for at, name in enumerate(names)], folder))
    kept = {path.name: path.read_text() for path in folder.iterdir()}
    assert [kept.pop(f"{name}.pcapng") for name in ("lan", "lan-2", "lan-3", "lan-4")] == list("0123")
    assert list(kept.values()) == ["4"]
    assert lines[:4] == [f"{folder}/{name}.pcapng" for name in ("lan", "lan-2", "lan-3", "lan-4")]


def test_a_capture_that_is_not_whole_is_kept_as_far_as_it_is(tmp_path, captured):
    captures = [("lan", captured("half", problem="it has broken off: no space")), ("wan", captured("whole"))]
    (tmp_path / "there").mkdir()
    half, whole = copy_captures(captures, tmp_path / "there")
    assert half == f"{tmp_path}/there/lan.pcapng (it has broken off: no space)"
    assert whole == f"{tmp_path}/there/wan.pcapng"
    kept = tmp_path / "there" / "lan.pcapng"
    assert kept.read_text() == "half"
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_gone_is_told_and_the_others_are_kept(tmp_path, captured):
    gone = captured("gone")
    gone.flush = lambda: None
    (tmp_path / "there").mkdir()
    first, second = copy_captures([("lan", gone), ("lan", captured("here"))], tmp_path / "there")
    assert first.startswith("lan.pcapng is not kept: ")
    assert second == f"{tmp_path}/there/lan-2.pcapng"


def test_no_two_tests_have_the_same_folder():
    tests = ["a/t.py::f", "a-t.py::f", "t.py::A::f", "t.py::f[a/b]", "t.py::f[a-b]", "t.py::f[a::b]"]
    tests += [
        "../t.py::f",
        "t.py::f[../..]",
        "d\udcff/t.py::f",
        f"t.py::f[{'x' * 300}]",
        f"t.py::f[{'x' * 300}1]",
    ]
    folders = ["there" / place_of(each) for each in tests]
    assert len(set(folders)) == len(tests)
    for folder in folders:
        assert folder.is_relative_to("there")
        assert ".." not in folder.parts
        assert len(folder.name) < 140
    assert list(map(str, folders[:5:2])) == ["there/a/t.py/f", "there/t.py/A-f", "there/t.py/f[a-b]"]
