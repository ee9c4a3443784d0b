"""What ``make`` installs is what ``pyproject.toml`` asks for."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PIN = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>\S+)(?: ; .*)? \\\n(?P<rest>(?: +.*\n)+)", re.MULTILINE)


@pytest.fixture(scope="module")
def project(project_root):
    """``pyproject.toml``."""
    return tomllib.loads((project_root / "pyproject.toml").read_text())


def asked(project, *extras):
    """The requirements of the project and of extras, with the extras that these name."""
    optional = project["project"]["optional-dependencies"]
    wanted = [Requirement(line) for line in project["project"]["dependencies"]]
    for extra in extras:
        for requirement in map(Requirement, optional[extra]):
            wanted += (
                asked(project, *requirement.extras) if requirement.name == "pytest-kvm" else [requirement]
            )
    return wanted


def locked(project_root, name):
    """Versions by name, and the names of what the project itself asks for."""
    found = list(PIN.finditer((project_root / "requirements" / name).read_text()))
    versions = {match["name"]: Version(match["version"]) for match in found}
    direct = {match["name"] for match in found if "pytest-kvm (pyproject.toml" in match["rest"]}
    return versions, direct


@pytest.mark.parametrize(
    ("file", "extras"), [("dev.txt", ["dev"]), ("test.txt", ["test"]), ("build.txt", None)]
)
def test_the_lock_holds_what_the_project_asks_for_and_nothing_else(project, project_root, file, extras):
    groups = [Requirement(line) for line in project["dependency-groups"]["build"]]
    wanted = groups if extras is None else asked(project, *extras)
    versions, direct = locked(project_root, file)
    assert {canonicalize_name(requirement.name) for requirement in wanted} == direct, "run `make lock`"
    outside = [str(each) for each in wanted if versions[canonicalize_name(each.name)] not in each.specifier]
    assert outside == [], "run `make lock`"


def test_the_locks_agree(project_root):
    everything, _ = locked(project_root, "dev.txt")
    for file in ("test.txt", "build.txt"):
        versions, _ = locked(project_root, file)
        assert {name: everything.get(name, version) for name, version in versions.items()} == versions


@pytest.mark.parametrize("file", ["dev.txt", "test.txt", "build.txt"])
def test_each_version_has_its_digests(project_root, file):
    text = (project_root / "requirements" / file).read_text()
    pins = list(PIN.finditer(text))
    assert len(pins) == len(re.findall(r"^\S+==", text, re.MULTILINE)) > 0
    assert [match["name"] for match in pins if "--hash=sha256:" not in match["rest"]] == []
    assert "://" not in text
