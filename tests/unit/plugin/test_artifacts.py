"""Folders for what is kept of tests."""

from __future__ import annotations

from pathlib import Path

from pytest_kvm.plugin.artifacts import folder_of


def test_no_two_tests_have_the_same_folder():
    tests = ["a/t.py::f", "a-t.py::f", "t.py::A::f", "t.py::f[a/b]", "t.py::f[a-b]", "t.py::f[a::b]"]
    tests += ["../t.py::f", "t.py::f[../..]", f"t.py::f[{'x' * 300}]", f"t.py::f[{'x' * 300}1]"]
    folders = [folder_of(each, Path("there")) for each in tests]
    assert len(set(folders)) == len(tests)
    for folder in folders:
        assert folder.is_relative_to("there")
        assert ".." not in folder.parts
        assert len(folder.name) < 140
    assert list(map(str, folders[:5:2])) == ["there/a/t.py/f", "there/t.py/A-f", "there/t.py/f[a-b]"]
