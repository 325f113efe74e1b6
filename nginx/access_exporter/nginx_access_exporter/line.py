"""Reads a line of nginx's access metrics log.

Its fields, separated by tabs, are: marker, request method, route, status, cache status, request
time, upstream connect, header and response time, upstream status, bytes sent, request completion,
and the lengths of the upstream's body, announced and received. nginx writes `-` for a value that a
request does not have. Times are seconds with three decimals.

The marker is the name and version of the format. No other log has it, so a line without it belongs
to another log.
"""

import re
from collections.abc import Callable
from typing import Final, NamedTuple

METHODS: Final = frozenset(
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
)
CACHE_STATUSES: Final = frozenset(
    ("HIT", "MISS", "EXPIRED", "STALE", "UPDATING", "REVALIDATED", "BYPASS")
)
# With these the body came from the cache, even where the upstream was asked.
BODY_FROM_CACHE: Final = frozenset(("HIT", "STALE", "UPDATING", "REVALIDATED"))
# With these nginx writes the body to the cache.
BODY_TO_CACHE: Final = frozenset(("MISS", "EXPIRED"))

# Label values that nginx does not use itself.
NO_ROUTE: Final = "none"
OVERFLOW: Final = "overflow"
NO_CACHE_STATUS: Final = "NONE"
NO_UPSTREAM_STATUS: Final = "none"
OTHER_METHOD: Final = "OTHER"

MAX_ROUTE_LENGTH: Final = 100

_NAM2_FIELDS = 13
_ABSENT = "-"
_CLIENT_CLOSED_REQUEST = "499"
_NOT_MODIFIED = "304"


class MalformedLineError(ValueError):
    """A line that is not in the log's format."""


class Request(NamedTuple):
    """What a line says. Times are in milliseconds, None where the request had none."""

    route: str
    method: str
    status: str
    cache: str
    duration: int
    upstream_connect: int | None
    upstream_header: int | None
    upstream_response: int | None
    attempts: tuple[str, ...]
    bytes_sent: int
    incomplete: str | None
    """Who left the response incomplete: `client`, `upstream` or `nginx`."""


_STATUS = re.compile(r"\d{3}", re.ASCII)
_TIME = re.compile(r"(\d{1,9})\.(\d{3})", re.ASCII)
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)
_ESCAPED_BYTE = re.compile(rb"\\x([0-9A-F]{2})")
# nginx separates attempts by ", ", and the attempts before and after an internal redirect by " : ".
# If nginx needed no server after the redirect, nothing follows the " : ".
_LIST_SEPARATOR = re.compile(r", | : ")


def parse(line: bytes) -> Request:
    """Reads a line, given without its newline.

    Raises:
        MalformedLineError: it is not in the log's format.
    """
    marker, _, rest = line.partition(b"\t")
    try:
        if marker not in _PARSERS:
            raise ValueError(f"the line does not begin with {MARKERS}")
        return _PARSERS[marker]([_unescape(field) for field in rest.split(b"\t")])
    except ValueError as error:
        raise MalformedLineError(str(error)) from error


def _parse_nam2(fields: list[str]) -> Request:
    if len(fields) != _NAM2_FIELDS:
        raise ValueError(f"expected {_NAM2_FIELDS} fields after the marker, found {len(fields)}")
    method, route, status, cache, duration, connect, header, response, *rest = fields
    statuses, size, completion, announced, received = rest
    response_ms = _total_ms(response)
    # An attempt that ended because the client left has a time and no status.
    attempted = statuses != _ABSENT or response_ms is not None
    attempts = tuple(_upstream_status(it) for it in _items(statuses)) if attempted else ()
    request = Request(
        route=_route(route),
        method=method if method in METHODS else OTHER_METHOD,
        status=_status(status),
        cache=_cache(cache),
        duration=_ms(duration),
        upstream_connect=_total_ms(connect),
        upstream_header=_total_ms(header),
        upstream_response=response_ms,
        attempts=attempts,
        bytes_sent=_bytes(size),
        incomplete=None,
    )
    if _completed(completion):
        cut_off = _is_cut_off(request, announced, received)
        return request._replace(incomplete="upstream") if cut_off else request
    return request._replace(incomplete=_who_ended(request, announced, received))


