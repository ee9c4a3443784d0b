"""Mistakes in specs and markers are collection errors with file and line."""

from __future__ import annotations

import pytest


@pytest.fixture
def collect(pytester, tmp_path):
    def collect(source, *arguments):
        path = pytester.makepyfile(f"import pytest\nimport pytest_kvm as kvm\n\n{source}")
        result = pytester.runpytest("--collect-only", f"--kvm-cache-dir={tmp_path}", *arguments)
        return path, result

    return collect


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ('kvm.GuestSpec(memry="1GiB")', "SpecError: GuestSpec has no field 'memry'"),
        ('kvm.GuestSpec(memory="1GB")', "SpecError: GuestSpec.memory: '1GB' is not a size"),
        ('kvm.GuestSpec("debain-13")', "UnknownImage: *debain-13*"),
        (
            'kvm.GuestSpec(disks=[kvm.Disk(size="1GiB", serial="a"), kvm.Disk(size="1GiB", serial="a")])',
            "SpecError: GuestSpec.disks: two have the serial 'a'",
        ),
        ("None", "SpecError: the guest fixture machine returned NoneType, not a GuestSpec"),
    ],
)
def test_a_wrong_spec_is_told_with_file_and_line(collect, spec, message):
    path, result = collect(
        f"@kvm.guest\ndef machine():\n    return {spec}\n\n\ndef test(machine):\n    pass\n"
    )
    result.assert_outcomes(errors=1)
    # Where the spec was refused; where it is a good one in itself, its function.
    line = 4 if spec == "None" or "debain" in spec else 6
    result.stdout.fnmatch_lines([f"{path.name}:{line}: {message}"])


def test_a_wrong_spec_at_module_level_is_told_too(collect):
    path, result = collect("SPEC = kvm.GuestSpec(vcpus=0)\n\n\ndef test():\n    pass\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"{path.name}:4: *", "*GuestSpec.vcpus: 0 is not a number from 1 to 255*"])


def test_a_wrong_spec_in_conftest_is_told_once_for_each_file(pytester, tmp_path):
    pytester.makeconftest(
        "import pytest_kvm as kvm\n\n@kvm.guest(scope='session')\n"
        "def machine():\n    return kvm.GuestSpec(vcpus=0)\n"
    )
    pytester.makepyfile(test_a="def test_1(machine): pass\ndef test_2(machine): pass\n")
    result = pytester.runpytest("--collect-only", f"--kvm-cache-dir={tmp_path}")
    result.assert_outcomes(errors=1)
    # The summary at the end says it again, whole or cut short as the terminal (or $CI) wants it.
    report, _, _ = result.stdout.str().partition("short test summary info")
    assert report.count("GuestSpec.vcpus: 0 is not a number") == 1
    result.stdout.fnmatch_lines(["conftest.py:5: SpecError*"])


def test_one_of_several_params_is_wrong(collect):
    source = (
        "@kvm.guest(params=['debian-12', 'debian-99'])\n"
        "def machine(request):\n    return kvm.GuestSpec(request.param)\n\n\ndef test(machine):\n    pass\n"
    )
    _, result = collect(source)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*UnknownImage: *debian-99*"])


LAB = """\
@kvm.network
def lan():
    return kvm.NetworkSpec({lan})


@kvm.guest
def left(lan):
    return kvm.GuestSpec(nics=[kvm.Nic(lan, {left})])


@kvm.guest
def right(lan):
    return kvm.GuestSpec(nics=[kvm.Nic(lan, {right})], hostname={hostname})


def test(left, right):
    pass
"""


@pytest.mark.parametrize(
    ("lan", "left", "right", "hostname", "line", "message"),
    [
        ("subnet='10.1.0.1/24'", "", "", None, 6, "NetworkSpec.subnet: '10.1.0.1/24' is not a subnet"),
        ("mtu=100000", "", "", None, 6, "NetworkSpec.mtu: 100000 is no number of bytes"),
        ("subnet='10.1.0.0/24'", "address='10.2.0.1'", "", None, 11, "Nic.address: 10.2.0.1 is not in"),
        ("subnet6=None", "address6='fd00::1'", "", None, 11, "Nic.address6: lan has no IPv6 subnet"),
        (
            "",
            "address='10.1.0.5'",
            "address='10.1.0.5'",
            None,
            14,
            "Nic.address of right: 10.1.0.5 is the address of left on lan",
        ),
        (
            "",
            "mac='52:54:00:00:00:01'",
            "mac='52:54:00:00:00:01'",
            None,
            14,
            "Nic.mac of right: 52:54:00:00:00:01 is the address of left on lan",
        ),
        ("", "", "", "left.example.org", 14, "right and left are both called 'left' on lan"),
        ("subnet='10.1.0.0/31'", "", "), kvm.Nic(lan", None, 14, "right: lan has addresses for 2 cards"),
    ],
)
def test_a_wrong_lab_is_told_with_file_and_line(collect, lan, left, right, hostname, line, message):
    source = LAB.format(lan=lan, left=left, right=right, hostname=repr(hostname))
    path, result = collect(source)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"{path.name}:{line}: SpecError: {message}*"])


