"""The rules of CONTRIBUTING.md that no linter checks."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest_kvm
import pytest_kvm.spec
from pytest_kvm import errors

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pytest_kvm"
MODULES = sorted(PACKAGE.rglob("*.py"))

MAX_MODULE_LINES = 400
LONGER = {"pytest_kvm/handles/guest.py": 550}
"""One class that hands over to others, each verb with its docstring."""
MAX_BODY_LINES = 40
MAX_POSITIONAL = 2
MAX_PUBLIC_NAMES = 29
"""Besides errors."""

PARTICIPLE = re.compile(r"_*([a-z]+(?<!e)ed|done|found|given|gone|kept|known|lost|made|said|seen|taken|told)")
PARTICIPLES_THAT_SAY_IT = {"finished", "reached", "damaged", "elapsed", "scaled"}
"""Events that somebody is told of; what others call by this word."""

VAGUE_NAMES = {"base.py", "common.py", "helpers.py", "misc.py", "tools.py", "util.py", "utils.py"}
HEAVY_MODULES = {"cryptography", "libvirt", "paramiko", "psutil", "pycdlib", "rich", "tenacity", "yaml"}

FRAGMENT = re.compile(
    r"(\d+|\+[a-z0-9-]+)\.(added|changed|deprecated|removed|fixed|security|downstream)(\.\d+)?\.md"
)
SUPPRESSION = re.compile(r"#\s*(noqa|type: ignore|pyright: ignore)(?P<rest>.*)")
REASONED = re.compile(r"(: [A-Z]+\d+(, ?[A-Z]+\d+)* - \S|\[[\w-]+(, ?[\w-]+)*\])")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function):
            yield node


def callable_from_outside(path: Path) -> Iterator[Function]:
    """Yield a module's functions and its classes' methods, not what is nested in them."""
    tree = ast.parse(path.read_text())
    scopes: list[ast.Module | ast.ClassDef] = [tree]
    scopes += [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for scope in scopes:
        yield from (node for node in scope.body if isinstance(node, Function))


def body_lines(function: Function) -> int:
    """Count from the first statement after the docstring to the last line."""
    body = function.body
    starts_with_text = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    if starts_with_text and len(body) == 1:
        return 0
    return (body[-1].end_lineno or 0) - body[starts_with_text].lineno + 1


def public_specs() -> list[type]:
    """Return every public dataclass of the modules below ``spec``."""
    found: dict[str, type] = {}
    for module in pkgutil.iter_modules(pytest_kvm.spec.__path__, "pytest_kvm.spec."):
        loaded = importlib.import_module(module.name)
        for name, value in vars(loaded).items():
            if inspect.isclass(value) and dataclasses.is_dataclass(value) and not name.startswith("_"):
                found[f"{value.__module__}.{name}"] = value
    return list(found.values())


# ---------------------------------------------------------------- size and shape


def test_modules_stay_readable_in_one_sitting():
    lines = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    assert lines
    assert not {name: n for name, n in lines.items() if n > LONGER.get(name, MAX_MODULE_LINES)}


def test_a_module_has_its_name_for_itself():
    """Only what a spec is made into may be called like the module of the spec."""
    names = Counter(path.stem for path in MODULES if path.parent.name != "spec" and path.stem != "__init__")
    assert not [name for name, count in names.items() if count > 1]


def test_a_class_has_its_name_for_itself():
    """Private ones too: a name has one meaning in the whole package."""
    names = Counter(
        node.name
        for path in MODULES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    )
    assert len(names) > 100
    assert not [name for name, count in names.items() if count > 1]


def test_function_bodies_fit_on_a_screen():
    assert not {
        f"{name_of(path)}:{f.lineno} {f.name}": lines
        for path in MODULES
        for f in functions(path)
        if (lines := body_lines(f)) > MAX_BODY_LINES
    }


def test_functions_are_named_by_what_they_do_or_return():
    """A participle alone says neither; one word is right for context managers and for events."""

    def is_free(function: Function) -> bool:
        is_special = any(
            re.search("property|contextmanager", ast.unparse(d)) for d in function.decorator_list
        )
        return is_special or function.name.strip("_") in PARTICIPLES_THAT_SAY_IT

    assert not [
        f"{name_of(path)}:{f.lineno} {f.name}"
        for path in MODULES
        for f in functions(path)
        if PARTICIPLE.fullmatch(f.name) and not is_free(f)
    ]


def test_more_than_two_arguments_are_named_by_the_caller():
    """A rule for what others call; pytest chooses the signatures of hooks and fixtures."""

    def positional(function: Function) -> list[str]:
        arguments = function.args
        names = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
        return [name for name in names if name not in {"self", "cls"}]

    def is_free(function: Function) -> bool:
        is_fixture = any("fixture" in ast.unparse(each) for each in function.decorator_list)
        return not (is_fixture or function.name.startswith(("pytest_", "_")))

    assert not [
        f"{name_of(path)}:{f.lineno} {f.name}"
        for path in MODULES
        for f in callable_from_outside(path)
        if is_free(f) and len(positional(f)) > MAX_POSITIONAL
    ]


def test_no_module_has_a_name_that_says_nothing():
    assert not [name_of(path) for path in MODULES if path.name in VAGUE_NAMES]


def test_inner_packages_are_empty_so_that_nothing_is_loaded_by_accident():
    inner = PACKAGE.glob("*/__init__.py")
    full = [name_of(path) for path in inner if path.parent.name != "plugin" and path.read_text().strip()]
    assert not full


def test_every_suppression_names_its_rule_and_its_reason():
    assert not [
        f"{name_of(path)}:{number}: {match[0]}"
        for path in MODULES
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if (match := SUPPRESSION.search(line)) and not REASONED.match(match["rest"])
    ]


# ---------------------------------------------------------------- errors and values


def test_errors_are_raised_by_a_class_that_says_whose_fault_it_is():
    assert not [
        f"{name_of(path)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        if ast.unparse(node.exc.func) == "KvmError"
    ]


def test_specs_are_frozen_and_named_by_field():
    """Positional is only what the value is first of all: an image's name, a file's path and content."""
    specs = public_specs()
    assert specs
    assert not [spec.__name__ for spec in specs if not spec.__dataclass_params__.frozen]
    assert not [
        spec.__name__
        for spec in specs
        if sum(not field.kw_only for field in dataclasses.fields(spec)) > MAX_POSITIONAL
    ]


# ---------------------------------------------------------------- public face


def test_public_names_are_few_sorted_and_documented():
    names = pytest_kvm.__all__
    assert list(names) == sorted(names)
    assert len([name for name in names if not hasattr(errors, name)]) <= MAX_PUBLIC_NAMES
    things = {name: getattr(pytest_kvm, name) for name in names}
    assert not [name for name, thing in things.items() if callable(thing) and not inspect.getdoc(thing)]


def test_every_public_name_stands_in_the_reference():
    reference = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").rglob("*.md"))
    names = [name for name in pytest_kvm.__all__ if not hasattr(errors, name)]  # errors: their whole module
    assert ".. automodule:: pytest_kvm.errors" in reference
    assert not [name for name in names if not re.search(rf"\b{name}\b", reference)]


def test_loading_the_plugin_loads_nothing_heavy(tmp_path):
    """Every pytest run in the environment pays for the import, also without guests."""
    code = (
        "import sys, pytest\n"
        "pytest.main(['-p', 'pytest_kvm.plugin', '--collect-only', '--quiet'])\n"
        f"print('loaded:', 'pytest_kvm.plugin' in sys.modules, {HEAVY_MODULES!r} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PATH": os.defpath, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert done.stdout.splitlines()[-1] == "loaded: True set()", done.stdout + done.stderr


def test_the_plugin_is_found_by_pytest_on_its_own():
    (plugin,) = entry_points(group="pytest11", name="kvm")
    assert plugin.value == "pytest_kvm.plugin"


# ---------------------------------------------------------------- changelog


def test_changelog_fragments_are_named_by_issue_and_kind():
    fragments = [path.name for path in (ROOT / "changelog.d").iterdir() if path.name != "README.md"]
    assert not [name for name in fragments if not FRAGMENT.fullmatch(name)]
