from __future__ import annotations

import os

import pytest

from pytest_kvm.errors import ConnectionFailed
from pytest_kvm.hypervisor import embed, libvirt_log


@pytest.fixture(autouse=True)
def new_process(monkeypatch):
    """As if nothing had been opened."""
    monkeypatch.setattr(embed, "_roots", {})
    monkeypatch.setattr(libvirt_log, "_files", [])


def root_for(run_dir, tmp_path, uri="qemu:///embed"):
    return embed.embed_root(uri, run_dir=run_dir, cache_dir=tmp_path / "cache")


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    # pytest's own folders are too long for sockets; relative paths are short.
    monkeypatch.chdir(tmp_path)
    return tmp_path.relative_to(tmp_path) / "run"


@pytest.mark.parametrize(
    ("uri", "embedded"),
    [
        ("qemu:///embed", True),
        ("qemu:///embed?root=/tmp/x", True),
        ("qemu:///system", False),
        ("qemu+ssh://host/system", False),
        ("test:///default", False),
    ],
)
def test_which_uris_mean_the_embedded_driver(uri, embedded):
    assert embed.is_embed(uri) is embedded


def test_the_root_is_the_runs_own_unless_the_uri_names_one(run_dir, tmp_path, monkeypatch):
    assert root_for(run_dir, tmp_path).path == run_dir / "v"
    monkeypatch.setattr(embed, "_roots", {})
    assert str(root_for(run_dir, tmp_path, "qemu:///embed?root=my%20root").path) == "my root"


def test_the_uri_quotes_the_path(run_dir, tmp_path):
    assert root_for(run_dir, tmp_path, "qemu:///embed?root=a%26b").uri == "qemu:///embed?root=a%26b"


def test_as_root_qemu_stays_root(run_dir, tmp_path, monkeypatch):
    for uid, named in ((0, True), (1000, False)):
        monkeypatch.setattr(embed, "_roots", {})
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        config = (root_for(run_dir, tmp_path).path / "etc/qemu.conf").read_text()
        assert ('user = "root"' in config) is named
        assert 'stdio_handler = "file"' in config
        assert "seccomp" not in config


@pytest.fixture
def foreign(run_dir, tmp_path):
    """A root folder of somebody else, with a configuration in it."""
    config = tmp_path / "foreign/etc/qemu.conf"
    config.parent.mkdir(parents=True)
    config.write_text("# precious\n")
    return config


def test_somebody_elses_configuration_is_not_replaced(run_dir, tmp_path, foreign):
    with pytest.raises(ConnectionFailed, match=r"qemu\.conf was not written by pytest-kvm"):
        root_for(run_dir, tmp_path, "qemu:///embed?root=foreign")
    assert foreign.read_text() == "# precious\n"


@pytest.mark.parametrize("linked", ["etc", "etc/qemu.conf"])
def test_a_link_in_the_place_of_the_configuration_is_not_written_through(run_dir, tmp_path, foreign, linked):
    link = tmp_path / "mine" / linked
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "foreign" / linked)
    with pytest.raises(ConnectionFailed, match="was not written by pytest-kvm"):
        root_for(run_dir, tmp_path, "qemu:///embed?root=mine")
    assert foreign.read_text() == "# precious\n"


def test_what_else_lies_in_a_named_root_stays(run_dir, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("kept")
    for _ in range(2):  # our own configuration may be written again
        monkeypatch.setattr(embed, "_roots", {})
        root_for(run_dir, tmp_path, "qemu:///embed?root=mine")
    assert (tmp_path / "mine/file").read_text() == "kept"


def test_the_same_root_can_be_opened_again_another_cannot(run_dir, tmp_path):
    assert root_for(run_dir, tmp_path) is root_for(run_dir, tmp_path)
    with pytest.raises(ConnectionFailed, match="cannot also work in elsewhere/v") as caught:
        root_for(run_dir.parent / "elsewhere", tmp_path)
    assert "new process" in caught.value.resolution


def test_a_root_that_was_removed_is_not_used_again(run_dir, tmp_path):
    root_for(run_dir, tmp_path).path.rename("gone")
    with pytest.raises(ConnectionFailed, match="was removed"):
        root_for(run_dir, tmp_path)


def test_a_path_too_long_for_a_socket_is_refused_before_libvirt_stumbles(run_dir, tmp_path):
    fits = run_dir / ("x" * (107 - len(f"run//v/{embed._LONGEST_SOCKET}")))
    with pytest.raises(ConnectionFailed, match="1 bytes too long"):
        root_for(fits.with_name(fits.name + "x"), tmp_path)
    assert root_for(fits, tmp_path).path == fits / "v"


def test_libvirts_log_goes_to_a_file_only_while_libvirt_is_loaded(tmp_path, monkeypatch):
    monkeypatch.delitem(__import__("sys").modules, "libvirt", raising=False)
    log = tmp_path / "run/libvirt.log"
    with libvirt_log.logging_to(log):
        assert os.environ["LIBVIRT_LOG_OUTPUTS"] == f"3:file:{log}"
        assert log.parent.is_dir()
    assert "LIBVIRT_LOG_OUTPUTS" not in os.environ


def test_the_users_own_choice_of_a_log_stays(tmp_path, monkeypatch):
    monkeypatch.delitem(__import__("sys").modules, "libvirt", raising=False)
    monkeypatch.setenv("LIBVIRT_LOG_OUTPUTS", "1:stderr")
    with libvirt_log.logging_to(tmp_path / "libvirt.log"):
        assert os.environ["LIBVIRT_LOG_OUTPUTS"] == "1:stderr"


def test_a_path_that_libvirt_would_split_is_refused(tmp_path, monkeypatch):
    monkeypatch.delitem(__import__("sys").modules, "libvirt", raising=False)
    with (
        pytest.raises(ConnectionFailed, match="split at spaces"),
        libvirt_log.logging_to(tmp_path / "a b/log"),
    ):
        pytest.fail("entered")


def test_a_log_folder_that_is_gone_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(libvirt_log, "_files", [tmp_path / "gone/libvirt.log"])
    with pytest.raises(ConnectionFailed, match="that folder is gone"):
        libvirt_log.check_log_folder()
