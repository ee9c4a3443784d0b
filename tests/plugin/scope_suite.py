"""A suite on one real guest that tells of every scope by the files it finds: on disk and in memory."""

from __future__ import annotations

CONFTEST = """
import pytest
import pytest_kvm as kvm


@kvm.guest(scope="session")
def vm():
    return kvm.GuestSpec(memory="512MiB", vcpus=1)


def mark(guest, name):
    guest.run(["touch", f"/root/{name}", f"/dev/shm/{name}"])


def marks(guest):
    on_disk, in_memory = (guest.run(["ls", folder]).stdout.split() for folder in ("/root", "/dev/shm"))
    assert on_disk == in_memory
    return set(on_disk)


def pytest_configure(config):
    config.mark, config.marks = mark, marks


@pytest.fixture(scope="session")
def in_session(vm):
    mark(vm, "session")
    yield
    assert marks(vm) == {"session"}
"""

PACKAGE_CONFTEST = """
import pytest


def marking(scope):
    @pytest.fixture(scope=scope)
    def fixture(vm, pytestconfig):
        pytestconfig.mark(vm, scope)
        before = pytestconfig.marks(vm)
        yield
        assert pytestconfig.marks(vm) == before

    return fixture


in_package, in_module, in_class = marking("package"), marking("module"), marking("class")
"""

NESTED = """
import pytest


@pytest.fixture
def here(vm, pytestconfig):
    pytestconfig.mark(vm, "function")
    return lambda: pytestconfig.marks(vm)


class TestInside:
    def test_all_scopes(self, in_session, in_package, in_module, in_class, here, vm):
        assert here() == {"session", "package", "module", "class", "function"}
        vm.run("touch /root/test /dev/shm/test; echo new > /etc/hostname")

    def test_again(self, in_session, in_package, in_module, in_class, here, vm):
        assert here() == {"session", "package", "module", "class", "function"}
        assert vm.read_text("/etc/hostname") != "new\\n"


def test_after_the_class(in_session, in_package, in_module, here):
    assert here() == {"session", "package", "module", "function"}
"""

NEXT_MODULE = """
def test_after_the_module(in_session, in_package, vm, pytestconfig):
    assert pytestconfig.marks(vm) == {"session", "package"}
"""

PARAMETERS = """
import pytest


@pytest.fixture(scope="module", params=["one", "two"])
def parameter(request, vm, pytestconfig):
    pytestconfig.mark(vm, request.param)
    return request.param


def test_parameter(in_session, parameter, vm, pytestconfig):
    assert pytestconfig.marks(vm) == {"session", parameter}
    pytestconfig.mark(vm, "test")
"""

AFTERWARDS = """
import pytest


@pytest.fixture
def here(in_session, vm, pytestconfig):
    assert "session" in pytestconfig.marks(vm)
    return lambda: pytestconfig.marks(vm) - {"session"}


@pytest.fixture(scope="module")
def late(vm, pytestconfig):
    pytestconfig.mark(vm, "late")


def test_getfixturevalue(request, vm, here, pytestconfig):
    pytestconfig.mark(vm, "test")
    request.getfixturevalue("late")
    assert here() == {"test", "late"}


def test_what_came_late_is_gone_with_the_test(here):
    assert here() == set()


def test_and_is_there_for_who_asks(late, here):
    assert here() == {"late"}


class TestHalfWay:
    @pytest.fixture(scope="class")
    @classmethod
    def broken(cls, vm, pytestconfig):
        pytestconfig.mark(vm, "broken")
        raise RuntimeError("half-way")

    def test_broken(self, broken):
        raise AssertionError("never reached")

    def test_nothing_of_it_is_left(self, here):
        assert "broken" not in here()


class TestServer:
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, vm):
        with vm.start(["sleep", "1000"]) as process:
            yield process

    def test_refused(self, server, vm):
        raise AssertionError("never reached")

    @pytest.mark.kvm(reset="never")
    def test_never(self, server, vm):
        assert server.running
        assert vm.run(["pidof", "sleep"]).ok


@pytest.mark.kvm(reset="never")
class TestSteps:
    def test_first(self, vm, pytestconfig):
        pytestconfig.mark(vm, "first")

    def test_second(self, here):
        assert "first" in here()
"""


def write(folder):
    """Write the suite to a folder."""
    package = folder / "nested"
    package.mkdir()
    files = {
        folder / "conftest.py": CONFTEST,
        package / "__init__.py": "",
        package / "conftest.py": PACKAGE_CONFTEST,
        package / "test_nested.py": NESTED,
        package / "test_next.py": NEXT_MODULE,
        folder / "test_afterwards.py": AFTERWARDS,
        folder / "test_parameters.py": PARAMETERS,
    }
    for path, text in files.items():
        path.write_text(text)
