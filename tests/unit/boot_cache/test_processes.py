"""Several processes at one store, and some of them killed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from pytest_kvm.boot_cache.template_store import TemplateStore
from pytest_kvm.settings import Settings
from tests.conftest import ROOT
from tests.unit.boot_cache.conftest import KEY, OTHER

_HEAD = textwrap.dedent(
    f"""
    import pathlib, sys
    from pytest_kvm.settings import Settings
    from pytest_kvm.boot_cache.template_store import TemplateStore
    cache = pathlib.Path(sys.argv[1])
    store = TemplateStore.of(Settings(cache_dir=cache, run_dir=cache))
    key = "{KEY}"

    def say(word):
        print(word, flush=True)
        sys.stdin.readline()

    def publish(building):
        (building.folder / "state").write_bytes(b"devices")
        return building.publish(summary="", versions={{}}, facts={{}})
    """
)

BUILDS = """
with store.building(key) as building:
    (building.folder / "state").write_bytes(b"half")
    say("building")
    publish(building)
"""

CLAIMS = """
template = store.claim(key)
say("claimed")
"""

BUILDS_IF_MISSING = """
say("ready")
template = store.claim(key)
if template is None:
    with store.building(key, on_wait=lambda holder: None) as building:
        template = store.claim(key)
        if template is None:
            template = publish(building)
            print("built")
print(template.path("state").read_text())
template.close()
"""


@pytest.fixture
def process(settings):
    """Run a script beside us; it is killed at the end at the latest."""

    @contextmanager
    def beside_us(script, *, until):
        running = subprocess.Popen(
            [sys.executable, "-c", _HEAD + script, settings.cache_dir],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        try:
            assert running.stdout.readline() == f"{until}\n"
            yield running
        finally:
            running.kill()
            running.communicate()

    return beside_us


def test_processes_that_need_the_same_template_make_it_once(process):
    with (
        process(BUILDS_IF_MISSING, until="ready") as one,
        process(BUILDS_IF_MISSING, until="ready") as two,
        process(BUILDS_IF_MISSING, until="ready") as three,
    ):
        racers = (one, two, three)
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        outputs = [racer.communicate(timeout=60)[0] for racer in racers]
    assert sorted(outputs) == ["built\ndevices\n", "devices\n", "devices\n"]


def test_who_waits_is_told_for_whom(store, process):
    told: list[str] = []
    with process(BUILDS, until="building") as builder:

        def release(holder: str) -> None:
            told.append(holder)
            builder.stdin.write("go\n")
            builder.stdin.flush()

        with store.building(KEY, on_wait=release):
            store.claim(KEY).close()
    assert told == [f"pid {builder.pid}, making template {KEY[:12]}"]


def test_what_is_being_made_is_no_garbage(store, inventory, process, settings):
    with process(BUILDS, until="building") as builder:
        inventory.collect(cap=0)
        assert store.claim(KEY) is None
        builder.communicate("go\n", timeout=60)
    store.claim(KEY).close()


def test_what_a_killed_builder_left_goes_when_the_next_is_made(store, make, process, settings):
    with process(BUILDS, until="building") as builder:
        builder.kill()
        builder.wait()
    (half,) = (settings.cache_dir / "templates/entries").iterdir()
    assert (half / "state").read_bytes() == b"half"
    assert store.claim(KEY) is None
    made = make()
    assert list(half.parent.iterdir()) == [made]


IS_KILLED_WHILE_IT_PUBLISHES = """
import os
from pytest_kvm.boot_cache import {module}
{module}.{step} = lambda *args: os.kill(os.getpid(), 9)
print("ready", flush=True)
with store.building(key) as building:
    publish(building)
"""


@pytest.mark.parametrize(
    ("module", "step"),
    [
        ("template_files", "record_of"),
        ("template_files", "write"),
        ("template_files", "sync"),
        ("layout", "Layout.link"),
        ("layout", "sync"),
    ],
)
def test_a_builder_that_is_killed_while_it_publishes(store, make, process, settings, module, step):
    """The key leads to all of the template, or to none of it."""
    script = IS_KILLED_WHILE_IT_PUBLISHES.format(module=module, step=step)
    with process(script, until="ready") as builder:
        assert builder.wait(timeout=60) == -9
    template = store.claim(KEY)
    assert (template is not None) == ((module, step) == ("layout", "sync"))
    if template is not None:
        assert template.path("state").read_bytes() == b"devices"
        template.close()
    made = make()
    assert list((settings.cache_dir / "templates/entries").iterdir()) == [made]
    assert [path.name for path in (settings.cache_dir / "templates/current").iterdir()] == [KEY]


def test_threads_of_a_process_make_a_template_once_too(store):
    built: list[str] = []

    def start(name):
        template = store.claim(KEY)
        if template is None:
            with store.building(KEY) as building:
                template = store.claim(KEY)
                if template is None:
                    (building.folder / "state").write_bytes(b"devices")
                    template = building.publish(summary="", versions={}, facts={})
                    built.append(name)
        with template:
            return template.path("state").read_bytes()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(start, ["one", "two", "three", "four"])) == [b"devices"] * 4
    assert len(built) == 1


def test_collecting_removes_what_a_killed_builder_left(inventory, process, settings):
    with process(BUILDS, until="building") as builder:
        builder.kill()
        builder.wait()
    inventory.collect(cap=10**9)
    assert list((settings.cache_dir / "templates/entries").iterdir()) == []


def test_a_template_in_use_is_not_collected(store, inventory, make, process):
    make(used=1)
    make(OTHER, used=2)
    with process(CLAIMS, until="claimed"):
        assert [info.key for info in inventory.collect(cap=0)] == [OTHER]
        (info,) = inventory.list()
        assert (info.key, info.in_use) == (KEY, True)
    assert [info.key for info in inventory.collect(cap=0)] == [KEY]


def test_publishing_keeps_to_the_cap_and_leaves_what_is_in_use(settings, make, inventory, process):
    small = TemplateStore.of(
        Settings(cache_dir=settings.cache_dir, run_dir=settings.run_dir, cache_size=4096)
    )
    third = "ab" * 32
    make(used=1)
    make(OTHER, used=2)
    with process(CLAIMS, until="claimed"):
        make(third, into=small)
        assert {info.key for info in inventory.list()} == {KEY, third}


def test_a_dropped_template_of_a_killed_user_goes_with_the_next(store, inventory, make, process):
    folder = make()
    with process(CLAIMS, until="claimed"):
        store.discard(KEY, reason="testing")
        assert folder.exists()
    inventory.collect(cap=10**9)
    assert not folder.exists()
