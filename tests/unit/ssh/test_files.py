"""Files between host and guest, with a server in this process."""

from __future__ import annotations

import io
import logging
import os
import stat

import pytest

from pytest_kvm.errors import (
    RemoteDiskFull,
    RemoteFileDenied,
    RemoteFileError,
    RemoteFileMissing,
    SshUnavailable,
)
from pytest_kvm.ssh.files import Files, _header
from pytest_kvm.ssh.transfer import Transfer


@pytest.fixture
def files(shell):
    return Files(shell, log=logging.getLogger("pytest_kvm.web"))


@pytest.fixture
def there(tmp_path):
    """Stand for the guest's disk: the server runs on this machine."""
    there = tmp_path / "guest"
    there.mkdir()
    return there


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- reading and writing


def test_text_goes_there_and_back(files, there):
    path = str(there / "new folder" / "it's\nodd")
    files.write_text(path, "grüße\n")
    assert files.read_text(path) == "grüße\n"
    assert mode(there / "new folder" / "it's\nodd") == 0o644
    assert names(there / "new folder") == ["it's\nodd"]


def test_bytes_stay_as_they_are(files, there):
    files.write_bytes(str(there / "f"), b"\0\xff\r\n", mode=0o600)
    assert files.read_bytes(str(there / "f")) == b"\0\xff\r\n"
    assert files.read_text(str(there / "f")) == "\0\N{REPLACEMENT CHARACTER}\r\n"
    assert mode(there / "f") == 0o600


def test_appending_adds_and_makes(files, there):
    files.write_text(str(there / "f"), "one\n", append=True, mode=0o640)
    files.write_text(str(there / "f"), "two\n", append=True)
    assert (there / "f").read_text() == "one\ntwo\n"
    assert mode(there / "f") == 0o640


def test_writing_goes_through_a_link(files, there):
    (there / "f").write_text("old")
    (there / "l").symlink_to("f")
    files.write_text(str(there / "l"), "new")
    assert (there / "l").is_symlink()
    assert (there / "f").read_text() == "new"


def test_a_relative_path_is_below_the_home(files, tmp_path):
    files.write_text("-f", "x")
    assert (tmp_path / "-f").read_text() == "x"
    assert files.read_text("-f") == "x"


def test_files_of_the_kernel_are_written_directly(files):
    files.write_text("/dev/null", "x")
    with pytest.raises(RemoteDiskFull, match="/dev/full"):
        files.write_text("/dev/full", "x")


def test_failures_name_guest_path_and_reason(files, there):
    with pytest.raises(RemoteFileMissing, match=r"web:.*/nothing: .*No such file or directory"):
        files.read_text(str(there / "nothing"))
    with pytest.raises(RemoteFileError, match="is a folder"):
        files.read_text(str(there))
    with pytest.raises(RemoteFileError, match="Is a directory"):
        files.write_text(str(there), "x")
    files.write_text(str(there / "f"), "1234")
    with pytest.raises(RemoteFileError, match="more than 3 bytes"):
        files.read_text(str(there / "f"), max_bytes=3)


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_what_is_no_path_is_refused(files, path):
    with pytest.raises(ValueError, match="no path"):
        files.read_text(path)


# ---------------------------------------------------------------- put and get


class Announcing:
    """A transfer of a guest that announces whatever it likes."""

    def __init__(self, said):
        self._said = io.BytesIO(said)

    def read(self, size):
        return self._said.read(size)

    def finish(self):
        pass


def test_what_a_guest_announces_is_read_with_care():
    assert _header(Announcing(b"file 644\nfile 999\n")) == ("file", 0o644)
    for said in (
        b"",
        b"file\n",
        b"file 999\n",
        b"file 7777777\n",
        b"tree \xd9\xa3\n",
        b"pipe 644\n",
        b"f" * 64,
    ):
        with pytest.raises(RemoteFileError, match="neither file nor folder"):
            _header(Announcing(said))


def test_a_large_file_goes_there_and_back_with_its_mode(files, there, tmp_path):
    here = tmp_path / "here"
    here.write_bytes(os.urandom(5 * 1024**2))
    here.chmod(0o750)
    files.put(here, str(there / "f"))
    back = files.get(str(there / "f"), tmp_path / "made" / "back")
    assert back.read_bytes() == here.read_bytes()
    assert (mode(there / "f"), mode(back)) == (0o750, 0o750)
    assert names(there) == ["f"]


def test_a_slash_means_into_the_folder(files, there, tmp_path):
    here = tmp_path / "here"
    here.write_text("x")
    files.put(here, f"{there}/new/", mode=0o600)
    assert mode(there / "new" / "here") == 0o600
    (tmp_path / "out").mkdir()
    assert files.get(f"{there}/new/here", tmp_path / "out") == tmp_path / "out" / "here"


