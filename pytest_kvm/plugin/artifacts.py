"""Keeps what the guests of a failed test can tell, and says where it is."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvm.errors import SpecError
from pytest_kvm.host.artifact_folder import DUMPS, FROZEN, ArtifactFolder
from pytest_kvm.host.folder_marker import MARKER
from pytest_kvm.options import OPTIONS, from_environment, settings_from
from pytest_kvm.plugin.captures import copy_captures
from pytest_kvm.plugin.file_names import place_of
from pytest_kvm.plugin.session import existing_run, settings_stashed

if TYPE_CHECKING:
    from pytest_kvm.host.artifact_store import ArtifactStore
    from pytest_kvm.machine.evidence import Evidence
    from pytest_kvm.provision.watched_kernels import ReadyGuest
    from pytest_kvm.settings import Settings

PROPERTY = "kvm_artifacts"
"""Name of the test's property that holds the path of its folder."""
_STORE = pytest.StashKey["ArtifactStore"]()
_ARTIFACTS = pytest.StashKey["Artifacts"]()
_BOOTS = pytest.StashKey[dict[Path, tuple[Path, dict[str, Any]]]]()
"""Where what was kept of each failed boot is now, and what is known of it, by where it was at first."""
_LOGGED_TO_STDOUT = ("all", "out-err", "system-out")
"""Values of pytest's ``junit_logging`` with which JUnit's file has what tests have printed."""


def begin_artifacts(item: pytest.Item) -> None:
    """Begin with a test: what guests show from now on is of its time."""
    properties = item.user_properties
    properties[:] = [each for each in properties if each[0] != PROPERTY]  # of a former try
    item.stash[_ARTIFACTS] = Artifacts(item)


def close_store(config: pytest.Config) -> None:
    """Let other processes remove what was kept."""
    if _STORE in config.stash:
        config.stash[_STORE].close()


def artifacts_of(item: pytest.Item) -> Artifacts:
    """Return what is kept of a test, for the time that it is run now."""
    if _ARTIFACTS not in item.stash:  # another plugin has failed before the set-up began
        begin_artifacts(item)
    return item.stash[_ARTIFACTS]