# The parser of each marker. A new version of the format is added here; its exporter still reads the
# version before, which nginx may have written until the upgrade.
_PARSERS: Final[dict[bytes, Callable[[list[str]], Request]]] = {b"nam/2": _parse_nam2}
MARKERS: Final = " or ".join(marker.decode() for marker in _PARSERS)
LINE_STARTS: Final = tuple(marker + b"\t" for marker in _PARSERS)


def _completed(text: str) -> bool:
    if text not in ("OK", ""):
        raise ValueError(f"not a request completion: {text!r}")
    return text == "OK"


def _is_cut_off(request: Request, announced: str, received: str) -> bool:
    """Whether the upstream sent less than it announced, and the client therefore got less.

    To nginx, the early end of an upstream's body is a normal end. A chunked body has no announced
    length, so the log does not show that it was cut off.
    """
    has_body = request.method != "HEAD" and request.attempts[-1:] != (_NOT_MODIFIED,)
    if not has_body or request.cache in BODY_FROM_CACHE or not _LENGTH.fullmatch(announced):
        return False
    length = _last_length(received)
    return length is not None and length < int(announced)


def _last_length(received: str) -> int | None:
    """The length of the last attempt's body: only that attempt gave the client its answer."""
    lengths = [it for it in _items(received) if it != _ABSENT]
    return _bytes(lengths[-1]) if lengths else None


def _who_ended(request: Request, announced: str, received: str) -> str | None:
    """Who ended a request that nginx did not complete; None if the client got everything.

    nginx has failed if it sent nothing of an answer that it was to store in its cache. If it has
    got the whole answer, or if there was nothing to store, then the client has left.
    """
    if request.status == _CLIENT_CLOSED_REQUEST:
        return "client"
    if request.bytes_sent:
        return None if request.method == "HEAD" else "client"
    stores = request.method != "HEAD" and request.cache in BODY_TO_CACHE
    whole = _LENGTH.fullmatch(announced) and _last_length(received) == int(announced)
    return "nginx" if stores and not whole else "client"


def _unescape(field: bytes) -> str:
    if b"\\" in field:
        field = _ESCAPED_BYTE.sub(lambda match: bytes.fromhex(match[1].decode()), field)
    return field.decode(errors="replace")


def _route(text: str) -> str:
    if text == _ABSENT:
        return NO_ROUTE
    return text if len(text) <= MAX_ROUTE_LENGTH else OVERFLOW


def _status(text: str) -> str:
    if not _STATUS.fullmatch(text):
        raise ValueError(f"not a status: {text!r}")
    return text


def _upstream_status(text: str) -> str:
    return NO_UPSTREAM_STATUS if text == _ABSENT else _status(text)


def _cache(text: str) -> str:
    if text == _ABSENT:
        return NO_CACHE_STATUS
    if text not in CACHE_STATUSES:
        raise ValueError(f"not a cache status: {text!r}")
    return text


def _bytes(text: str) -> int:
    if not _LENGTH.fullmatch(text):
        raise ValueError(f"not a number of bytes: {text!r}")
    return int(text)


def _ms(text: str) -> int:
    match = _TIME.fullmatch(text)
    if not match:
        raise ValueError(f"not a time: {text!r}")
    return int(match[1] + match[2])


def _total_ms(times: str) -> int | None:
    known = [_ms(it) for it in _items(times) if it != _ABSENT]
    return sum(known) if known else None


def _items(text: str) -> list[str]:
    return [it for it in _LIST_SEPARATOR.split(text) if it]
