"""The captures of a run's segments: begun on behalf of the owner at work, stopped when it has ended."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_kvm.errors import KvmError, SpecError, SwitchFailed
from pytest_kvm.handles.capture import Capture

if TYPE_CHECKING:
    from pytest_kvm.handles.segment import GuestNic, Segment
    from pytest_kvm.handles.segment_backend import CaptureWriter
    from pytest_kvm.provision.reset_coordinator import ResetCoordinator
    from pytest_kvm.provision.run_resources import Lazy, RunResources
    from pytest_kvm.provision.undo_log import Owner

_log = logging.getLogger("pytest_kvm.provision")
_RECORD_LIMIT = 1 << 28
"""Bytes of a capture that no test asked for."""


class SegmentCaptures:
    """Implements :class:`pytest_kvm.handles.capture.CaptureControl` for all segments of a run.

    Args:
        resources: The run's folder, for the files.
        coordinator: Knows the owner at work.
        records: Whether all segments are captured during each test.
    """

    def __init__(
        self, resources: Lazy[RunResources], coordinator: ResetCoordinator, *, records: bool
    ) -> None:
        self._resources = resources
        self._coordinator = coordinator
        self._records = records
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._begun: dict[Capture, _Begun] = {}
        """All captures whose files are not removed."""

    def begin(self, segment: Segment, nics: Sequence[GuestNic], *, limit: int) -> Capture:
        """Begin a capture for the owner at work."""
        owner, links = self._coordinator.owner, [nic.link for nic in nics]
        return self._begin(segment, links, limit=limit, owner=owner, is_asked_for=True)

    def record(self, segments: Iterable[Segment]) -> None:
        """Begin a capture of each segment for the test at work, if the run captures all segments."""
        test = self._coordinator.outermost
        if test is None or test.ended or not self._records:
            return
        for segment in segments:
            try:
                self._begin(segment, [], limit=_RECORD_LIMIT, owner=test, is_asked_for=False)
            except (KvmError, OSError) as failure:
                _log.warning("%s is not captured: %s", segment.name, failure)

    def at_work(self) -> list[tuple[str, Capture]]:
        """Return the captures of the owner at work, also those that are stopped, each with a file name.

        Several can have the same name. Those that the run records come first.
        """
        owner = self._coordinator.owner
        with self._lock:
            return [(begun.name, capture) for capture, begun in self._begun.items() if begun.owner is owner]

    def _begin(
        self, segment: Segment, links: Sequence[str], *, limit: int, owner: Owner | None, is_asked_for: bool
    ) -> Capture:
        if segment.is_removed:
            raise SpecError(f"the segment {segment.name} was removed")
        if owner is not None and owner.ended:
            raise SpecError(f"{segment.name}: {owner.name} has ended, and can begin no capture any more")
        number, resources = next(self._numbers), self._resources.get()
        path = resources.folder / f"capture{number}.pcapng"
        what = f"{segment.name}, {' and '.join(links)}" if links else segment.name
        source = segment.backend.capture(path, links=links, comment=what, limit=limit)
        capture = Capture(what, path, source=source, patience=resources.timeouts.packet)
        name = "-".join([segment.name, *links])
        with self._lock:
            self._begun[capture] = _Begun(name=name, owner=owner, is_asked_for=is_asked_for, source=source)
        if owner is not None:
            owner.on_end.callback(self._end, capture)
        return capture

    def _end(self, capture: Capture) -> None:
        """Stop a capture whose owner has ended, and remove its file."""
        with self._lock:
            begun = self._begun.pop(capture)
        try:
            capture.stop()
        except SwitchFailed as failure:
            if begun.is_asked_for and not begun.source.has_broken():
                raise
            _log.warning("%s", failure)
        finally:
            capture.path.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """A capture's name, and who began it."""

    name: str
    owner: Owner | None
    is_asked_for: bool
    """Whether a test or fixture began it, and not the run."""
    source: CaptureWriter
