"""``pytest-kvm doctor``: reports what works on this host, and what to do about the rest."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape

from pytest_kvm.errors import KvmError
from pytest_kvm.host.probes import Fact, Severity, all_facts
from pytest_kvm.host.run_folder import held_run_folder
from pytest_kvm.hypervisor.connect import open_hypervisor
from pytest_kvm.images.image_store import ImageStore
from pytest_kvm.provision.unowned_files import foreign_files_text
from pytest_kvm.settings import Settings

_EXIT: dict[Severity, int] = {"ok": 0, "warning": 0, "error": 1}
_SIGN: dict[Severity, str] = {"ok": "[green]ok[/]  ", "warning": "[yellow]warn[/]", "error": "[red]fail[/]"}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser; it sets ``handler``."""
    parser = subparsers.add_parser(
        "doctor",
        help="check what works here",
        description="Look at everything guests need on this machine. Exit code 1 if no guest can start, "
        "0 if one can, warnings or not.",
    )
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    parser.set_defaults(handler=_doctor)


def _doctor(arguments: argparse.Namespace, settings: Settings) -> int:
    console = Console(highlight=False, soft_wrap=True)
    facts: list[Fact] = []
    for fact in _facts(settings):
        facts.append(fact)
        if not arguments.json:
            _show(console, fact)
    if arguments.json:
        console.print_json(json.dumps([asdict(fact) for fact in facts]))
    return max(_EXIT[fact.severity] for fact in facts)


def _facts(settings: Settings) -> Iterator[Fact]:
    yield from all_facts(cache_dir=settings.cache_dir, run_dir=settings.run_dir)
    yield _connection(settings)
    yield _images(settings)
    for problem in ImageStore.of(settings).damaged():
        yield Fact(name="image store", severity="warning", seen=problem.brief, remedy=problem.resolution)
    if named := foreign_files_text(settings):
        yield Fact(
            name="not made by pytest-kvm",
            severity="warning",
            seen=f"{named}: left alone",
            remedy="move it elsewhere, or remove it if nobody needs it",
        )


def _connection(settings: Settings) -> Fact:
    """Open the libvirt connection as a run does, and report its versions or its error."""
    name = f"connection {settings.uri}"
    try:
        with held_run_folder(settings.run_dir) as folder:
            hypervisor = open_hypervisor(settings.uri, run_dir=folder, cache_dir=settings.cache_dir)
            try:
                facts = hypervisor.facts()
            finally:
                hypervisor.close()
    except KvmError as error:
        seen = "\n".join(filter(None, [error.brief, error.details]))
        return Fact(name=name, severity="error", seen=seen, remedy=error.resolution)
    seen = f"libvirt {facts.library_version}, QEMU {facts.hypervisor_version} ({facts.emulator})"
    return Fact(name=name, severity="ok", seen=seen)


def _images(settings: Settings) -> Fact:
    names = [image.name for image in ImageStore.of(settings).list()]
    if settings.default_image in names:
        return Fact(name="default image", severity="ok", seen=f"{settings.default_image} is in the store")
    return Fact(
        name="default image",
        severity="ok",
        seen=f"{settings.default_image} is not in the store yet; the first guest builds it",
        remedy=f"pytest-kvm images build {settings.default_image}",
    )


def _show(console: Console, fact: Fact) -> None:
    console.print(f"{_SIGN[fact.severity]}  {escape(fact.name)}: {escape(fact.seen)}")
    if fact.remedy:
        console.print(f"      → {escape(fact.remedy)}")