def test_a_lab_is_checked_for_each_param_of_its_network(collect):
    source = LAB.replace("@kvm.network\ndef lan():", "@kvm.network(params=[24, 30])\ndef lan(request):")
    source = source.format(
        lan="subnet=f'10.1.0.0/{request.param}'", left="address='10.1.0.5'", right="", hostname=None
    )
    _, result = collect(source)
    result.assert_outcomes(errors=1)
    report, _, _ = result.stdout.str().partition("short test summary info")
    assert report.count("SpecError") == 1
    assert "Nic.address: 10.1.0.5 is not in 10.1.0.0/30, the subnet of lan" in report


def test_a_lab_is_checked_with_what_a_tests_marker_changes(collect):
    source = LAB.format(lan="", left="", right="", hostname=None)
    marked = source.replace("def test(", "@pytest.mark.kvm(hostname='db')\ndef test(")
    _, result = collect(marked)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*SpecError: right and left are both called 'db' on lan"])
    clash = source.replace("hostname=None", "hostname='left'")
    marked = clash.replace("def test(", "@pytest.mark.kvm(hostname=None)\ndef test(")
    _, result = collect(marked)
    assert result.ret == 0


def test_a_function_that_asks_for_a_subnet_that_is_not_chosen_yet_is_left_to_set_up(collect):
    source = LAB.format(lan="", left="address=str(lan.subnet[5])", right="", hostname=None)
    _, result = collect(source)
    assert result.ret == 0


def test_a_good_lab_collects_and_starts_nothing(collect):
    _, result = collect(LAB.format(lan="", left="address='10.1.0.5'", right="", hostname=None))
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*1 test collected*"])


def test_a_network_that_only_the_system_daemon_has(collect):
    source = "@kvm.guest\ndef machine():\n    return kvm.GuestSpec(nics=[kvm.Nic({})])\n\n\n"
    source += "def test(machine):\n    pass\n"
    for nic, field in (("'default'", "Nic.network is 'default'"), ("bridge='br0'", "Nic.bridge is 'br0'")):
        path, result = collect(source.format(nic))
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(
            [f"{path.name}:4: SpecError: GuestSpec.nics?0?: {field}, a network of the host*"]
        )
        _, result = collect(source.format(nic), "--kvm-uri=qemu:///system")
        assert result.ret == 0


def test_a_segment_that_only_the_system_daemon_makes(collect):
    source = (
        "@kvm.network\ndef lan():\n    return kvm.NetworkSpec(forward='nat')\n\n\ndef test(lan):\n    pass\n"
    )
    path, result = collect(source)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [f"{path.name}:4: SpecError: NetworkSpec.forward of lan is 'nat': only libvirt's system daemon*"]
    )
    _, result = collect(source, "--kvm-uri=qemu:///system")
    assert result.ret == 0


