"""Files of several processes in one folder, each locked by its own."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from pytest_kvm.errors import HostError, NoCapacity
from pytest_kvm.host import register as register_module
from pytest_kvm.host.register import Register


@pytest.fixture
def new_register(tmp_path):
    made = []

    def new_register():
        made.append(Register(tmp_path / "limits"))
        return made[-1]

    yield new_register
    for each in made:
        each.close()


def test_what_one_writes_the_others_read(new_register):
    mine, other = new_register(), new_register()
    with mine.turn():
        mine.write({"taken": 30})
        mine.write({"taken": 1})
    with other.turn():
        assert other.others() == [{"format": 1, "taken": 1}]
    with mine.turn():
        assert mine.others() == []


def test_only_one_has_its_turn(new_register, monkeypatch):
    monkeypatch.setattr(register_module, "_GUARD_WITHIN", 0.05)
    mine, other = new_register(), new_register()
    with mine.turn(), pytest.raises(NoCapacity, match="another process has its turn"), other.turn():
        pass
    with other.turn():
        pass


def test_the_end_leaves_nothing_but_the_guard(new_register, tmp_path):
    mine = new_register()
    with mine.turn():
        mine.write({})
    mine.close()
    mine.close()
    with mine.turn():
        mine.write({"late": True})
    assert [path.name for path in (tmp_path / "limits").iterdir()] == ["guard"]


@pytest.mark.parametrize(
    "content", [b"", b'{"format": 1, "tak', b"[]", b"null", b'{"format": 2}', b"\xff"], ids=repr
)
def test_what_is_not_understood_does_not_count_and_stays(new_register, content):
    mine, other = new_register(), new_register()
    with mine.turn():
        mine.write({})
        mine._path.write_bytes(content)  # the same file: it is still locked
    with other.turn():
        assert other.others() == []
    assert mine._path.exists()


def test_the_file_of_a_dead_process_is_removed(new_register, tmp_path):
    left = tmp_path / "limits/4711-c0ffee.json"
    mine = new_register()
    with mine.turn():
        left.write_text('{"format": 1}')
        assert mine.others() == []
    assert not left.exists()


def test_what_lies_in_the_way_leads_nowhere(new_register, tmp_path):
    target = tmp_path / "elsewhere.json"
    target.write_text(json.dumps({"format": 1}))
    mine = new_register()
    with mine.turn():
        (tmp_path / "limits/link.json").symlink_to(target)
        (tmp_path / "limits/folder.json").mkdir()
        os.mkfifo(tmp_path / "limits/pipe.json")
        assert mine.others() == []
    assert target.exists()


def test_a_folder_that_was_removed_is_made_again(new_register, tmp_path):
    """Else nobody would see what this process has."""
    mine, other = new_register(), new_register()
    with mine.turn():
        mine.write({"taken": 1})
    shutil.rmtree(tmp_path / "limits")
    with mine.turn():
        mine.write({"taken": 1})
    with other.turn():
        assert other.others() == [{"format": 1, "taken": 1}]


def test_a_full_disk_is_told_in_words(new_register, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    mine = new_register()
    monkeypatch.setattr(os, "pwrite", full)
    with mine.turn(), pytest.raises(HostError, match="No space left on device") as failure:
        mine.write({})
    assert "--kvm-limits-dir" in failure.value.resolution


def test_a_folder_that_others_may_enter_is_refused(tmp_path):
    (tmp_path / "limits").mkdir(mode=0o755)
    with pytest.raises(HostError, match="not a folder that only you may enter") as failure:
        _take_a_turn(tmp_path / "limits")
    assert "--kvm-limits-dir" in failure.value.resolution


def test_a_place_where_no_folder_can_be_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="the limits folder .* cannot be made") as failure:
        _take_a_turn(tmp_path / "file/limits")
    assert "--kvm-limits-dir" in failure.value.resolution


def _take_a_turn(folder):
    with Register(folder).turn():
        pass
