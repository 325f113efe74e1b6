"""What hostile clients send, and how they end their connections. A seed makes the same again."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import itertools
import random
import re
import socket
import struct
from collections.abc import Callable, Iterator

Chance = random.Random
Headers = list[tuple[bytes, bytes]]

KEPT: Headers = [(b"Host", b"localhost")]
LAST: Headers = [*KEPT, (b"Connection", b"close")]

# The sample's routes and nginx's own, without the health checks: nginx does not log these.
TARGETS = (b"/", b"/info", b"/cache-me", b"/cache-me?", b"/static/none.css", b"/none", b"/metrics")
# Bytes that a parser may take for something else.
ODD = (
    *(b"\0", b"\t", b"\n", b"\r", b"\r\n", b"\r\n\r\n", b" ", b"  ", b'"', b"\\", b"\x1b[31m"),
    *(b"\x7f", b"\x80", b"\xc3\x28", b"\xe2\x80\xae", b"\xff\xfe", b"%", b"%00", b"%0d%0a", b"%zz"),
    *(b"../", b"..;/", b"/..%2f", b"//", b"#", b"?", b"&", b";", b",", b":", b"@", b"{{7*7}}"),
    *(b"${jndi:x}", b"' or 1=1", b"<script>", b"HTTP/1.1", b"GET / HTTP/1.1\r\n\r\n"),
)
NUMBERS = (
    *(b"0", b"1", b"5", b"-1", b"+5", b"05", b"0x5", b"5 5", b"5, 5", b"5, 6", b"5;", b"", b" "),
    *(b"1e3", b"99999999", b"2147483648", b"4294967296", b"9223372036854775808", b"9" * 400),
)
CODINGS = (
    *(b"chunked", b"Chunked", b" chunked", b"\tchunked", b"chunked ", b"xchunked", b"chunked;a=b"),
    *(b"chunked, chunked", b"identity", b"gzip", b"gzip, chunked", b"chunked, identity", b""),
    *(b'"chunked"', b"\x0bchunked", b"chunked\0", b"deflate"),
)
HOSTS = (
    *(b"", b" ", b"a b", b"..", b".", b"[::1", b"[::1]", b"a:99999999", b"a:b", b"a@b", b"a/b"),
    *(b"a\\b", b"a%00", b"\xff", b"a" * 300, b"127.0.0.1:80", b"none.example", b"localhost:"),
)
RANGES = (
    *(b"bytes=0-", b"bytes=-1", b"bytes=-", b"bytes=5-2", b"bytes=0-0,1-1,2-2", b"items=0-5"),
    *(b"bytes=" + b"0-," * 900, b"bytes=9223372036854775808-", b"bytes=a-b", b"bytes"),
)
DATES = (
    *(b"Thu, 01 Jan 1970 00:00:00 GMT", b"Mon, 01 Jan 99999 00:00:00 GMT", b"yesterday", b"0"),
    *(b"Thu, 32 Foo 2020 99:99:99 GMT", b"Fri, 27 Nov 2026 00:00:00 +9999", b""),
)
TAGS = (b"*", b'"', b'W/"', b'"a", "b"', b"a" * 2000, b'"\xff"', b"W/", b", ,")
METHODS = (
    *(b"get", b"GETS", b"G-T", b"G_T", b"G T", b"TRACE", b"CONNECT", b"PROPFIND", b"PRI", b"_"),
    *(b"OPTIONS", b"PUT", b"DELETE", b"PATCH", b"", b"A" * 3000, b"\xff", b"G\0T", b"1", b"!#$%&"),
)
VERSIONS = (
    *(b"HTTP/1.0", b"HTTP/0.9", b"HTTP/1.9", b"HTTP/2.0", b"HTTP/3", b"HTTP/1.", b"HTTP/.1"),
    *(b"HTTP/11.1", b"http/1.1", b"HTTP/1.1 x", b"HTTP /1.1", b"ICY/1.1", b"HTTP/1.10", b"HTTP"),
)
NOT_HTTP = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\n\r\n\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.9\r\n",
    b"EHLO example.com\r\n",
    b"*1\r\n$4\r\nPING\r\n",  # Redis
    bytes(500),
)
# Headers that mean something to nginx, gunicorn, Flask or this project.
MEANINGFUL = (
    *(b"X-Route", b"X-Request-Start", b"X-Request-ID", b"X-Cache-Status", b"X-Accel-Redirect"),
    *(b"X-Accel-Expires", b"X-Real-IP", b"X-Forwarded-For", b"X-Forwarded-Proto", b"Forwarded"),
    *(b"X-HTTP-Method-Override", b"X-Original-URL", b"X-Rewrite-URL", b"X-Forwarded-Host"),
    *(b"Accept-Encoding", b"Accept", b"Cookie", b"Authorization", b"Content-Type", b"User-Agent"),
    *(b"Upgrade", b"Connection", b"Expect", b"TE", b"Trailer", b"Keep-Alive", b"Via", b"Referer"),
)
VALUES = (
    *(b"", b"1", b"-1", b"true", b"100-continue", b"200-ok", b"h2c", b"websocket", b"trailers"),
    *(b"close, X-Request-ID", b"keep-alive, Transfer-Encoding", b"Basic !!", b"Bearer \xff"),
    *(b"a=b; a=c; =", b"text/html;q=nan, */*;q=-1", b"gzip;q=9, *", b"application/json; charset=x"),
    *(b"POST", b"/metrics", b"203.0.113.7", b'for="[::1"', b"9" * 100, b"1e309", b"nan"),
)


class Ending(enum.Enum):
    """How a client ends its connection."""

    READ = "reads until nginx closes"
    HALF_CLOSE = "closes its sending side, and reads"
    LEAVE = "closes"
    RESET = "resets"


@dataclasses.dataclass(frozen=True)
class Attack:
    """What a client sends on one connection, and how it ends it."""

    kind: str
    pieces: tuple[bytes, ...]
    ending: Ending


def attacks(seed: int, number: int) -> Iterator[Attack]:
    """Make this many; the same ones for the same seed."""
    chance = Chance(seed)
    for _ in range(number):
        make = chance.choice(KINDS)
        data = make(chance)
        if chance.random() < 0.25:
            data = _mutated(chance, data)
        ending = Ending.READ
        if chance.random() < 0.15:
            data = data[: chance.randint(0, len(data))]  # a half request
            # Few wait for nginx to end them, since that takes seconds.
            ending = chance.choices(list(Ending), weights=(2, 20, 20, 20))[0]
        elif chance.random() < 0.1:
            ending = chance.choice(list(Ending))
        yield Attack(make.__name__, _split(chance, data), ending)


# --- kinds of requests ---------------------------------------------------------------------------


def plain(chance: Chance) -> bytes:
    return _request(chance)


def methods(chance: Chance) -> bytes:
    return _request(chance, _line(chance, method=chance.choice(METHODS)))


def targets(chance: Chance) -> bytes:
    target = chance.choice(TARGETS)
    odd = b"".join(chance.choices(ODD, k=chance.randint(1, 4)))
    forms = (
        target + odd,
        odd + target,
        b"http://none.example" + target,
        b"http://" + odd + target,
        b"https://localhost:443" + target,
        b"ftp://localhost" + target,
        b"*",
        b"localhost:80",
        b"/" + b"../" * 20 + b"etc/passwd",
        b"/static/" + b"..%2f" * 5 + b"etc/passwd",
        b"/static/%2e%2e/%2e%2e/app.py",
        b"/static//..\\..\\app.py",
        b"/%" + b"%2525" * 50,
        target + b"?" + odd * 30,
        b"/" + b"a" * chance.choice((3000, 4090, 5000, 8150, 8200, 20000)),
        b"/" + b"a/" * 1000,
        b"",
    )
    return _request(chance, _line(chance, target=chance.choice(forms)))


def versions(chance: Chance) -> bytes:
    return _request(chance, _line(chance, version=chance.choice(VERSIONS)))


def old(chance: Chance) -> bytes:
    """HTTP/0.9: a request line without a version."""
    return chance.choice((b"GET ", b"POST ", b"GET\t")) + chance.choice(TARGETS) + b"\r\n"


def hosts(chance: Chance) -> bytes:
    hosts = [(b"Host", host) for host in chance.choices(HOSTS, k=chance.choice((0, 1, 1, 1, 2)))]
    return _request(chance, headers=[*hosts, (b"Connection", b"close")])


def headers(chance: Chance) -> bytes:
    names = chance.choices(MEANINGFUL, k=chance.randint(1, 4))
    return _request(chance, more=[(name, chance.choice(VALUES + ODD)) for name in names])


def odd_names(chance: Chance) -> bytes:
    odd, name = chance.choice(ODD), chance.choice(MEANINGFUL)
    names = (odd, name + odd, odd + name, name.replace(b"-", b"_"), name + b" ", b" " + name, b"")
    return _request(chance, more=[(chance.choice(names), b"1")])


def long_headers(chance: Chance) -> bytes:
    size = chance.choice((1000, 4000, 8000, 8190, 9000, 40000))
    return _request(chance, more=[(chance.choice(MEANINGFUL), b"a" * size)])


def many_headers(chance: Chance) -> bytes:
    number = chance.choice((50, 99, 150, 500, 3000))
    same = chance.random() < 0.5
    return _request(chance, more=[(b"A" if same else b"A%d" % i, b"1") for i in range(number)])


def conditions(chance: Chance) -> bytes:
    more = [
        (chance.choice((b"Range", b"If-Range")), chance.choice(RANGES)),
        (chance.choice((b"If-Modified-Since", b"If-Unmodified-Since")), chance.choice(DATES)),
        (chance.choice((b"If-None-Match", b"If-Match")), chance.choice(TAGS)),
    ]
    return _request(chance, more=chance.sample(more, chance.randint(1, 3)))


def lengths(chance: Chance) -> bytes:
    """Content-Length, Transfer-Encoding, or both, in the ways that proxies have disagreed on."""
    more = [(b"Content-Length", it) for it in chance.choices(NUMBERS, k=chance.randint(0, 2))]
    more += [(b"Transfer-Encoding", it) for it in chance.choices(CODINGS, k=chance.randint(0, 2))]
    chance.shuffle(more)
    body = chance.choice((b"", b"hello", b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n"))
    return _request(chance, _line(chance, method=b"POST"), more=more, body=body + _smuggled(chance))


def chunks(chance: Chance) -> bytes:
    bodies = (
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\n0\n\n",
        b"5;" + b"a" * 5000 + b"\r\nhello\r\n0\r\n\r\n",
        b"0005\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"ffffffffffffffff\r\nhello",
        b"10000000000000005\r\nhello\r\n0\r\n\r\n",
        b"fffffff\r\nhello",
        b"5\r\nhel",
        b"5\r\nhelloo\r\n0\r\n\r\n",
        b"\r\n0\r\n\r\n",
        b"zz\r\n\r\n",
        b"0\r\nX-Route: /a\r\nHost: b\r\n\r\n",
        b"0\r\n" + b"A: b\r\n" * 2000 + b"\r\n",
        b"1\r\na\r\n" * 2000 + b"0\r\n\r\n",
    )
    coding = (b"Transfer-Encoding", b"chunked")
    return _request(
        chance, _line(chance, method=b"POST"), more=[coding], body=chance.choice(bodies)
    )


def bodies(chance: Chance) -> bytes:
    """A body that is shorter or longer than announced, or too large."""
    announced = chance.choice((0, 1, 100, 70_000, 1_048_576, 1_048_577, 10**12))
    sent = min(announced, 70_000) + chance.choice((-1, 0, 0, 0, 20))
    more = [(b"Content-Length", b"%d" % announced)]
    return _request(chance, _line(chance, method=b"POST"), more=more, body=b"x" * max(sent, 0))


def pipelined(chance: Chance) -> bytes:
    kept = b"".join(_request(chance, headers=KEPT) for _ in range(chance.randint(1, 20)))
    return kept + chance.choice(KINDS[:-2])(chance)


def not_http(chance: Chance) -> bytes:
    return chance.choice((*NOT_HTTP, chance.randbytes(chance.randint(1, 3000))))


KINDS: tuple[Callable[[Chance], bytes], ...] = (
    *(plain, methods, targets, versions, old, hosts, headers, odd_names, long_headers),
    *(many_headers, conditions, lengths, chunks, bodies, pipelined, not_http),
)


def _line(
    chance: Chance,
    *,
    method: bytes = b"",
    target: bytes | None = None,
    version: bytes = b"HTTP/1.1",
) -> bytes:
    """A request line that is valid where nothing else is given."""
    method = method or chance.choice((b"GET", b"GET", b"HEAD", b"POST"))
    target = chance.choice(TARGETS) if target is None else target
    return b"%s %s %s" % (method, target, version)


def _request(
    chance: Chance,
    line: bytes = b"",
    headers: Headers = LAST,
    more: Headers | None = None,
    body: bytes = b"",
) -> bytes:
    """A request that is valid where nothing else is given."""
    fields = b"".join(b"%s: %s\r\n" % field for field in headers + (more or []))
    return b"%s\r\n%s\r\n%s" % (line or _line(chance), fields, body)


def _smuggled(chance: Chance) -> bytes:
    """A second request behind a body, which the first server may take for a part of it."""
    return chance.choice((b"", b"GET /none HTTP/1.1\r\nHost: a\r\nX: ", b"GET / HTTP/1.1\r\n\r\n"))


def _mutated(chance: Chance, data: bytes) -> bytes:
    """Some bytes replaced, removed, doubled or inserted."""
    for _ in range(chance.randint(1, 5)):
        start = chance.randint(0, len(data))
        end = min(len(data), start + chance.choice((1, 1, 2, 10)))
        new = (b"", data[start:end] * 2, chance.choice(ODD), chance.randbytes(end - start))
        data = data[:start] + chance.choice(new) + data[end:]
    return data


def _split(chance: Chance, data: bytes) -> tuple[bytes, ...]:
    """Mostly whole, sometimes in up to four packets."""
    cuts = sorted(chance.randint(0, len(data)) for _ in range(chance.choice((0, 0, 0, 1, 3))))
    edges = [0, *cuts, len(data)]
    return tuple(data[a:b] for a, b in itertools.pairwise(edges))


# --- sending -------------------------------------------------------------------------------------

PATIENCE = 6.0  # seconds without an answer; nginx ends a half request after 5
STATUS_LINE = re.compile(rb"^HTTP/1\.[01] (\d{3}) ", re.M)


def send(address: tuple[str, int], attack: Attack) -> bytes:
    """Attack, and return what nginx answered; empty if the client did not wait for it."""
    answer = b""
    with (
        socket.create_connection(address, timeout=PATIENCE) as connection,
        contextlib.suppress(OSError),  # nginx may refuse the request before it has read all of it
    ):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in attack.pieces:
            connection.sendall(piece)
        match attack.ending:
            case Ending.LEAVE:
                return b""
            case Ending.RESET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return b""
            case Ending.HALF_CLOSE:
                connection.shutdown(socket.SHUT_WR)
        while received := connection.recv(1 << 16):
            answer += received
    return answer
