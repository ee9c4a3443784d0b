"""The reference says what the code says: nothing is missing, nothing is made up."""

from __future__ import annotations

import argparse
import inspect
import itertools
import re
import typing
from dataclasses import MISSING, fields

import pytest

import pytest_kvm
from pytest_kvm import errors, settings
from pytest_kvm.cli.main import parser
from pytest_kvm.options import OPTIONS
from pytest_kvm.plugin import declare, newhooks
from tests.unit.docs.pages import DOCS, REFERENCE, ROOT, all_pages, directives, rows, section, table

PACKAGE = ROOT / "pytest_kvm"
SPECS = [
    "GuestSpec",
    "Disk",
    "Nic",
    "NetworkSpec",
    "CloudInit",
    "User",
    "File",
    "Script",
    "HostFile",
    "ImageRef",
]


# ---------------------------------------------------------------- options


def test_options():
    stated = rows(section("options.md", "Options"))
    assert [[cell.strip("`") for cell in row[:4]] for row in stated] == [
        [option.flag, option.variable, option.ini, option.default] for option in OPTIONS
    ]


def test_choices_of_options_are_explained():
    explained = {row[0].strip("`"): row[4] for row in rows(section("options.md", "Options"))}
    for option in OPTIONS:
        assert not [choice for choice in option.choices if f"`{choice}`" not in explained[option.flag]]


@pytest.mark.parametrize(
    ("pattern", "known"),
    [
        (r"--kvm-[a-z-]+", {option.flag for option in OPTIONS}),
        (r"\bPYTEST_KVM_[A-Z_]+", {option.variable for option in OPTIONS} | {"PYTEST_KVM_MIRROR"}),
        (
            r"\bkvm_(?!guests\b|networks\b|(?:guest|re(?:set|boot)|savepoint)_NAME)[a-z_]+",
            {option.ini for option in OPTIONS},
        ),
    ],
    ids=["flags", "variables", "ini keys"],
)
def test_no_page_names_an_option_that_does_not_exist(pattern, known):
    named = {word for page in all_pages() for word in re.findall(pattern, page.read_text())}
    # "--kvm-*" stands for all of them.
    assert {word for word in named if word != "--kvm-"} <= known


def test_every_variable_of_the_code_is_documented():
    code = "\n".join(path.read_text() for path in (ROOT / "pytest_kvm").rglob("*.py"))
    variables = set(re.findall(r'"(PYTEST_KVM_[A-Z]+)"', code))
    assert variables <= set(table(section("options.md", "Other variables")))


def test_deadlines():
    (members,) = re.findall(r":members: (.*)", section("options.md", "Deadlines"))
    assert members.split(", ") == [field.name for field in fields(settings.Timeouts)]


# ---------------------------------------------------------------- marker, fixtures, specs


def test_arguments_of_the_guest_decorator():
    parameters = inspect.signature(declare.guest).parameters.values()
    wanted = {
        each.name: repr(each.default).replace("'", '"')
        for each in parameters
        if each.kind is each.KEYWORD_ONLY
    }
    stated = table(section("fixtures.md", "`@kvm.guest`"))
    assert {name: cells[0].strip("`") for name, cells in stated.items()} == wanted
    scopes = set(re.findall(r'`"([a-z]+)"`', stated["scope"][1]))
    assert scopes == set(typing.get_args(declare.Scope))


def test_fixtures(pytester):
    listing = pytester.runpytest("--fixtures", "-q").stdout.str()
    offered = set(re.findall(r"^(\w+)(?: \[\w+ scope\])? -- .*pytest_kvm", listing, re.MULTILINE))
    assert set(table(section("fixtures.md", "Fixtures"))) == offered


def test_the_marker(pytester):
    listing = pytester.runpytest("--markers").stdout.str()
    assert re.search(r"@pytest\.mark\.kvm\(", listing)
    assert "`@pytest.mark.kvm(" in section("fixtures.md", "The marker `kvm`")


def test_hooks():
    text = (REFERENCE / "hooks.md").read_text()
    offered = [name for name in vars(newhooks) if name.startswith("pytest_")]
    assert list(table(text)) == offered
    entries = directives(text, "autofunction")
    assert entries == [f"pytest_kvm.plugin.newhooks.{name}" for name in offered]