def test_a_file_that_breaks_off_does_not_take_the_place_of_the_old(files, there, tmp_path):
    (there / "f").write_text("old")
    files.write_text(str(there / "f"), "1234")
    with pytest.raises(RemoteFileError, match="more than 3 bytes"):
        files.get(str(there / "f"), tmp_path / "back", max_bytes=3)
    assert not (tmp_path / "back").exists()
    assert not [name for name in names(tmp_path) if name.startswith(".back")]


def test_a_file_that_arrives_short_does_not_take_the_place_of_the_old(files, there, tmp_path, monkeypatch):
    (there / "f").write_text("old")

    class Shrinking(Transfer):
        def write(self, data):
            return super().write(data[:-1])

    here = tmp_path / "here"
    here.write_text("new!")
    monkeypatch.setattr("pytest_kvm.ssh.files.Transfer", Shrinking)
    with pytest.raises(RemoteFileError):
        files.put(here, str(there / "f"))
    assert (there / "f").read_text() == "old"
    assert names(there) == ["f"]


def test_a_tree_appears_whole_and_is_merged_the_second_time(files, there, tmp_path):
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "f").write_text("1")
    tree.chmod(0o751)
    files.put(tree, str(there / "a" / "t"))
    (there / "a" / "t" / "kept").write_text("k")
    (there / "a" / "t").chmod(0o700)
    files.put(tree, str(there / "a" / "t"))
    assert names(there / "a") == ["t"]
    assert names(there / "a" / "t") == ["kept", "sub"]
    assert mode(there / "a" / "t") == 0o700
    files.get(str(there / "a" / "t"), tmp_path / "out")
    assert (tmp_path / "out" / "sub" / "f").read_text() == "1"


def test_a_trees_mode_is_its_own(files, there, tmp_path):
    with pytest.raises(ValueError, match="single file"):
        files.put(tmp_path, str(there / "x"), mode=0o644)


def test_a_tree_that_cannot_be_unpacked_leaves_nothing(files, there, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "f").write_text("1")
    (there / "file").write_text("x")
    with pytest.raises(RemoteFileError):
        files.put(tree, str(there / "file" / "t"))
    assert names(there) == ["file"]


def test_a_file_that_is_not_there_is_the_callers_mistake(files, there, tmp_path):
    with pytest.raises(FileNotFoundError):
        files.put(tmp_path / "nothing", str(there / "x"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_an_owner_is_given_and_kept(files, there, tmp_path):
    files.write_text(str(there / "f"), "x", owner="nobody:daemon")
    files.write_text(str(there / "f"), "y")
    assert ((there / "f").owner(), (there / "f").group()) == ("nobody", "daemon")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "g").write_text("1")
    files.put(tree, str(there / "t"), owner="nobody")
    assert (there / "t").owner() == (there / "t" / "g").owner() == "nobody"
    with pytest.raises(RemoteFileError, match="no such user"):
        files.put(tree, str(there / "t2"), owner="nobody-at-all")


def test_a_folder_that_may_not_be_written_is_named(files):
    """In sysfs not even root makes files."""
    with pytest.raises(RemoteFileDenied, match="/sys/kernel/f"):
        files.write_text("/sys/kernel/f", "x")


def test_a_connection_that_breaks_is_no_short_file(files, server, there, tmp_path, monkeypatch):
    os.mkfifo(there / "slow")
    held = os.open(there / "slow", os.O_RDWR)
    os.write(held, b"part")

    class Dropping(Transfer):
        def read(self, size):
            data = super().read(size)
            if b"part" in data:
                server.drop()
            return data

    monkeypatch.setattr("pytest_kvm.ssh.files.Transfer", Dropping)
    with pytest.raises(SshUnavailable):
        files.get(str(there / "slow"), tmp_path / "back")
    os.close(held)
    assert not (tmp_path / "back").exists()


# ---------------------------------------------------------------- start-up files that print


@pytest.mark.parametrize("printed", ["printf 'no line end'", "yes NOISE | head -c 1000000"])
def test_what_start_up_files_print_is_not_the_files(files, server, there, printed):
    content = os.urandom(3 * 1024**2)
    (there / "f").write_bytes(content)
    server.start_up = f"{printed}; {{ {printed}; }} >&2"
    assert files.read_bytes(str(there / "f")) == content


def test_what_start_up_files_say_is_not_the_reason(files, server, there):
    server.start_up = "echo 'No space left on device' >&2"
    with pytest.raises(RemoteFileMissing):
        files.read_bytes(str(there / "nothing"))


def test_start_up_files_that_print_too_much_are_told(files, server, there):
    server.start_up = "yes NOISE"
    with pytest.raises(RemoteFileError, match="start-up files print more than 1048576 bytes") as told:
        files.read_bytes(str(there / "f"))
    assert "NOISE" in told.value.details


def test_a_shell_that_ends_before_the_work_is_no_success(files, server, there):
    server.start_up = "echo bye >&2; exit 0"
    with pytest.raises(RemoteFileError, match="ended with exit code 0 and did nothing") as told:
        files.write_bytes(str(there / "f"), b"x")
    assert told.value.details == "bye"
    assert not (there / "f").exists()
