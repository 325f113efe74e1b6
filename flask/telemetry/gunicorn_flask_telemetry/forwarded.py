"""Drops proxy headers from peers outside `forwarded_allow_ips`."""

from functools import lru_cache
from ipaddress import ip_address, ip_network

from gunicorn.http.message import Request

# The beginnings of their names; gunicorn has put header names into upper case.
HEADERS = ("X-REAL-IP", "X-FORWARDED-", "X-REQUEST-ID", "X-REQUEST-START")


def drop_untrusted(request: Request, allowed: tuple[str, ...]) -> None:
    """Remove the proxy's headers from a request whose peer is not in `allowed`.

    Args:
        request: as in gunicorn's pre_request hook, before the application's environ is made.
        allowed: addresses and networks, or "*" for every peer.
    """
    peer = request.peer_addr
    if isinstance(peer, tuple) and not _trusted(peer[0], allowed):
        request.headers = [
            (name, value) for name, value in request.headers if not name.startswith(HEADERS)
        ]


@lru_cache(maxsize=1024)
def _trusted(address: str, allowed: tuple[str, ...]) -> bool:
    return "*" in allowed or any(ip_address(address) in ip_network(entry) for entry in allowed)
