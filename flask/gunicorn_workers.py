"""gunicorn's gthread worker without four of its faults, and gunicorn itself without two.

- The stock worker accepts up to `worker_connections` connections, idle ones included, however busy
  its threads are. If that number is high, requests queue unseen behind its busy threads while other
  workers are free and the listen backlog is empty. If it is low, idle connections that nginx keeps
  open use it up, and a worker with free threads accepts no more requests. This worker does not
  count idle connections. So nginx can keep its connections open, and further requests wait in the
  backlog for the first worker that is free.
- It keeps a connection open while others wait. If nginx sends the next request on it at once, the
  worker never accepts those that wait.
- It promises to keep a connection open, and then closes it if the application left more than 64 KiB
  of the request's body unread. By then nginx has sent another request on it, which fails.
- Its main thread waits up to two seconds for a client to close a connection that the worker closes.
  Meanwhile it accepts no requests.
- When gunicorn stops, its workers accept no more connections, but until it has ended the kernel
  still takes them, and then resets them. nginx does not send a POST again if it was lost in this
  way. See `drain_before_stop`.
- gunicorn sends an answer's headers, and then its body. nginx passes the headers on at once. If the
  worker dies in between, the client gets half an answer, and nginx can ask no other worker.

This module also works around a fault of nginx. When a 304 renews a cached answer that has no body,
nginx ignores `Connection` in the 304, and obeys the one in the cached answer. So if only the 304
says close, nginx sends its next request on a connection that gunicorn closes, and a POST fails.
Here, each answer that nginx may renew in this way says close.
"""

import contextlib
import ctypes
import errno
import select
import socket
import struct
import sys
import time
from collections import deque
from functools import cache, partial
from selectors import EVENT_READ

from gunicorn.arbiter import Arbiter
from gunicorn.http import wsgi
from gunicorn.http.message import Request
from gunicorn.workers.gthread import DEFAULT_WORKER_DATA_TIMEOUT, TConn, ThreadWorker

LINGER_SECONDS = 2  # as long as gunicorn waits
RECEIVE_BYTES = 65536
VALIDATORS = ("etag", "last-modified")  # with one of these nginx can renew an answer by a 304
# While others wait, a connection closes with its first response after this time. Shorter would make
# a fast application spend more on new connections, longer would make the others wait longer.
TURN_SECONDS = 0.05
# How long a stop waits for connections that are being made, and at most for the workers to accept
# those that are made.
HANDSHAKE_SECONDS, BACKLOG_SECONDS = 0.1, 3
SO_ATTACH_FILTER = 26  # of <asm-generic/socket.h>; Python has no name for it
# A filter for a listening socket, in the kernel's classic BPF: drop a packet that opens a
# connection (SYN without ACK in byte 13 of the TCP header), and let every other one pass.
NO_NEW_CONNECTIONS = (
    (0x30, 0, 0, 13),  # load the byte
    (0x54, 0, 0, 0x12),  # keep the bits of SYN and ACK
    (0x15, 0, 1, 0x02),  # unless only SYN is set, skip one
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # pass
)


