"""What a guest can tell is kept after a failure."""

from __future__ import annotations

import time

from pytest_kvm.host.artifact_folder import ArtifactFolder
from pytest_kvm.machine.evidence import Evidence


def test_what_a_guest_can_tell_is_kept(guest, tmp_path):
    # The journal is kept from a moment before, as long as the guest takes to answer.
    guest.run("logger before-the-test; echo earlier >/dev/console; sleep 2")
    begun, console_since = time.monotonic(), guest.console.offset()
    guest.run(
        "logger in-the-test; echo meanwhile >/dev/console; systemd-run --wait --unit=dies false", check=False
    )
    folder = ArtifactFolder(tmp_path / "web")
    evidence = Evidence(guest.machine, folder, since=begun, console_since=console_since)
    evidence.keep(None)
    assert evidence.finish()["missing"] == []
    journal = (folder.path / "journal.txt").read_text()
    assert "in-the-test" in journal
    assert "before-the-test" not in journal
    assert "meanwhile" in (folder.path / "console.log").read_text()
    assert "earlier" in (folder.path / "console-before.log").read_text()
    assert "dies.service" in (folder.path / "failed-units.txt").read_text()
    assert (folder.path / "screenshot.png").read_bytes().startswith(b"\x89PNG")
