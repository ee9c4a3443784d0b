"""A guest that is kept whole goes on in another run."""

from __future__ import annotations

from pytest_kvm.host.artifact_folder import ArtifactFolder
from pytest_kvm.machine.dumps import keep_dumps
from pytest_kvm.plugin.session import settings_stashed
from scripts.folders import own_folder
from tests.resumed_guest import resumed_guest
from tests.suite_process import check_gone


def test_a_guest_goes_on_as_it_was(guest, tmp_path, pytestconfig):
    guest.run("echo in-memory >/dev/shm/left; echo on-disk >/root/left")
    folder = ArtifactFolder(tmp_path / "web")
    keep_dumps(guest.machine, folder, what={"memory", "disk", "guest"})
    assert (folder.files, folder.missing) == (["memory/", "disks/", "frozen/"], [])
    guest.run("rm /root/left")
    settings = settings_stashed(pytestconfig)
    with own_folder("kvm-") as run_dir:
        with resumed_guest(folder.path, run_dir=run_dir, settings=settings) as resumed:
            assert resumed.run("cat /dev/shm/left /root/left") == "in-memory\non-disk\n"
            assert resumed.interrupt() == "removing it\n"
        check_gone(run_dir)
