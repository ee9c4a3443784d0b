from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap

import pytest

from pytest_kvm.errors import ImageError, SpecError, UnknownImage
from pytest_kvm.host.folder_marker import MARKER
from pytest_kvm.images.image import ImageManifest
from pytest_kvm.images.image_store import ImageStore
from pytest_kvm.spec.image import ImageRef
from tests.conftest import ROOT


def test_a_published_image_is_found_by_its_name(store, publish):
    published = publish("mine", b"disk")
    assert store.resolve(ImageRef("mine")) == published
    assert store.list() == (published,)
    assert published.disk.read_bytes() == b"disk"
    assert not published.built_from_packages


def test_an_image_can_be_pinned_to_its_digest(store, publish):
    image = publish("mine", b"disk")
    assert store.resolve(ImageRef("mine", digest=image.digest[:8])) == image
    with pytest.raises(ImageError, match="not 00000000"):
        store.resolve(ImageRef("mine", digest="00000000"))


def test_blobs_are_read_only(publish):
    assert stat.S_IMODE(publish("mine", b"disk").disk.stat().st_mode) == 0o444


def test_an_unknown_name_says_where_it_was_looked_for(store):
    with pytest.raises(UnknownImage, match=str(store.folder)):
        store.resolve(ImageRef("nothing"))


@pytest.mark.parametrize("name", ["", "..", "../evil", "a/b", "A", ".hidden", "x" * 65])
def test_a_name_is_never_a_path(store, name):
    with pytest.raises(SpecError), store.building(name):
        pass
    with pytest.raises(SpecError):
        store.remove(name)


def test_the_same_contents_are_stored_once(store, publish):
    assert publish("one", b"disk").disk == publish("two", b"disk").disk
    store.remove("one")
    assert store.resolve(ImageRef("two")).disk.read_bytes() == b"disk"


def test_removing_the_last_name_removes_the_contents(store, publish):
    disk = publish("mine", b"disk").disk
    store.remove("mine")
    assert not disk.exists()
    assert store.list() == ()
    with pytest.raises(UnknownImage):
        store.remove("mine")


def test_a_new_image_of_a_name_replaces_the_old(store, publish):
    old = publish("mine", b"old").disk
    new = publish("mine", b"new")
    assert store.resolve(ImageRef("mine")) == new
    assert store.list() == (new,)
    assert old.exists(), "a run may be about to start a guest from it"


def test_a_replaced_image_goes_after_a_day(store, publish):
    old = publish("mine", b"old").disk
    publish("mine", b"new")
    (retired,) = (store.folder / "retired").iterdir()
    os.utime(retired, (0, 0))
    publish("other", b"other")
    assert not old.exists()
    assert not retired.exists()


def test_images_derived_from_a_replaced_one_go_with_it(store, publish):
    base = publish("base", b"base")
    publish("base+jq", b"base and jq", base=base.digest)
    new = publish("base", b"new base")
    assert store.list() == (new,)


def test_an_image_whose_disk_is_gone_is_no_image(store, publish):
    image = publish("mine", b"disk")
    image.check_is_there()
    image.disk.unlink()
    with pytest.raises(ImageError, match=f"image mine: {image.disk} is gone"):
        image.check_is_there()
    assert store.find(ImageRef("mine")) is None


def test_a_damaged_manifest_is_named(store, publish):
    publish("mine", b"disk")
    (store.folder / "names/mine.json").write_text("{")
    with pytest.raises(ImageError, match=r"names/mine\.json is not an image manifest"):
        store.find(ImageRef("mine"))


def test_a_manifest_of_a_later_version_is_read():
    manifest = ImageManifest(name="n", disk="5" * 64, virtual_size=1, created="c", packages=("a",))
    text = manifest.to_json().replace("{", '{"from_the_future": 1,', 1)
    assert ImageManifest.from_json(text, origin="x") == manifest


