"""Trees as tar streams: ours arrive whole, a hostile guest's write nowhere else."""

from __future__ import annotations

import io
import logging
import os
import stat
import tarfile

import pytest

from pytest_kvm.errors import RemoteFileError
from pytest_kvm.ssh.archive import FileOwner, pack, unpack

LOG = logging.getLogger("pytest_kvm.web")


def entry(name, *, kind=tarfile.REGTYPE, link="", mode=0o644):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


def folder(name, mode=0o755):
    return entry(name, kind=tarfile.DIRTYPE, mode=mode)


def symlink(name, target):
    return entry(name, kind=tarfile.SYMTYPE, link=target)


def hard_link(name, target):
    return entry(name, kind=tarfile.LNKTYPE, link=target)


def stream(*entries, content=b"data"):
    made = io.BytesIO()
    with tarfile.open(mode="w|", fileobj=made) as tar:
        for each in entries:
            if each.isreg():
                each.size = len(content)
            tar.addfile(each, io.BytesIO(content))
    return io.BytesIO(made.getvalue())


@pytest.fixture
def target(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    return target


def unpacked(source, target, most=10**6):
    unpack(source, target, most=most, log=LOG)


def names(target):
    return sorted(str(path.relative_to(target)) for path in target.rglob("*"))


# ---------------------------------------------------------------- there and back


def test_a_tree_arrives_with_modes_links_and_odd_names(tmp_path, target):
    tree = tmp_path / "tree"
    (tree / "empty").mkdir(parents=True)
    (tree / "a b").mkdir(mode=0o711)
    (tree / "a b" / "x\ny").write_text("1")
    (tree / "ünï").write_text("2")
    (tree / os.fsdecode(b"raw\xff")).write_text("3")
    (tree / "-rf").write_text("4")
    (tree / "run").write_text("5")
    (tree / "run").chmod(0o750)
    (tree / "link").symlink_to("a b")
    (tree / "a b" / "up").symlink_to("../run")
    os.link(tree / "run", tree / "same")
    packed = io.BytesIO()
    pack(tree, packed, owner=None, log=LOG)
    packed.seek(0)
    unpacked(packed, target)
    assert names(target) == names(tree)
    assert (target / "a b" / "up").read_text() == "5"
    assert (target / "link").readlink().name == "a b"
    assert stat.S_IMODE((target / "run").stat().st_mode) == 0o750
    assert stat.S_IMODE((target / "a b").stat().st_mode) == 0o711
    assert (target / "same").samefile(target / "run")


def test_an_owner_is_written_as_name_or_number(tmp_path):
    (tmp_path / "f").write_text("x")
    for owner, seen in (
        (None, (0, "0", 0, "0")),
        (FileOwner(user="alice", group="users"), (0, "alice", 0, "users")),
        (FileOwner(user="1000", group="100"), (1000, "", 100, "")),
    ):
        packed = io.BytesIO()
        pack(tmp_path, packed, owner=owner, log=LOG)
        packed.seek(0)
        with tarfile.open(fileobj=packed) as tar:
            member = tar.getmember("f")
        found = (member.uid, member.uname, member.gid, member.gname)
        assert found == (seen if owner else (0, "", 0, ""))


def test_what_is_no_file_is_left_out_with_a_warning(tmp_path, caplog):
    os.mkfifo(tmp_path / "pipe")
    packed = io.BytesIO()
    pack(tmp_path, packed, owner=None, log=LOG)
    assert "pipe is neither file, folder nor link" in caplog.text
    packed.seek(0)
    with tarfile.open(fileobj=packed) as tar:
        assert tar.getnames() == []


def test_what_was_there_is_replaced_not_followed(target, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (target / "f").symlink_to(outside)
    unpacked(stream(entry("f")), target)
    assert outside.read_text() == "mine"
    assert (target / "f").read_text() == "data"


def test_setuid_and_the_like_stay_in_the_guest(target):
    unpacked(stream(entry("f", mode=0o6755), folder("d", mode=0o1000)), target)
    assert stat.S_IMODE((target / "f").stat().st_mode) == 0o755
    assert stat.S_IMODE((target / "d").stat().st_mode) == 0o700


# ---------------------------------------------------------------- a hostile guest


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "a/..", "./../x"])
def test_a_name_that_leads_outside_is_refused(target, name):
    with pytest.raises(RemoteFileError, match="outside the folder"):
        unpacked(stream(entry(name)), target)
    assert names(target.parent) == ["target"]


