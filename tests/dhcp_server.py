"""A program for a guest: a DHCP server of one lease, for one card (RFC 2131)."""

from __future__ import annotations

DHCP_SERVER = """
import socket, sys
server, leased = map(socket.inet_aton, sys.argv[2:4])
owner = bytes.fromhex(sys.argv[4].replace(":", "")) if sys.argv[4:] else None
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
    door.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, sys.argv[1].encode())
    door.bind(("", 67))
    print("listening", flush=True)
    while True:
        asked = door.recv(1500)
        owner = owner or asked[28:34]
        if asked[28:34] != owner:
            continue  # another guest asks, too, or NetworkManager on each card that it finds at a boot
        kind = {1: 2, 3: 5}.get(asked[asked.index(b"\\x35\\x01", 240) + 2])  # to offer, to acknowledge
        if kind is None:
            continue  # a client that gives its address back wants no answer
        told = {53: bytes([kind]), 54: server, 51: bytes([0, 0, 14, 16]), 1: bytes([255, 255, 255, 0])}
        told |= {3: server, 6: server}  # a router and a name server, which nobody is to use
        options = b"".join(bytes([code, len(value)]) + value for code, value in told.items())
        head = b"\\2" + asked[1:16] + leased + server + bytes(4) + asked[28:240]
        door.sendto(head + options + b"\\xff", ("255.255.255.255", 68))
"""
"""Its arguments: the card that it serves, its address there, the address that it leases, and the
MAC address of the card that gets it; without that, the first one that asks."""
