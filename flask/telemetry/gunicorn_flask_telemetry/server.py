"""Serves /metrics in a process of its own, so that a scrape is answered when every worker is busy.

A worker cannot serve it, because it may be stuck. A thread in the arbiter cannot either: each fork
would copy the locks that the thread holds at that moment into the new worker.
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

from gunicorn_flask_telemetry.cgroup import CgroupCollector
from gunicorn_flask_telemetry.collector import RequestCollector, WorkerCollector


class _Server(ThreadingMixIn, WSGIServer):
    """Serves each scrape in a thread, on a socket that is already listening."""

    daemon_threads = True

    def __init__(self, listening: socket.socket) -> None:
        super().__init__(listening.getsockname(), _SilentHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_name, self.server_port = listening.getsockname()[:2]
        self.setup_environ()


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, *_args: object) -> None:
        """Do not log scrapes."""


def main() -> None:
    """Serve until standard input closes; the arbiter holds its other end."""
    arguments = _arguments()
    threading.Thread(target=_exit_with_arbiter, daemon=True).start()
    time.sleep(arguments.delay)
    registry = CollectorRegistry()
    # Read in the reverse order of the workers' writes, so that every counted request is in its
    # histogram.
    registry.register(WorkerCollector(arguments.directory, map(_socket, arguments.listener_fds)))
    registry.register(RequestCollector(arguments.directory))
    registry.register(CgroupCollector())
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
    # When the arbiter ends, even by SIGKILL, the kernel closes the arbiter's end of the pipe.
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