def test_good_specs_collect_and_start_nothing(collect):
    source = (
        "@kvm.guest(params=['debian-12', kvm.GuestSpec('debian-13')], scope='module')\n"
        "def machine(request):\n"
        "    p = request.param\n"
        "    return p if isinstance(p, kvm.GuestSpec) else kvm.GuestSpec(p)\n\n\n"
        "def test(machine):\n    pass\n"
    )
    _, result = collect(source)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*test[[]debian-12[]]*", "*test[[]debian-13[]]*"])


def test_unused_fixtures_are_not_called(collect):
    _, result = collect("@kvm.guest\ndef machine():\n    raise RuntimeError\n\n\ndef test():\n    pass\n")
    assert result.ret == 0


RAISING = """
import os

@kvm.guest
def machine(): {statement}

def test_1(machine): pass
def test_2(): pass
"""


@pytest.mark.parametrize(
    "statement",
    [
        'return kvm.GuestSpec(os.environ["NOT_SET"])',
        'raise SystemExit("no")',
        'pytest.fail("no")',
        'pytest.skip("no")',
        'pytest.importorskip("no_such_module")',
        'pytest.xfail("no")',
    ],
)
def test_collection_says_nothing_of_what_a_function_raises(collect, statement):
    _, result = collect(RAISING.format(statement=statement))
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*test_1*", "*test_2*"])


@pytest.mark.parametrize(
    ("statement", "outcome", "shown"),
    [
        ('return kvm.GuestSpec(os.environ["NOT_SET"])', "errors", '>*os.environ[[]"NOT_SET"]*'),
        ('raise SystemExit("no")', "errors", "*SystemExit: no"),
        ('pytest.fail("no")', "errors", "*Failed: no"),
        ('pytest.skip("no")', "skipped", "SKIPPED*: no"),
        ('pytest.xfail("no")', "xfailed", "XFAIL*test_1*no"),
    ],
)
def test_what_a_function_raises_is_the_outcome_of_the_tests_that_use_it(
    pytester, tmp_path, statement, outcome, shown
):
    pytester.makepyfile("import pytest\nimport pytest_kvm as kvm\n" + RAISING.format(statement=statement))
    result = pytester.runpytest("-rsx", f"--kvm-cache-dir={tmp_path}")
    result.assert_outcomes(passed=1, **{outcome: 1})
    result.stdout.fnmatch_lines([shown])


def test_one_param_that_raises_hides_no_mistake_of_another(collect):
    source = (
        "@kvm.guest(params=['', 'debian-99'])\n"
        "def machine(request):\n"
        "    return kvm.GuestSpec(request.param or pytest.skip('none'))\n\n\n"
        "def test(machine):\n    pass\n"
    )
    _, result = collect(source)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*UnknownImage: *debian-99*"])


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("kvm(memory='1GB')", "SpecError: GuestSpec.memory: '1GB'*"),
        ("kvm(memry='1GiB')", "SpecError: GuestSpec has no field 'memry'"),
        ("kvm('debian-13')", "SpecError: the kvm marker takes no positional arguments*"),
    ],
)
def test_wrong_marker_arguments(collect, marker, message):
    path, result = collect(f"@pytest.mark.{marker}\ndef test(kvm_guests):\n    pass\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"{path.name}:4: {message}"])


def test_a_marker_without_a_guest_of_the_tests_own(collect):
    source = (
        "@kvm.guest(scope='module')\ndef machine():\n    return kvm.GuestSpec()\n\n\n"
        "@pytest.mark.kvm(vcpus=1)\ndef test(machine):\n    pass\n"
    )
    _, result = collect(source)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*SpecError: test: the kvm marker changes nothing by vcpus, *"])


def test_reset_holds_for_guests_of_any_scope(collect):
    """It says what the test does with a guest, not what the guest is made of."""
    source = (
        "@kvm.guest(scope='module')\ndef machine():\n    return kvm.GuestSpec()\n\n\n"
        "@pytest.mark.kvm(reset='never')\ndef test_1(machine):\n    pass\n\n\n"
        "@pytest.mark.kvm(reset='never', vcpus=1)\ndef test_2(machine):\n    pass\n"
    )
    _, result = collect(source)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*SpecError: test_2: the kvm marker changes nothing by vcpus, *"])
    result.stdout.no_fnmatch_line("*SpecError: test_1*")


@pytest.mark.parametrize("marker", ["reset='sometimes'", "reset=False"])
def test_a_wrong_reset(collect, marker):
    _, result = collect(f"@pytest.mark.kvm({marker})\ndef test():\n    pass\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*SpecError: GuestSpec.reset: * is not one of 'auto', 'always', 'never'"])


