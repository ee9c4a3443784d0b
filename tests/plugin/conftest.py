"""What runs of pytest within a test have in common."""

from __future__ import annotations

import pytest

from pytest_kvm.plugin.session import settings_stashed
from scripts.folders import own_folder
from tests.plugin.inner_suite import InnerSuite


@pytest.fixture(autouse=True)
def _images_and_templates_of_the_outer_run(pytestconfig, monkeypatch):
    """Let an inner run start where this one is: pytester's HOME has neither an image nor a template."""
    monkeypatch.setenv("PYTEST_KVM_CACHE_DIR", str(settings_stashed(pytestconfig).cache_dir))


@pytest.fixture(scope="module")
def new_suite(tmp_path_factory, pytestconfig):
    """Make a suite whose cache is empty."""
    outer = settings_stashed(pytestconfig).cache_dir
    made = []
    with own_folder("kvm-") as parent:

        def new_suite():
            run_dir = parent / str(len(made))
            run_dir.mkdir(mode=0o700)
            made.append(InnerSuite(tmp_path_factory.mktemp("inner"), run_dir=run_dir, outer=outer))
            return made[-1]

        yield new_suite
    for suite in made:
        suite.cache.remove()


@pytest.fixture(scope="module")
def suite(new_suite):
    """The suite whose cache most tests of a module share."""
    return new_suite()
