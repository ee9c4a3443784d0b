"""Sends back what it gets; its argument is the address to listen at."""

from __future__ import annotations

import sys
from socketserver import StreamRequestHandler, TCPServer


class Echo(StreamRequestHandler):
    """Answers line by line."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


TCPServer((sys.argv[1], 7), Echo).serve_forever()