def test_work_is_removed_when_a_build_fails(store):
    with pytest.raises(ZeroDivisionError), store.building("mine") as work:
        work.joinpath("half").write_bytes(b"%d" % (1 // 0))
    assert not work.exists()


_KILLED = textwrap.dedent(
    """
    import pathlib, sys
    from pytest_kvm.images.image_store import ImageStore
    with ImageStore(pathlib.Path(sys.argv[1])).building("mine") as work:
        (work / "half").write_bytes(b"half")
        print("busy", flush=True)
        sys.stdin.read()
    """
)


def test_what_a_killed_build_left_is_swept_by_the_next(store):
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, store.folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout.readline() == b"busy\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = (store.folder / "work").iterdir()
    assert (left / "half").exists()
    assert store.list() == ()
    assert store.foreign_files() == ()
    with store.building("mine") as work:
        assert [path.name for path in work.iterdir()] == [MARKER]
        assert not left.exists()


_RACE = textwrap.dedent(
    """
    import hashlib, pathlib, sys
    from pytest_kvm.images.image import ImageManifest
    from pytest_kvm.images.image_store import ImageStore
    from pytest_kvm.spec.image import ImageRef
    store = ImageStore(pathlib.Path(sys.argv[1]))
    sys.stdin.readline()
    with store.building("mine") as work:
        if store.find(ImageRef("mine")) is None:
            (work / "disk").write_bytes(b"disk")
            digest = hashlib.sha256(b"disk").hexdigest()
            manifest = ImageManifest(name="mine", disk=digest, virtual_size=4, created="now")
            store.add(manifest, {digest: work / "disk"})
            print("built")
    """
)


def test_two_processes_build_an_image_once(store):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACE, store.folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        for _ in range(2)
    ]
    outputs = [racer.communicate(b"go\n", timeout=60)[0] for racer in racers]
    assert sorted(outputs) == [b"", b"built\n"]
    assert [image.name for image in store.list()] == ["mine"]


def test_a_reader_needs_no_lock(store, publish):
    publish("mine", b"disk")
    with store.building("mine"), store.building("other"):
        assert ImageStore(store.folder).resolve(ImageRef("mine")).disk.read_bytes() == b"disk"


def test_nothing_but_blobs_names_and_locks_stays(store, publish):
    publish("mine", b"disk")
    assert {path.name for path in store.folder.iterdir()} == {"blobs", "locks", "names", "retired", "work"}
    assert list((store.folder / "work").iterdir()) == []
    assert list((store.folder / "retired").iterdir()) == []
    assert list((store.folder / "locks").glob("*.holder")) == []


# ---------------------------------------------------------------- what is not the store's


@pytest.fixture
def precious(tmp_path):
    """A folder of somebody else, with a file in it."""
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "file").write_text("kept")
    return folder


def sweep(store, publish):
    """Have everything removed that the store may remove."""
    publish("other", b"other")
    publish("mine", b"old")
    publish("mine", b"new")
    for retired in (store.folder / "retired").iterdir():
        os.utime(retired, (0, 0))
    publish("last", b"last")
    store.remove("other")


def test_files_of_others_are_left_alone_and_named(store, publish, precious):
    publish("mine", b"disk")
    foreign = [
        store.folder / "blobs" / "notes.txt",
        store.folder / "blobs" / ("5" * 64),
        store.folder / "work" / "mine",
        store.folder / "work" / "mine.5ca1ab1e",
        store.folder / "work" / "link.5ca1ab1e",
        store.folder / "retired" / "list.json",
        store.folder / "names" / "notes.txt",
    ]
    for path in (*foreign[:2], *foreign[5:]):
        path.write_text("kept")
    for path in foreign[2:4]:
        path.mkdir()
        (path / "file").write_text("kept")
    foreign[4].symlink_to(precious)
    os.utime(foreign[5], (0, 0))
    sweep(store, publish)
    assert all(path.exists() for path in foreign)
    assert store.foreign_files() == tuple(sorted(foreign))
    assert (precious / "file").read_text() == "kept"
    assert {image.name for image in store.list()} == {"mine", "last"}


def test_a_manifest_that_was_half_written_is_no_obstacle(store, publish):
    names = store.folder / "names"
    names.mkdir(parents=True)
    (names / ".new").write_text("{")
    assert store.list() == ()
    publish("mine", b"disk")
    assert [path.name for path in names.iterdir()] == ["mine.json"]
    assert store.foreign_files() == ()


def test_a_link_in_the_place_of_the_blobs_leads_to_no_removal(store, publish, precious):
    publish("mine", b"disk")
    blobs = store.folder / "blobs"
    blobs.rename(store.folder / "aside")
    blobs.symlink_to(precious)
    (precious / ("5" * 64)).write_text("kept")
    sweep(store, publish)
    assert {path.name for path in precious.iterdir()} >= {"file", "5" * 64}


