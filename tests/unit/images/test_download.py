from __future__ import annotations

import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pytest_kvm.errors import DownloadFailed, NoCapacity
from pytest_kvm.images import importing, qemu_img

_CONTENTS = bytes(range(256)) * 4096


class _Server(ThreadingHTTPServer):
    """Serves one file; breaks transfers off, refuses or ignores ranges as told."""

    breaks = 0
    ranges = True
    refuse = 0
    asked: list[str | None]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.server.refuse:
            self.send_error(self.server.refuse)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        body = _CONTENTS[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.breaks:
            self.server.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def server():
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def address(server, monkeypatch):
    monkeypatch.setattr(importing, "_AGAIN_AFTER", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return f"http://127.0.0.1:{server.server_address[1]}/disk.raw"


def test_a_file_is_fetched_with_progress(address, tmp_path):
    told: list[float | None] = []
    importing.fetch(address, tmp_path / "file", progress=lambda _phase, done: told.append(done))
    assert (tmp_path / "file").read_bytes() == _CONTENTS
    assert told[-1] == 1.0


def test_a_broken_transfer_goes_on_where_it_was(server, address, tmp_path):
    server.breaks = 2
    importing.fetch(address, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == _CONTENTS
    half = len(_CONTENTS) // 2
    assert server.asked == [None, f"bytes={half}-", f"bytes={half + half // 2}-"]


def test_a_server_without_ranges_is_asked_from_the_start(server, address, tmp_path):
    server.breaks = 1
    server.ranges = False
    importing.fetch(address, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == _CONTENTS


def test_a_full_disk_is_no_broken_transfer(server, address):
    with pytest.raises(OSError, match="No space left"):
        importing.fetch(address, Path("/dev/full"))
    assert len(server.asked) == 1


def test_a_full_disk_is_told(store, address, monkeypatch):
    monkeypatch.setattr(importing, "fetch", partial(_fetch_to_full_disk, importing.fetch))
    with pytest.raises(NoCapacity, match="no room on the disk to make image mine: No space left on device"):
        importing.take(store, address, name="mine")
    assert list((store.folder / "work").iterdir()) == []


def _fetch_to_full_disk(fetch, address, _target, *, progress):
    fetch(address, Path("/dev/full"), progress=progress)


def test_a_refusal_is_not_repeated(server, address, tmp_path):
    server.refuse = 404
    with pytest.raises(DownloadFailed, match="404") as failure:
        importing.fetch(address, tmp_path / "file")
    assert len(server.asked) == 1
    assert failure.value.resolution


def test_giving_up_says_what_was_seen_last(server, address, tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "_PERSEVERANCE", 0.1)
    server.refuse = 503
    with pytest.raises(DownloadFailed, match=r"last seen: 503"):
        importing.fetch(address, tmp_path / "file")


@pytest.mark.parametrize("address", ["ftp://host/file", "file:///etc/passwd", "data:,x"])
def test_other_schemes_are_refused(address, tmp_path):
    with pytest.raises(DownloadFailed, match="no http"):
        importing.fetch(address, tmp_path / "file")


def test_an_image_is_imported_from_an_address(store, address):
    image = importing.take(store, address, name="mine")
    assert image.manifest.source == address
    assert qemu_img.info(image.disk).virtual_size == len(_CONTENTS)
    assert list((store.folder / "work").iterdir()) == []
