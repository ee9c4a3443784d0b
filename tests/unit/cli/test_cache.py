"""``pytest-kvm cache``, from its arguments to what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from pytest_kvm.boot_cache.template_store import TemplateStore
from pytest_kvm.cli.amounts import duration, size
from pytest_kvm.cli.main import main
from pytest_kvm.settings import Settings

KEY = "5ca1ab1e" * 8
OTHER = "0ddba11" + "0" * 57


@pytest.fixture
def store(tmp_path):
    return TemplateStore.of(Settings(cache_dir=tmp_path, run_dir=tmp_path))


@pytest.fixture
def make(store):
    def make(key: str, *, used: float = 0.0):
        """Publish a template that was last used so many seconds ago, and return its folder."""
        with store.building(key) as building:
            (building.folder / "state").write_bytes(b"devices" * 1000)
            building.publish(
                summary=f"GuestSpec({key[:4]!r})", versions={"qemu": "7.2"}, facts={"cpus": 2}
            ).close()
        moment = time.time() - used
        os.utime(building.folder / "used", (moment, moment))
        return building.folder

    return make


@pytest.fixture
def cache(tmp_path, capsys):
    def cache(*arguments: str) -> tuple[int, str]:
        """Run a command; return its exit code and what it said."""
        code = main(["--kvm-cache-dir", str(tmp_path), "cache", *arguments])
        said = capsys.readouterr()
        return code, said.out + said.err

    return cache


def test_an_empty_cache(cache):
    assert cache("list") == (0, "0 templates, 0 B of 20 GiB\n")
    assert cache("gc") == (0, "0 templates removed, 0 B\n")
    assert cache("verify") == (0, "0 templates read, none damaged\n")
    assert cache("list", "--json") == (0, "[]\n")


def test_a_reader_that_has_seen_enough_is_no_failure_to_tell_of(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    program = "import sys; from pytest_kvm.cli.main import main; raise SystemExit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "--kvm-cache-dir", str(tmp_path), "cache", "list"]
    with os.fdopen(writer) as output:
        ended = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, check=False)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_list(cache, make, store):
    make(KEY, used=3 * 3600)
    make(OTHER, used=5 * 86400)
    with store.claim(KEY):
        code, said = cache("list")
    assert code == 0
    first, second, total = said.splitlines()
    assert first.split()[:3] == [OTHER[:12], "16", "KiB"]
    assert "used    5 d ago" in first
    assert first.endswith("GuestSpec('0ddb')")
    assert second.startswith(KEY[:12])
    assert "in use" in second
    assert "in use" not in first
    assert total == "2 templates, 32 KiB of 20 GiB"


def test_list_for_programs(cache, make):
    folder = make(KEY)
    (told,) = json.loads(cache("list", "--json")[1])
    assert told["key"] == KEY
    assert told["folder"] == str(folder)
    assert told["in_use"] is False
    assert told["manifest"]["files"]["state"]["size"] == 7000


def test_show_takes_the_first_digits(cache, make):
    folder = make(KEY)
    code, said = cache("show", "5c")
    assert code == 0
    for expected in (KEY, str(folder), "GuestSpec('5ca1')", "qemu 7.2", "state  6.84 KiB", "cpus = 2"):
        assert expected in said


def test_an_unknown_or_ambiguous_key_is_told(cache, make):
    make(KEY)
    make("5c" + "0" * 62)
    for verb in ("show", "rm", "verify"):
        code, said = cache(verb, "ff")
        assert (code, said.splitlines()[0]) == (1, f"pytest-kvm: no template 'ff' in {cache_folder(said)}")
        code, said = cache(verb, "5c")
        assert code == 1
        assert "2 templates have keys that begin with '5c'" in said
        assert KEY in said


def cache_folder(said: str) -> str:
    return said.splitlines()[0].partition(" in ")[2]


def test_rm(cache, make, store):
    make(KEY)
    make(OTHER)
    assert cache("rm", "5c", "0d") == (0, f"removed {KEY[:12]}\nremoved {OTHER[:12]}\n")
    assert store.claim(KEY) is None


def test_rm_of_one_in_use(cache, make, store):
    folder = make(KEY)
    with store.claim(KEY):
        code, said = cache("rm", "5c")
        assert code == 0
        assert "its files go when the run that uses it closes it" in said
        assert folder.exists()
    assert not folder.exists()


def test_rm_removes_nothing_when_one_key_is_wrong(cache, make, store):
    make(KEY)
    assert cache("rm", "5c", "ff")[0] == 1
    store.claim(KEY).close()


def test_gc_to_a_size(cache, make):
    make(KEY, used=10)
    make(OTHER, used=20)
    code, said = cache("gc", "--size", "20KiB")
    assert code == 0
    assert said == f"removed {OTHER[:12]}     16 KiB  GuestSpec('0ddb')\n1 template removed, 16 KiB\n"
    assert cache("gc", "--size", "0")[1].endswith("1 template removed, 16 KiB\n")


def test_gc_to_the_size_of_the_setting(cache, make, monkeypatch):
    make(KEY)
    assert cache("gc")[1] == "0 templates removed, 0 B\n"
    monkeypatch.setenv("PYTEST_KVM_CACHE_SIZE", "4KiB")
    assert "1 template removed" in cache("gc")[1]


def test_a_size_without_a_unit_is_told(cache):
    code, said = cache("gc", "--size", "12")
    assert code == 1
    assert "--size: '12' is not a size" in said


def test_verify(cache, make):
    make(KEY)
    damaged = make(OTHER)
    (damaged / "state").write_bytes(b"else")
    assert cache("verify", "5c") == (0, "1 template read, none damaged\n")
    code, said = cache("verify")
    assert code == 1
    assert said.splitlines() == [
        f"{OTHER[:12]}  state has 4 bytes instead of 7000",
        "2 templates read, 1 damaged",
    ]


def test_a_damaged_manifest_is_shown_as_such(cache, make):
    (make(KEY) / "manifest.json").write_text("{")
    assert "damaged: the next use drops it" in cache("list")[1]
    assert "damaged: the next use drops it" in cache("show", "5c")[1]
    assert cache("verify")[0] == 1


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (412 * 1024**2, "412 MiB"),
        (1020 * 1024**2, "1020 MiB"),
        (20 * 1024**3, "20 GiB"),
    ],
)
def test_sizes_as_people_read_them(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0 s"), (59, "59 s"), (61, "1 min"), (7300, "2 h"), (10**6, "11 d")]
)
def test_ages_as_people_read_them(seconds, text):
    assert duration(seconds) == text
