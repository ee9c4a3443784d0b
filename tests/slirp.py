"""The host's side of a forwarded port, played by a socket of the test's own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import contextmanager


class Slirp:
    """Accepts like libslirp does, then treats each connection as the guest would."""

    def __init__(self, *, treat: Callable[[int, socket.socket], None]) -> None:
        self._treat = treat
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.accepted: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self._server.accept()
            except OSError:
                return
            self.accepted.append(line)
            self._treat(len(self.accepted), line)

    @contextmanager
    def serving(self):
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown(socket.SHUT_RDWR)
            self._server.close()
            self._thread.join()
            for line in self.accepted:
                line.close()
