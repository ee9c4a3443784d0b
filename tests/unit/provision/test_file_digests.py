"""A copied folder is what the guest will get of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import SpecError
from pytest_kvm.provision.file_digests import check_sources, source_digest


@pytest.fixture
def tree(tmp_path):
    top = tmp_path / "app"
    (top / "sub" / "empty").mkdir(parents=True)
    (top / "a").write_text("a")
    (top / "sub" / "b").write_text("b")
    (top / "link").symlink_to("a")
    return top


def digest(path):
    return source_digest(kvm.HostFile(path, "/opt/app"), field="x")


CHANGES = {
    "a file's bytes": lambda top: (top / "sub" / "b").write_text("B"),
    "a file's mode": lambda top: (top / "a").chmod(0o4755),
    "a folder's mode": lambda top: (top / "sub").chmod(0o700),
    "the top folder's mode": lambda top: top.chmod(0o700),
    "a link's target": lambda top: ((top / "link").unlink(), (top / "link").symlink_to("sub")),
    "a name": lambda top: (top / "a").rename(top / "c"),
    "an empty folder": lambda top: (top / "sub" / "empty").rmdir(),
    "a link that became a file": lambda top: ((top / "link").unlink(), (top / "link").write_text("a")),
    "a name that is no text": lambda top: Path(top, os.fsdecode(b"\xff")).mkdir(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_that_is_copied_counts(tree, change):
    before = digest(tree)
    CHANGES[change](tree)
    assert digest(tree) != before


def test_what_is_not_copied_does_not_count(tree):
    before = digest(tree)
    os.utime(tree / "a", (0, 0))
    os.mkfifo(tree / "pipe")
    tree.rename(tree.with_name("moved"))
    assert digest(tree.with_name("moved")) == before


def test_a_link_to_what_is_copied_is_followed(tree):
    link = tree.with_name("link")
    link.symlink_to(tree)
    assert digest(link) == digest(tree)


def test_a_link_into_nowhere_is_a_link(tree):
    before = digest(tree)
    (tree / "dangling").symlink_to("/nowhere")
    assert digest(tree) != before


def test_a_folder_and_a_file_of_one_name_differ(tmp_path):
    (tmp_path / "file").touch(mode=0o755)
    (tmp_path / "folder").mkdir(mode=0o755)
    assert digest(tmp_path / "file") != digest(tmp_path / "folder")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (kvm.Script(file="no/such"), "GuestSpec.prepare[1]: no/such does not exist on this host"),
        (kvm.Script(file="/"), "GuestSpec.prepare[1]: / is no file on this host"),
        (kvm.HostFile("/no/such", "/x"), "GuestSpec.prepare[1]: /no/such does not exist on this host"),
        (kvm.HostFile("/dev/null", "/x"), "GuestSpec.prepare[1]: /dev/null is no file on this host"),
        (kvm.HostFile("/", "/x", mode=0o600), "GuestSpec.prepare[1]: mode= is for a single file"),
    ],
)
def test_a_source_that_cannot_be_copied_is_a_mistake(step, message):
    with pytest.raises(SpecError) as caught:
        check_sources(["true", step])
    assert caught.value.brief.startswith(message)


def test_a_relative_path_says_what_it_is_relative_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=str(tmp_path)):
        check_sources([kvm.Script(file="setup.sh")])


def test_sources_that_are_there_pass(tree):
    check_sources(["true", kvm.Script("true"), kvm.Script(file=tree / "a"), kvm.HostFile(tree, "/opt/")])