@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("l", "/etc/passwd"),
        ("l", ".."),
        ("l", "../target2"),
        ("d/l", "../.."),
        ("l", "d/../.."),
        ("l", "d/up/../.."),
        ("l", "./../x"),
    ],
)
def test_a_link_that_could_lead_outside_is_left_out(target, caplog, name, link):
    unpacked(stream(folder("d"), symlink(name, link)), target)
    assert names(target) == ["d"]
    assert "may lead out of the tree" in caplog.text


@pytest.mark.parametrize(("name", "link"), [("l", "d/f"), ("d/l", "../f"), ("l", "."), ("d/l", "..")])
def test_a_link_that_cannot_lead_outside_stays(target, name, link):
    unpacked(stream(folder("d"), symlink(name, link)), target)
    assert str((target / name).readlink()) == link


def test_nothing_is_written_through_a_link(target, tmp_path):
    hostile = stream(symlink("l", "../outside"), entry("l/x"))
    unpacked(hostile, target)
    assert not (tmp_path / "outside").exists()
    assert (target / "l").is_dir()


def test_nothing_is_written_through_a_link_of_an_earlier_get(target, tmp_path):
    (tmp_path / "outside").mkdir()
    (target / "l").symlink_to(tmp_path / "outside")
    with pytest.raises(RemoteFileError, match="in the way"):
        unpacked(stream(entry("l/x")), target)
    assert list((tmp_path / "outside").iterdir()) == []


def test_links_do_not_climb_over_one_another(target):
    """Each looks harmless by its text: p/q/up is p, and p/q/up/../.. would be outside."""
    chain = stream(
        folder("p/q"), symlink("p/q/up", ".."), symlink("z", "p/q/up/../.."), symlink("y", "p/q/up")
    )
    unpacked(chain, target)
    assert names(target) == ["p", "p/q", "p/q/up", "y"]
    assert (target / "y").resolve() == target / "p"


def test_a_hard_link_leads_to_a_file_of_the_tree(target, tmp_path):
    (tmp_path / "secret").write_text("s")
    for link in ("../secret", "/etc/passwd"):
        with pytest.raises(RemoteFileError, match="outside"):
            unpacked(stream(hard_link("l", link)), target)
    with pytest.raises(RemoteFileError, match="no file"):
        unpacked(stream(folder("d"), hard_link("l", "d")), target)


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_and_pipes_are_left_out(target, kind, caplog):
    unpacked(stream(entry("x", kind=kind), entry("f")), target)
    assert names(target) == ["f"]
    assert "x is neither file, folder nor link" in caplog.text


def test_more_bytes_than_allowed_are_refused(target):
    with pytest.raises(RemoteFileError, match="more than 7 bytes"):
        unpacked(stream(entry("a"), entry("b")), target, most=7)


def test_a_header_that_never_ends_does_not_fill_the_memory(target):
    class Endless:
        given = 0

        def read(self, size):
            self.given += size
            return (b"././@LongLink" + b"x" * size)[:size]

    header = entry("././@LongLink", kind=tarfile.GNUTYPE_LONGNAME)
    header.size = 4 * 1024**3
    start, endless = io.BytesIO(header.tobuf()), Endless()

    class Source:
        def read(self, size):
            return start.read(size) or endless.read(size)

    with pytest.raises(RemoteFileError, match="header that is too long"):
        unpacked(Source(), target)
    assert endless.given < 16 * 1024**2


@pytest.mark.parametrize("data", [b"x" * 600, b"\0" * 100 + b"x" * 924, b""])
def test_what_is_no_archive_is_told_so(target, data):
    with pytest.raises(RemoteFileError, match="no readable archive"):
        unpacked(io.BytesIO(data), target)


def test_a_stream_that_breaks_off_is_an_error(target):
    whole = stream(entry("f"), content=b"x" * 5000).getvalue()
    with pytest.raises(RemoteFileError, match="no readable archive"):
        unpacked(io.BytesIO(whole[:2000]), target)