def test_a_markers_gates_need_a_guest_that_can_be_asked_as_root(collect):
    user = "cloud_init=kvm.CloudInit(users=[kvm.User('bob', sudo=False)])"
    source = (
        f"@kvm.guest(scope='module')\ndef machine():\n    return kvm.GuestSpec(login='bob', {user})\n\n\n"
        "@pytest.mark.kvm(gates=kvm.Gates())\ndef test_1(machine):\n    pass\n\n\n"
        "@pytest.mark.kvm(gates=kvm.Gates(avc=True))\ndef test_2(machine):\n    pass\n"
    )
    path, result = collect(source)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [f"{path.name}:4: SpecError: GuestSpec.gates: the guest is asked as root, *'bob'*"]
    )


def test_a_missing_host_file_is_told_with_file_and_line(collect):
    path, result = collect(
        "@kvm.guest\ndef machine():\n"
        "    return kvm.GuestSpec(prepare=['true', kvm.HostFile('app', '/opt/')])\n\n\n"
        "def test(machine):\n    pass\n"
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            f"{path.name}:4: SpecError: GuestSpec.prepare[[]1[]]: app does not exist on this host",
            f"*the path is taken from {path.parent}",
        ]
    )


def test_markers_are_registered(collect):
    _, result = collect("@pytest.mark.kvm(vcpus=1)\ndef test(kvm_guests):\n    pass\n", "--strict-markers")
    assert result.ret == 0


MODIFIED = """
import dataclasses


def pytest_kvm_modify_spec(declaration):
    if declaration.name == "machine":
        declaration.spec = {changed}
"""


@pytest.mark.parametrize(
    ("changed", "place", "message"),
    [
        ("dataclasses.replace(declaration.spec, vcpus=0)", "conftest.py:6", "GuestSpec.vcpus: 0 is not *"),
        (
            "declaration.name",
            "test_*.py:4",
            "machine: a pytest_kvm_modify_spec hook left str, not a GuestSpec*",
        ),
        ("dataclasses.replace(declaration.spec, image='debain-13')", "test_*.py:4", "*debain-13*"),
    ],
)
def test_what_a_hook_makes_of_a_spec_is_checked(pytester, collect, changed, place, message):
    pytester.makeconftest(MODIFIED.format(changed=changed))
    _, result = collect(
        "@kvm.guest\ndef machine():\n    return kvm.GuestSpec()\n\n\ndef test(machine):\n    pass\n"
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"{place}: *: {message}"])


@pytest.mark.parametrize("scope", ["session", "module"])
def test_a_hook_is_called_for_the_guests_of_its_folder_only(pytester, tmp_path, scope):
    pytester.makepyfile(
        **{
            "mine/conftest": MODIFIED.format(changed="dataclasses.replace(declaration.spec, vcpus=0)"),
            "mine/test_none": "def test_none(): pass",
            "test_machine": f"import pytest_kvm as kvm\n\n@kvm.guest(scope='{scope}')\n"
            "def machine():\n    return kvm.GuestSpec()\n\ndef test(machine): pass\n",
        }
    )
    result = pytester.runpytest("--collect-only", f"--kvm-cache-dir={tmp_path}")
    result.assert_outcomes()
