from __future__ import annotations

import subprocess
import sys

import pytest

from pytest_kvm.errors import ImageError, UnknownImage
from pytest_kvm.images import build
from pytest_kvm.images.ensure import check_known, derived_name, ensure
from pytest_kvm.images.recipe import known_names, recipe_for
from pytest_kvm.images.rootfs import check_names
from pytest_kvm.spec.image import ImageRef
from tests.conftest import ROOT


def test_a_recipe_is_known_without_a_store(settings):
    check_known(ImageRef("debian-13"), settings=settings)
    assert not settings.cache_dir.exists()


def test_an_image_of_the_store_is_known(settings, publish):
    publish("mine", b"disk")
    check_known(ImageRef("mine"), settings=settings)


def test_a_mistyped_name_gets_the_nearest(settings):
    with pytest.raises(UnknownImage, match="did you mean 'debian-13'") as failure:
        check_known(ImageRef("debain-13"), settings=settings)
    assert "debian-12" in failure.value.details
    assert "images import" in failure.value.resolution


def test_a_recipe_cannot_promise_a_digest(settings):
    with pytest.raises(UnknownImage):
        check_known(ImageRef("debian-13", digest="0123456789abcdef"), settings=settings)


def test_knowing_names_loads_nothing_heavy():
    script = (
        "import sys, pytest_kvm.images.ensure\n"
        "print([name for name in ('rich', 'yaml', 'libvirt', 'paramiko', 'pycdlib') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "[]\n"


def test_an_image_of_the_store_is_not_built(settings, publish):
    mine = publish("mine", b"disk")
    assert ensure(ImageRef("mine"), settings=settings) == mine


def test_an_imported_image_comes_without_the_packages_it_cannot_get(settings, publish):
    mine = publish("mine", b"disk")
    assert ensure(ImageRef("mine"), settings=settings, packages=["jq"]) == mine


def test_an_image_of_an_older_recipe_is_built_again(settings, publish, monkeypatch):
    publish("debian-13", b"old", recipe="debian-13", recipe_version="trixie/0")
    monkeypatch.setattr(build, "build", lambda _store, recipe, **_: f"built {recipe.name}")
    told = []
    image = ensure(
        ImageRef("debian-13"), settings=settings, on_built=lambda what, seconds: told.append((what, seconds))
    )
    assert image == "built debian-13"
    assert told == [("debian-13", pytest.approx(0, abs=60))]


def test_an_image_of_a_later_plugin_is_taken(settings, publish):
    later = publish("debian-13", b"later", recipe="debian-13", recipe_version="trixie/999")
    assert ensure(ImageRef("debian-13"), settings=settings) == later


def test_an_image_of_todays_recipe_is_not(settings, publish):
    recipe = recipe_for("debian-13")
    today = publish("debian-13", b"now", recipe=recipe.name, recipe_version=recipe.version)
    told = []
    assert ensure(ImageRef("debian-13"), settings=settings, on_built=lambda *what: told.append(what)) == today
    assert not told


def test_a_derived_name_depends_on_the_base_and_the_set_of_packages(publish):
    one, two = publish("one", b"1"), publish("two", b"2")
    assert derived_name(one, ["b", "a", "a"]) == derived_name(one, ["a", "b"])
    assert derived_name(one, ["a"]) != derived_name(two, ["a"])
    assert derived_name(one, ["a"]) != derived_name(one, ["b"])
    assert ImageRef(derived_name(one, ["a"]))


@pytest.mark.parametrize("package", ["", "-y", "a b", "$(id)", "../x", "a;b", "Nginx", "-oDebug=1"])
def test_what_is_no_package_name_reaches_no_program(package):
    with pytest.raises(ImageError, match="not a Debian package name"):
        check_names([package])


@pytest.mark.parametrize("package", ["nginx", "libc6:amd64", "jq=1.7.1-3+deb13u1", "g++-14"])
def test_package_names_as_apt_takes_them(package):
    check_names([package])


def test_every_known_name_has_a_recipe():
    assert {"debian-12", "debian-13"} <= set(known_names())
    assert all(recipe_for(name).name == name for name in known_names())
