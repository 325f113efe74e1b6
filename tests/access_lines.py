"""Lines of the access metrics log, as nginx writes them, without the newline."""

from __future__ import annotations

HIT = b"nam/2\tGET\t/cache-me\t200\tHIT\t0.000\t-\t-\t-\t-\t345\tOK\t12\t-"
UNCACHED = (
    b"nam/2\tPOST\t/users/<int:id>\t201\t-\t0.012\t0.001\t0.010\t0.011\t201\t512\tOK\t300\t300"
)


def line(**changed: str) -> bytes:
    """UNCACHED with other values in some fields."""
    names = (
        *("marker", "method", "route", "status", "cache", "duration"),
        *("connect", "header", "response", "upstream_status", "bytes"),
        *("completion", "announced", "received"),
    )
    values = dict(zip(names, UNCACHED.decode().split("\t"), strict=True)) | changed
    return "\t".join(values.values()).encode()
