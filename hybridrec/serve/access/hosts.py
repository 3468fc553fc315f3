"""Which names a request may be addressed to: the wall against DNS rebinding.

A page of somebody else's can make a browser talk to this machine under a name that its owner
points here; what gives it away is that name, in the Host header.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from hybridrec.serve.config import LOOPBACK

if TYPE_CHECKING:
    from hybridrec.serve.config import ServeConfig


class Hosts:
    """Allows the names of loopback with any port, the address that is listened on, and ``hosts``.

    Where it listens on more than loopback any address in numbers goes, as probes and scrapers use
    them: rebinding needs a name.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._names = {name.lower().rstrip(".") for name in (*LOOPBACK, config.host, *config.hosts)}
        self._numbers = not config.loopback

    def allow(self, host: str) -> bool:
        """Whether a Host header is one of them."""
        name = _without_port(host)
        return name in self._names or (self._numbers and _is_address(name))


def _without_port(host: str) -> str:
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name = host.rpartition(":")[0] if ":" in host else host
    return name.rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
