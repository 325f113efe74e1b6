"""Takes the word for what only a proxy can know from peers in `forwarded_allow_ips` alone."""

from functools import lru_cache
from ipaddress import ip_address, ip_network

from gunicorn.http.message import Request

# By how their names begin; a header's name is in upper case here.
HEADERS = ("X-REAL-IP", "X-FORWARDED-", "X-REQUEST-ID", "X-REQUEST-START")


def drop_untrusted(request: Request, allowed: tuple[str, ...]) -> None:
    """Take the proxy's headers off a request whose peer is not in `allowed`.

    Args:
        request: as gunicorn's pre_request hook gets it, before the application's environ is made.
        allowed: addresses and networks, or "*" for anyone.
    """
    peer = request.peer_addr
    if isinstance(peer, tuple) and not _trusted(peer[0], allowed):
        request.headers = [
            (name, value) for name, value in request.headers if not name.startswith(HEADERS)
        ]


@lru_cache(maxsize=1024)
def _trusted(address: str, allowed: tuple[str, ...]) -> bool:
    return "*" in allowed or any(ip_address(address) in ip_network(entry) for entry in allowed)
