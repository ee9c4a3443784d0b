"""The control card's fixed facts, shared by whoever renders it and whoever uses it.

The addresses are QEMU's defaults for user-mode networks
(https://www.qemu.org/docs/master/system/devices/net.html).
"""

from __future__ import annotations

CONTROL_NETDEV = "kvmctl"
"""QEMU's id of the control card's network back end."""
CONTROL_ADDRESS = "10.0.2.15"
CONTROL_GATEWAY = "10.0.2.2"
CONTROL_DNS = "10.0.2.3"
