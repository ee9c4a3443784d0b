"""A web server that answers with the address of who asks; its argument is the port."""

from __future__ import annotations

import ipaddress
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Listens for IPv6 and IPv4."""

    address_family = socket.AF_INET6


class WhoAsks(BaseHTTPRequestHandler):
    """Names an IPv4 address as such, and not as the IPv6 address that it is mapped to."""

    def do_GET(self) -> None:
        address = ipaddress.IPv6Address(self.client_address[0])
        body = str(address.ipv4_mapped or address).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


Server(("::", int(sys.argv[1])), WhoAsks).serve_forever()