class FreeThreadWorker(ThreadWorker):
    """A gthread worker that accepts as many requests as it has threads."""

    def __init__(self, *args: object) -> None:
        """Make the worker, in the arbiter."""
        self._lingering: deque[tuple[float, socket.socket]] = deque()  # with its deadline
        super().__init__(*args)

    @property
    def worker_connections(self) -> int:
        """The number of open connections above which the worker accepts no more."""
        return self.cfg.threads + len(self.keepalived_conns) + len(self.pending_conns)

    @worker_connections.setter
    def worker_connections(self, value: int) -> None:
        """Ignore the setting here; gunicorn also uses it to limit the idle connections."""

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection, unless `drain_before_stop` has shut the socket."""
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise

    def enqueue_req(self, conn: TConn) -> None:
        """Have a thread handle a request."""
        if not conn.initialized:
            conn.accepted = time.monotonic()
            conn.close = partial(self._close, conn)
        super().enqueue_req(conn)

    def handle_request(self, req: Request, conn: TConn) -> bool:
        """Handle a request; return whether the connection stays open."""
        should_close = req.should_close
        # gunicorn asks when it sends the headers, and again later: the answer must stay the same.
        req.should_close = cache(lambda: should_close() or self._turn_is_over(conn))
        return super().handle_request(req, conn)

    def _turn_is_over(self, conn: TConn) -> bool:
        """Return whether a connection must make room for one that waits in the backlog."""
        if self.nr_conns < self.worker_connections:
            return False  # a thread is free for it
        if time.monotonic() < conn.accepted + TURN_SECONDS:
            return False
        backlog = select.poll()
        for listener in self.sockets:
            backlog.register(listener, select.POLLIN)
        return bool(backlog.poll(0))

    def murder_pending(self) -> None:
        """Close connections that took too long; gunicorn calls this at least once a second."""
        super().murder_pending()
        now = time.monotonic()
        while self._lingering and self._lingering[0][0] < now:
            self._end(self._lingering.popleft()[1])

    def _keepalive_after(self, conn: TConn, keepalive: bool) -> bool:
        """Read the rest of the body, and return whether the connection can stay open.

        Also before it closes: with unread data, the kernel would reset the connection, and nginx
        might lose the response. The size is nginx's business (client_max_body_size).
        """
        deadline = time.monotonic() + DEFAULT_WORKER_DATA_TIMEOUT
        drained = conn.parser.finish_body(deadline=deadline, max_bytes=sys.maxsize)
        return bool(keepalive and drained)

    def _close(self, conn: TConn, *, graceful: bool = False) -> None:
        """Close a connection; if `graceful`, after the client has closed it or LINGER_SECONDS."""
        if not graceful:
            TConn.close(conn)
            return
        conn.sock.setblocking(False)
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            conn.sock.close()
            return
        self._lingering.append((time.monotonic() + LINGER_SECONDS, conn.sock))
        self.poller.register(conn.sock, EVENT_READ, self._discard)

    def _discard(self, client: socket.socket) -> None:
        """Read what a client sends on a connection that is being closed."""
        try:
            received = client.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._end(client)

    def _end(self, client: socket.socket) -> None:
        if client.fileno() >= 0:  # else it has ended before its deadline
            self.poller.unregister(client)
            client.close()


class _Held:
    """Takes the place of a socket, and keeps what should be sent."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def sendall(self, data: bytes) -> None:
        self.parts.append(data)


class ProxiedResponse(wsgi.Response):
    """Sends headers and the first part of the body together, and closes where nginx needs it."""

    def should_close(self) -> bool:
        """Return whether the connection closes, as it must if nginx may renew a bodiless answer."""
        if super().should_close():
            return True
        has_no_body = self.req.method == "HEAD" or self.response_length == 0
        return has_no_body and any(name.lower() in VALIDATORS for name, _ in self.headers)

    def write(self, arg: bytes) -> None:
        """Send a part of the body, and before the first one the headers."""
        if self.headers_sent:
            super().write(arg)
            return
        client, self.sock = self.sock, _Held()
        try:
            super().write(arg)
            together = b"".join(self.sock.parts)
        except Exception:
            self.headers_sent = False
            raise
        finally:
            self.sock = client
        client.sendall(together)


wsgi.Response = ProxiedResponse  # gunicorn has no setting for this


def drain_before_stop(server: Arbiter) -> None:
    """Have gunicorn lose no connection when it stops: each is either answered, or refused at once.

    nginx sends a request that was refused to another replica, a POST too.
    """
    stop = server.stop

    def drain_and_stop(graceful: bool = True) -> None:
        if graceful and issubclass(server.worker_class, FreeThreadWorker):
            _drain([each for each in server.LISTENERS if each.FAMILY != socket.AF_UNIX])
        stop(graceful)

    server.stop = drain_and_stop


def _drain(listeners: list[socket.socket]) -> None:
    """Let the workers accept every connection that a client has made, and refuse all others."""
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in NO_NEW_CONNECTIONS)
    memory = ctypes.create_string_buffer(program)
    filtering = struct.pack("HL", len(NO_NEW_CONNECTIONS), ctypes.addressof(memory))
    for listener in listeners:
        # Without the filter, a connection may come between the last one accepted and the shutdown.
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filtering)
    time.sleep(HANDSHAKE_SECONDS)
    deadline = time.monotonic() + BACKLOG_SECONDS
    while any(each.get_backlog() for each in listeners) and time.monotonic() < deadline:
        time.sleep(0.01)
    for listener in listeners:
        with contextlib.suppress(OSError):
            # Not close(): workers and the metrics server have the socket, too.
            listener.shutdown(socket.SHUT_RDWR)