class Artifacts:
    """What is kept of one test, for one time that it is run.

    Args:
        item: The test, which is about to begin.
    """

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._settings = settings_stashed(item.config)
        self._began = time.monotonic()
        self._began_at = datetime.now(UTC)
        self._consoles: dict[Path, int] = {}
        """How much each console had shown when the test began, by its log."""
        self._folder: Path | None = None
        self._guests: dict[str, dict[str, Any]] = {}
        """What is known of each guest, by the folder of its files."""
        self._fresh: dict[str, Evidence] = {}
        """Those that were kept since the last report, by the same."""
        self._lines: list[str] = []
        """What the next report tells of the files."""
        self._captures: list[str] = []
        self._failures: list[dict[str, str]] = []
        self._attached: set[Path] = set()
        """Files that JUnit's file names."""
        self._problem = ""
        self._note_consoles()

    def _note_consoles(self) -> None:
        run = existing_run(self._item.config)
        if run is not None and self._settings.keep_artifacts != "never":
            for console in [machine.console for machine in run.kernels.ready_machines()]:
                with suppress(OSError):
                    self._consoles[console.log] = console.offset()

    def is_wanted(self, *, failed: bool, when: str) -> bool:
        """Say whether guests are to be kept after a phase of the test."""
        policy = self._settings.keep_artifacts
        return (failed and policy != "never") or (policy == "always" and when == "call")

    def evidence_of(self, guest: ReadyGuest, *, when: str) -> Evidence | None:
        """Return what keeps things of a guest; None if that cannot be, because of its folder."""
        from pytest_kvm.machine.evidence import Evidence  # noqa: PLC0415 - loads paramiko

        machine = guest.machine
        try:
            folder = self._folder_made()
            place = self._place_of(machine.name, when=when)
        except OSError as failure:
            self._problem = f"nothing is kept: {failure}"
            return None
        self._guests[place] = {"spec": repr(guest.spec), "domain": machine.domain.name}
        console = machine.console
        self._fresh[place] = evidence = Evidence(
            machine,
            ArtifactFolder(folder / place),
            since=self._began,
            console_since=self._consoles.get(console.log, console.beginning),
            transcript=partial(guest.transcript.text, since=self._began),
            dump=self._settings.dump,
        )
        return evidence

    def adopt(self, boot: Path, *, when: str) -> None:
        """Keep what a machine could tell whose boot has failed.

        Many tests may fail by one boot: the first gets the files, and the others are told where they are.

        Args:
            boot: Where it was kept when the boot failed.
            when: The phase of the test.
        """
        try:
            self._adopt(boot, when=when)
        except OSError as failure:
            self._problem = f"not all is kept: {failure}"

    def _adopt(self, boot: Path, *, when: str) -> None:
        from pytest_kvm.provision.failed_boots import move, read_about  # noqa: PLC0415 - loads paramiko

        known = self._item.config.stash.setdefault(_BOOTS, dict[Path, tuple[Path, dict[str, Any]]]())
        folder = self._folder_made()
        if boot in known:
            kept, about = known[boot]
            if kept.is_relative_to(folder):  # in another phase of this test
                return
            if not kept.is_dir():
                raise FileNotFoundError(f"{kept} was removed, as all take up more than --kvm-artifacts-size")
            place = self._place_of(about["guest"], when=when)
            self._guests[place] = about | {"kept_in": os.path.relpath(kept, folder)}
        else:
            about = read_about(boot)
            place = self._place_of(about["guest"], when=when)
            kept = folder / place
            move(boot, kept)
            known[boot] = kept, about
            self._guests[place] = about
        self._lines.append(_line_of(kept, about, self._settings))

    def _place_of(self, guest: str, *, when: str) -> str:
        """Return a name in the test's folder that nothing has yet, for what is kept of a guest.

        Raises:
            OSError: The folder around it cannot be made.
        """
        folder, place, number = self._folder_made(), guest, 1
        while place in self._guests or (folder / place).exists():
            place = f"in-{when}/{guest}" if number == 1 else f"in-{when}/{guest}~{number}"
            number += 1
        (folder / place).parent.mkdir(mode=0o700, exist_ok=True)
        return place

    def finish(self, report: pytest.TestReport) -> None:
        """Keep the rest after a phase of the test, and say in its report where it is."""
        try:
            self._finish(report)
        except OSError as failure:
            self._problem = f"not all is kept: {failure}"
        if self._problem:
            report.sections.append(("artifacts", self._problem))
            self._problem = ""

    def _finish(self, report: pytest.TestReport) -> None:
        lines = [*self._keep_captures(report)]
        if lines:
            report.sections.append(("captures of segments", "\n".join(lines)))
        self._finish_guests()
        if self._lines:
            report.sections.append(("artifacts", "\n".join(self._lines)))
        elif not lines:
            return
        self._lines.clear()
        if report.failed:
            self._keep_failure(report)
        self._store.describe(self._folder_made(), self._about())
        self._tell(report)

    def _finish_guests(self) -> None:
        for place, evidence in self._fresh.items():
            self._guests[place] |= evidence.finish()
            self._lines.append(_line_of(evidence.folder.path, self._guests[place], self._settings))
        self._fresh.clear()

    def _keep_captures(self, report: pytest.TestReport) -> list[str]:
        run, when = existing_run(self._item.config), str(report.when)
        asked = self._settings.capture
        is_wanted = self.is_wanted(failed=report.failed, when=when) or (
            (asked != "never" and report.failed) or (asked == "always" and when == "call")
        )
        # When the teardown is over, the test's own captures are gone.
        is_late = when == "teardown" or bool(self._captures)
        captures = [] if run is None or not is_wanted or is_late else run.captures.at_work()
        if not captures:
            return []
        try:
            folder = self._folder_made()
        except OSError as failure:
            return [f"{name}.pcapng is not kept: {failure}" for name, _ in captures]
        self._captures = list(copy_captures(captures, folder))
        return self._captures

    def _keep_failure(self, report: pytest.TestReport) -> None:
        folder = ArtifactFolder(self._folder_made())
        name = f"failure-in-{report.when}.txt" if self._failures else "failure.txt"
        sections = [f"{f' {title} ':-^80}\n{text}" for title, text in report.sections]
        folder.write(name, "\n".join([report.longreprtext, *sections]) + "\n")
        crash = getattr(report.longrepr, "reprcrash", None)
        brief = str(getattr(crash, "message", report.longreprtext)).partition("\n")[0]
        self._failures.append({"phase": str(report.when), "error": brief[:1000], "file": name})

    def _about(self) -> dict[str, Any]:
        return {
            "test": self._item.nodeid,
            "began": self._began_at.isoformat(timespec="milliseconds"),
            "kept": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "pytest_kvm": version("pytest-kvm"),
            "failures": self._failures,
            "guests": self._guests,
            "captures": self._captures,
        }

    def _tell(self, report: pytest.TestReport) -> None:
        """Tell programs where the folder is; all of it passes through xdist."""
        folder = self._folder_made()
        named = (PROPERTY, str(folder))
        # pytest has copied those of the test into this report; those of its teardown are in JUnit's file.
        for properties in (self._item.user_properties, report.user_properties):
            if named not in properties:
                properties.append(named)
        config = self._item.config
        if config.getoption("xmlpath", default=None) and config.getini("junit_logging") in _LOGGED_TO_STDOUT:
            files = {path for path in folder.rglob("*") if path.is_file() and _is_attached(path, folder)}
            text = "".join(f"[[ATTACHMENT|{path}]]\n" for path in sorted(files - self._attached))
            self._attached |= files
            if report.when == "teardown":
                report.sections.append(("Captured stdout teardown", text))
            else:
                self._item.add_report_section(str(report.when), "stdout", text)

    @property
    def _store(self) -> ArtifactStore:
        from pytest_kvm.host.artifact_store import ArtifactStore  # noqa: PLC0415 - of failed tests only

        config = self._item.config
        if _STORE not in config.stash:
            of_worker: dict[str, str] = getattr(config, "workerinput", {})
            config.stash[_STORE] = ArtifactStore(
                self._settings.artifacts,
                limit=self._settings.artifacts_size,
                run=of_worker.get("testrunuid") or os.urandom(16).hex(),
            )
        return config.stash[_STORE]

    def _folder_made(self) -> Path:
        """Return the test's folder; it is made when it is first needed.

        Raises:
            OSError: It cannot be made.
        """
        if self._folder is None:
            self._folder = self._store.new_folder(place_of(self._item.nodeid))
        return self._folder


def _is_attached(path: Path, folder: Path) -> bool:
    """Say whether JUnit's file names a file of a test's folder: not what is large and was asked for."""
    return path.name != MARKER and not {*DUMPS}.intersection(path.relative_to(folder).parts[:-1])


def _line_of(folder: Path, about: Mapping[str, Any], settings: Settings) -> str:
    """Return what a report tells of a guest's folder."""
    missing = f" (not all: {about['missing'][0]})" if about["missing"] else ""
    line = f"{folder}: {', '.join(about['files']) or 'nothing'}{missing}"
    return f"{line}\n{_resume_command(folder, settings)}" if f"{FROZEN}/" in about["files"] else line


def _resume_command(folder: Path, settings: Settings) -> str:
    """Return the command by which a guest goes on that was kept whole."""
    try:
        usual = settings_from([from_environment])
    except SpecError:  # there is no home
        usual = None
    flags = [
        f"{option.flag}={value}"
        for option in OPTIONS
        if option.name in ("uri", "cache_dir", "run_dir")
        and (value := getattr(settings, option.name)) != getattr(usual, option.name, None)
    ]
    return shlex.join(["pytest-kvm", *flags, "resume", str(folder)])