@pytest.mark.parametrize("name", SPECS)
def test_fields_of_specs(name):
    stated = {field: (cells[0], cells[1]) for field, cells in table(section("specs.md", name)).items()}
    spec = getattr(pytest_kvm, name)
    assert stated == {each.name: (f"`{_type_of(spec, each)}`", _default_of(each)) for each in fields(spec)}


def test_fields_given_by_position():
    """A row says so, and so does the code."""
    for name in SPECS:
        stated = {
            field
            for field, cells in table(section("specs.md", name)).items()
            if "by position" in cells[2].lower()
        }
        assert stated == {each.name for each in fields(getattr(pytest_kvm, name)) if not each.kw_only}, name


def _type_of(spec, field):
    shown = []
    for part in field.type.split(" | "):
        alias = getattr(inspect.getmodule(spec), part, None)
        is_choice = typing.get_origin(alias) is typing.Literal
        shown += [f'"{choice}"' for choice in typing.get_args(alias)] if is_choice else [part]
    return " | ".join(shown)


def _default_of(field):
    if field.default is not MISSING:
        octal = field.name == "mode" and field.default is not None
        text = f"0o{field.default:o}" if octal else repr(field.default).replace("'", '"')
    elif field.default_factory is not MISSING:
        text = f"{field.default_factory.__name__}()"
    else:
        return "required"
    return f"`{text}`"


# ---------------------------------------------------------------- Python names


def test_every_public_name_has_its_entry():
    entries = {
        entry.removeprefix("pytest_kvm.")
        for page in REFERENCE.glob("*.md")
        for entry in directives(page.read_text(), "autoclass", "autofunction")
    }
    the_errors = {name for name in pytest_kvm.__all__ if hasattr(errors, name)}
    assert set(pytest_kvm.__all__) - the_errors == {entry for entry in entries if "." not in entry}
    assert the_errors == {*_errors(), "CleanupFailed", "KernelErrorWarning"}


def test_every_verb_of_a_guest_has_its_entry():
    text = (REFERENCE / "guest.md").read_text()
    entries = directives(text, "automethod", "autoproperty", "py:attribute")
    members = {name for name in dir(pytest_kvm.Guest) if not name.startswith("_")}
    assert sorted(entry.removeprefix("Guest.") for entry in entries) == sorted({*members, "name", "nics"})


def test_what_verbs_return_is_documented_whole():
    """Autodoc takes every member but where the page lists them."""
    text = (REFERENCE / "results.md").read_text()
    (listed,) = re.findall(r"Console\n   :members: (.*)", text)
    from pytest_kvm.machine.console import Console

    public = {name for name in dir(Console) if not name.startswith("_")}
    # How waits read it piece by piece is theirs alone.
    assert set(listed.split(", ")) == public - {"follow", "read"}


def test_the_tree_of_errors_is_the_tree():
    branch = re.compile(r"^(?P<depth>[ │├└─]*)(?P<name>[A-Z]\w+)\b", re.MULTILINE)
    drawn: dict[str, str] = {}
    above: list[str] = []
    tree = inspect.getdoc(errors).partition("CleanupFailed")[0].partition("::\n")[2]
    for found in branch.finditer(inspect.cleandoc(tree)):
        depth = len(found["depth"]) // 4
        above[depth:] = [found["name"]]
        drawn[found["name"]] = above[depth - 1] if depth else "Exception"
    real = {
        name: next(base.__name__ for base in each.__mro__[1:] if not base.__name__.startswith("_"))
        for name, each in _errors().items()
    }
    assert drawn == real


def _errors():
    return {
        name: each
        for name, each in vars(errors).items()
        if inspect.isclass(each) and issubclass(each, errors.KvmError) and not name.startswith("_")
    }


def test_every_rung_of_the_ladder_has_its_cause_and_remedy():
    rungs = {each.__name__ for each in errors.BootFailed.__subclasses__()}
    assert set(table((DOCS / "how-to" / "diagnose.md").read_text())) == rungs
    explained = set(re.findall(r"`(\w+)`", (DOCS / "explanation" / "readiness.md").read_text()))
    assert rungs <= explained