def test_a_link_in_the_place_of_a_blob_is_left_alone(store, publish, precious):
    disk = publish("mine", b"disk").disk
    disk.unlink()
    disk.symlink_to(precious / "file")
    store.remove("mine")
    assert disk.is_symlink()
    assert (precious / "file").read_text() == "kept"
    assert store.foreign_files() == (disk,)


def test_a_killed_addition_leaves_blobs_that_are_known(store, publish, monkeypatch):
    monkeypatch.setattr(store, "_retire_what_it_replaces", lambda _manifest: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        publish("mine", b"disk")
    monkeypatch.undo()
    assert len(list((store.folder / "blobs").iterdir())) == 1
    assert store.foreign_files() == ()
    (pending,) = (store.folder / "retired").iterdir()
    os.utime(pending, (0, 0))
    publish("other", b"other")
    assert [path.name for path in (store.folder / "blobs").iterdir()] == [store.list()[0].digest]


def test_a_damaged_manifest_can_be_removed_and_its_blobs_are_named(store, publish):
    disk = publish("mine", b"disk").disk
    (store.folder / "names/mine.json").write_text("{")
    store.remove("mine")
    assert store.list() == ()
    assert store.foreign_files() == (disk,)


STRANGE = {"name": "broken", "disk": "5" * 64, "virtual_size": 1, "created": "today"}


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        "x",
        None,
        json.dumps({**STRANGE, "name": "other"}),  # a copy
        json.dumps({**STRANGE, "disk": 5}),
        json.dumps({**STRANGE, "disk": "../../names/other.json"}),
        json.dumps({**STRANGE, "virtual_size": "1"}),
        json.dumps({**STRANGE, "created": None}),
        json.dumps({**STRANGE, "packages": [1]}),
        json.dumps({**STRANGE, "cmdline": ["quiet"]}),
    ],
)
def test_a_damaged_manifest_harms_no_other_image(store, publish, damage, caplog):
    old = publish("mine", b"disk").disk
    publish("other", b"other")
    damaged = store.folder / "names/broken.json"
    damaged.mkdir() if damage is None else damaged.write_text(damage)
    publish("mine", b"new disk")
    assert [image.name for image in store.list()] == ["mine", "other"]
    assert "broken.json" in str(*store.damaged())
    store.remove("other")
    assert [image.name for image in store.list()] == ["mine"]
    (retired, *_) = (store.folder / "retired").iterdir()
    os.utime(retired, (0, 0))
    publish("third", b"third")
    assert old.exists()  # it may be the damaged one's
    assert "replaced images are kept: " in caplog.text


def test_a_damaged_manifest_of_a_replaced_image_is_named_and_keeps_what_it_may_name(store, publish):
    old = publish("mine", b"disk").disk
    publish("mine", b"new disk")
    (retired,) = (store.folder / "retired").iterdir()
    retired.write_bytes(b"\xff\xfe")
    os.utime(retired, (0, 0))
    publish("third", b"third")
    assert old.exists()
    assert retired.name in str(*store.damaged())


def test_a_manifest_of_another_name_can_be_removed_and_the_other_stays(store, publish):
    publish("mine", b"disk")
    names = store.folder / "names"
    (names / "copy.json").write_text((names / "mine.json").read_text())
    store.remove("copy")
    assert store.names() == ("mine",)


def test_a_folder_in_place_of_a_manifest_is_left_to_its_owner(store, publish):
    publish("mine", b"disk")
    folder = store.folder / "names/broken.json"
    folder.mkdir()
    with pytest.raises(ImageError, match=r"broken.json cannot be read: Is a directory"):
        store.remove("broken")
    assert folder.is_dir()


def test_a_new_kernel_with_the_same_disk_retires_the_old_one(store, publish):
    publish("mine", b"disk", kernel="5" * 64)
    (store.folder / "blobs" / ("5" * 64)).write_text("kernel")
    publish("mine", b"disk")
    (retired,) = (store.folder / "retired").iterdir()
    os.utime(retired, (0, 0))
    publish("other", b"other")
    assert not (store.folder / "blobs" / ("5" * 64)).exists()
    assert store.foreign_files() == ()
