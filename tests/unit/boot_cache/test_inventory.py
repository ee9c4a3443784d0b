"""What people do: list, remove, make room."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvm.boot_cache.inventory import TemplateInfo, _surplus
from pytest_kvm.boot_cache.layout import Layout
from pytest_kvm.errors import UnknownTemplate
from pytest_kvm.host import folder_marker
from tests.unit.boot_cache.conftest import KEY, OTHER

THIRD = "5ca1ab1e" + "f" * 56


def test_an_empty_store_is_not_made_by_looking(inventory, settings):
    assert inventory.list() == ()
    assert inventory.collect(cap=0) == ()
    assert not settings.cache_dir.exists()


def test_templates_are_listed_those_used_longest_ago_first(inventory, make):
    make(KEY, used=300)
    make(OTHER, used=100)
    make(THIRD, used=200)
    assert [(info.key, info.last_used) for info in inventory.list()] == [
        (OTHER, 100),
        (THIRD, 200),
        (KEY, 300),
    ]


def test_a_claim_is_a_use(store, inventory, make):
    make(KEY, used=1)
    make(OTHER, used=2)
    store.claim(KEY).close()
    assert [info.key for info in inventory.list()] == [OTHER, KEY]


def test_a_template_is_used_when_it_is_published_not_when_it_was_begun(store, inventory, make):
    with store.building(KEY) as building:
        os.utime(building.folder / "used", (1, 1))
        make(OTHER, used=2)
        with building.publish(summary="", versions={}, facts={}):
            assert [info.key for info in inventory.list()] == [OTHER, KEY]


def test_verifying_is_no_use(inventory, make):
    make(KEY, used=1)
    inventory.verify([KEY])
    assert [info.last_used for info in inventory.list()] == [1]


def test_holes_take_up_nothing(inventory, make):
    folder = make()
    with (folder / "ram").open("r+b") as file:
        file.truncate(10**9)
    (info,) = inventory.list()
    assert 0 < info.size < 10**7


def test_a_template_that_cannot_be_read_is_listed(inventory, make):
    (make() / "manifest.json").write_text("{")
    (info,) = inventory.list()
    assert info.manifest is None


def test_a_key_is_known_by_its_beginning(inventory, make):
    make(KEY)
    make(OTHER)
    make(THIRD)
    assert inventory.resolve("0d") == OTHER
    assert inventory.resolve(KEY) == KEY
    with pytest.raises(UnknownTemplate, match="no template 'ff'"):
        inventory.resolve("ff")
    with pytest.raises(UnknownTemplate, match="2 templates") as failure:
        inventory.resolve("5ca1ab1e")
    assert failure.value.details.splitlines() == sorted([KEY, THIRD])


def test_a_removed_template_is_gone(store, inventory, make):
    folder = make()
    inventory.remove(KEY)
    assert store.claim(KEY) is None
    assert not folder.exists()


def test_those_used_longest_ago_go_until_the_rest_fits(inventory, make):
    for number, key in enumerate([KEY, OTHER, THIRD]):
        make(key, used=number)
    sizes = {info.key: info.size for info in inventory.list()}
    assert inventory.collect(cap=sum(sizes.values())) == ()
    assert [info.key for info in inventory.collect(cap=sizes[OTHER] + sizes[THIRD])] == [KEY]
    assert [info.key for info in inventory.collect(cap=sizes[OTHER] + sizes[THIRD] - 1)] == [OTHER]
    assert [info.key for info in inventory.collect(cap=0)] == [THIRD]


def test_bytes_can_be_asked_for(inventory, make):
    make(KEY, used=1)
    make(OTHER, used=2)
    assert [info.key for info in inventory.free(1)] == [KEY]


def info(tmp_path, *, size: int, in_use: bool) -> TemplateInfo:
    return TemplateInfo(key="k", folder=tmp_path, manifest=None, size=size, last_used=0.0, in_use=in_use)


@given(
    st.lists(st.tuples(st.integers(min_value=1, max_value=100), st.booleans())),
    st.integers(min_value=-10, max_value=500),
)
def test_no_more_goes_than_has_to_and_nothing_in_use(entries, surplus):
    infos = [info(os.devnull, size=size, in_use=in_use) for size, in_use in entries]
    gone = _surplus(infos, surplus)
    free = [each for each in infos if not each.in_use]
    assert list(gone) == free[: len(gone)]
    assert len(gone) == len(free) or sum(each.size for each in gone) >= surplus
    assert sum(each.size for each in gone[:-1]) < surplus or not gone


def test_what_cannot_be_removed_stands_in_nobodys_way(inventory, make, caplog, monkeypatch):
    folder = make()

    def refuse(entry):
        raise PermissionError(f"not {entry}")

    monkeypatch.setattr(folder_marker, "remove", refuse)
    inventory.collect(cap=0)
    assert inventory.list() == ()
    assert f"{folder} cannot be removed: not {folder}" in caplog.text


def test_files_of_others_are_left_alone_and_named(inventory, make, settings, tmp_path):
    make()
    templates = settings.cache_dir / "templates"
    precious = tmp_path / "precious"
    precious.mkdir()
    foreign = [
        templates / "current" / "notes.txt",
        templates / "current" / OTHER,
        templates / "entries" / "a-file",
        templates / "entries" / "a-folder",
        templates / "entries" / f"{OTHER}.5ca1ab1e",
        templates / "entries" / f"{OTHER}.0ddba110",
    ]
    foreign[0].write_text("kept")
    foreign[1].symlink_to(precious)
    foreign[2].write_text("kept")
    for folder in (*foreign[3:5], precious):
        folder.mkdir(exist_ok=True)
        (folder / "file").write_text("kept")
    foreign[5].symlink_to(precious)
    inventory.collect(cap=0)
    assert inventory.list() == ()
    assert all(path.exists() for path in (*foreign, precious / "file", foreign[3] / "file"))
    assert Layout.of(settings).foreign_files() == sorted(foreign)


def test_an_entry_of_a_version_that_made_no_markers_is_known_by_its_manifest(inventory, make, settings):
    folder, other = make(), make(OTHER)
    for each in (folder, other):
        (each / folder_marker.MARKER).unlink()
    (other / "manifest.json").write_text((other / "manifest.json").read_text().replace("mine", "thine"))
    assert Layout.of(settings).foreign_files() == [other], "its manifest is not what was written"
    inventory.collect(cap=0)
    assert not folder.exists()
    assert (other / "manifest.json").exists()


def test_what_a_killed_builder_had_only_begun_is_removed(inventory, make, settings):
    make()
    begun = settings.cache_dir / "templates/entries" / f"{OTHER}.5ca1ab1e"
    begun.mkdir()
    inventory.collect(cap=0)
    assert not begun.exists()