# ---------------------------------------------------------------- the code

PAGES_ON_THE_CODE = [*sorted((DOCS / "explanation").glob("*.md")), ROOT / "CONTRIBUTING.md"]


def test_modules_that_pages_name_exist():
    named = {
        (page.name, name)
        for page in PAGES_ON_THE_CODE
        for name in re.findall(r"`(?:pytest_kvm/)?([a-z_]+/[a-z_]+\.py)`", page.read_text())
    }
    assert len(named) > 40
    assert not [each for each in named if not any((base / each[1]).exists() for base in (ROOT, PACKAGE))]


# ---------------------------------------------------------------- command line


def _commands(made, words=()):
    """Yield every command's words and its parser, the root's included."""
    yield words, made
    for action in made._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from _commands(below, (*words, name))


def _options_of(made):
    return {text for action in made._actions for text in action.option_strings} - {"-h", "--help"}


def test_every_command_has_its_section():
    text = (REFERENCE / "cli.md").read_text()
    titles = re.findall(r"^## `pytest-kvm (.*)`$", text, re.MULTILINE)
    stated = {tuple(itertools.takewhile(str.islower, title.split())) for title in titles}
    leaves = {words for words, made in _commands(parser()) if made.get_default("handler")}
    assert stated == leaves


def test_the_arguments_of_every_command():
    for words, made in _commands(parser()):
        wanted = [each.metavar or each.dest.upper() for each in made._positionals._group_actions]
        if made.get_default("handler") and wanted:
            assert f"## `pytest-kvm {' '.join([*words, *wanted])}" in (REFERENCE / "cli.md").read_text()


@pytest.mark.parametrize("words", [words for words, _ in _commands(parser())], ids=" ".join)
def test_options_of_commands(words):
    made = dict(_commands(parser()))[words]
    if words and not made.get_default("handler"):
        assert not _options_of(made)
        return
    headings = re.findall(r"^## (.*)$", (REFERENCE / "cli.md").read_text(), re.MULTILINE)
    title = f"`pytest-kvm {' '.join(words)}" if words else "Before the command"
    (heading,) = [each for each in headings if re.match(rf"{re.escape(title)}\b", each)]
    stated = {first.split()[0] for first in table(section("cli.md", heading))}
    assert stated == _options_of(made)


# ---------------------------------------------------------------- what a run shows and makes


def test_what_the_run_stands_on(pytester):
    (pytester.path / "test_none.py").write_text("def test_nothing(kvm_guests): pass\n")
    shown = pytester.runpytest("--collect-only").stdout.str()
    stated = table(section("report.md", "What the run stands on"))
    assert len(stated) == len(re.findall(r"^kvm: ", shown, re.MULTILINE))
    for line in stated:
        pattern = re.sub(r"[A-Z]{3,}", "LINE", re.escape(line)).replace("LINE", ".+")
        assert re.search(rf"^{pattern}$", shown, re.MULTILINE), line


def test_phases_as_progress_calls_them():
    from pytest_kvm.provision.guest_boot import _WORDS

    stated = section("report.md", "Progress")
    assert not [words for words in _WORDS.values() if f"`{words}`" not in stated]


def test_host_packages():
    """The how-to for CI names what the table of packages has for apt."""
    from pytest_kvm.host.install_hints import APT, NEEDS

    (line,) = re.findall(r"^\$ apt-get install (.*)$", (DOCS / "how-to" / "ci.md").read_text(), re.MULTILINE)
    assert set(line.split()) == {name for need in NEEDS.values() for name in need.packages[APT]}


def test_versions_that_are_needed():
    from pytest_kvm.host.oldest_versions import OLDEST

    text = (DOCS / "how-to" / "ci.md").read_text()
    for program in ("QEMU", "libvirt"):
        assert "{} {}.{} or later".format(program, *OLDEST[program]) in text


def test_images_that_can_be_built():
    from pytest_kvm.images.recipe import known_names

    (text,) = re.findall(r"Names that can be built: (.*)\n", (REFERENCE / "cli.md").read_text())
    assert sorted(re.findall(r"`([\w-]+)`", text)) == sorted(known_names())
