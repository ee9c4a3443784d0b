from __future__ import annotations

import os
import threading

import pytest

from pytest_kvm.errors import ConnectionFailed
from pytest_kvm.hypervisor.capabilities import CapabilityStore

BELOW_ROOT = "cache/qemu/capabilities"


def store_for(tmp_path, name):
    return CapabilityStore(folder=tmp_path / "kept", root=tmp_path / name), tmp_path / name / BELOW_ROOT


def test_what_one_root_learned_the_next_one_knows(tmp_path):
    first, folder = store_for(tmp_path, "first")
    with first.shared():
        (folder / "qemu.xml").write_text("<known/>")
    second, folder = store_for(tmp_path, "second")
    with second.shared():
        assert (folder / "qemu.xml").read_text() == "<known/>"


def test_a_newer_answer_replaces_the_kept_one_and_nothing_else_stays(tmp_path):
    for name, text in (("first", "<old/>"), ("second", "<new/>")):
        store, folder = store_for(tmp_path, name)
        with store.shared():
            (folder / "qemu.xml").write_text(text)
    kept = tmp_path / "kept"
    assert (kept / "qemu.xml").read_text() == "<new/>"
    assert {file.name for file in kept.iterdir()} - {"probe.lock"} == {"qemu.xml"}


@pytest.mark.parametrize("is_known", [True, False])
def test_a_store_that_cannot_be_written_to_is_done_without(tmp_path, is_known):
    kept = tmp_path / "kept"
    if is_known:
        kept.mkdir()
        (kept / "old.xml").write_text("<old/>")
        (kept / f"qemu.xml.{os.getpid()}").mkdir()  # where the new answer would be written first
    else:
        kept.touch()
    store, folder = store_for(tmp_path, "root")
    with store.shared():
        (folder / "qemu.xml").write_text("<new/>")
    assert not (kept / "qemu.xml").exists()


def test_a_root_asks_once(tmp_path):
    store, folder = store_for(tmp_path, "root")
    with store.shared():
        (folder / "qemu.xml").write_text("<first/>")
    with store.shared():
        (folder / "qemu.xml").write_text("<half")
    assert (tmp_path / "kept/qemu.xml").read_text() == "<first/>"


def test_a_failed_start_publishes_nothing_and_can_be_tried_again(tmp_path):
    store, folder = store_for(tmp_path, "root")

    def fail_to_open():
        (folder / "qemu.xml").write_text("<half")
        raise ConnectionFailed("no")

    with pytest.raises(ConnectionFailed), store.shared():
        fail_to_open()
    assert not (tmp_path / "kept/qemu.xml").exists()
    with store.shared():
        (folder / "qemu.xml").write_text("<whole/>")
    assert (tmp_path / "kept/qemu.xml").read_text() == "<whole/>"


def test_while_nothing_is_known_one_asks_and_the_others_wait(tmp_path):
    asked = []

    def start(name):
        store, folder = store_for(tmp_path, name)
        with store.shared():
            if not (folder / "qemu.xml").exists():
                asked.append(name)
                (folder / "qemu.xml").write_text("<known/>")

    threads = [threading.Thread(target=start, args=(f"root{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
