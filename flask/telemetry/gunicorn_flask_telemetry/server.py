"""Serves /metrics in a process of its own, so that a scrape is answered when every worker is busy.

Not in the workers, which are the ones that get stuck, and not in a thread of the arbiter, since
each fork of a worker would copy whatever locks that thread held at the moment.
"""

import argparse
import os
import socket
import sys
import threading
import time
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from gunicorn_flask_telemetry.collector import RequestCollector, WorkerCollector


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each scrape, on a socket that is already listening."""

    daemon_threads = True

    def __init__(self, listening: socket.socket) -> None:
        super().__init__(listening.getsockname(), _SilentHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_name, self.server_port = listening.getsockname()[:2]
        self.setup_environ()


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, *_args: object) -> None:
        """Log no scrape."""


def main() -> None:
    """Serve until standard input, whose other end the arbiter holds, is closed."""
    arguments = _arguments()
    threading.Thread(target=_exit_with_arbiter, daemon=True).start()
    time.sleep(arguments.delay)
    registry = CollectorRegistry()
    # Read in the reverse order of the workers' writing: a request in a count is in its histogram.
    registry.register(WorkerCollector(arguments.directory, map(_socket, arguments.listener_fds)))
    registry.register(RequestCollector(arguments.directory))
    server = _Server(_socket(arguments.metrics_fd))
    server.set_app(make_wsgi_app(registry))
    server.serve_forever()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--metrics-fd", type=int, required=True)
    parser.add_argument("--delay", type=float, default=0, help="seconds to wait before serving")
    parser.add_argument("listener_fds", type=int, nargs="*")
    return parser.parse_args()


def _socket(file: int) -> socket.socket:
    return socket.socket(fileno=file)


def _exit_with_arbiter() -> None:
    # However the arbiter ends, SIGKILL included, the kernel closes its end.
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
