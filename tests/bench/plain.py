"""A plain sample to compare with: nginx and gunicorn as shipped, without telemetry."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from local.settings import BIN
from tests.stacks import free_port, wait_until

NGINX = """
worker_processes auto;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    proxy_cache_path {folder}/cache keys_zone=cache:1m;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://127.0.0.1:{upstream}; }}
        location = /cache-me {{
            proxy_pass http://127.0.0.1:{upstream};
            proxy_cache cache;
            proxy_cache_valid 30s;
        }}
    }}
}}
"""
APP = """
import time
from flask import Flask, jsonify, request
app = Flask(__name__)

@app.get("/")
def hello():
    time.sleep(float(request.args.get("sleep", 0)))
    return "Hello World!"

@app.get("/cache-me")
def cache_me():
    return "nginx will cache this response"

@app.get("/info")
def info():
    headers = request.headers
    return jsonify(connecting_ip=request.remote_addr, host=headers.get("Host"),
                   proxy_ip=headers.get("X-Forwarded-For"), user_agent=headers.get("User-Agent"))
"""


@dataclasses.dataclass(frozen=True)
class Plain:
    """The running sample: nginx's URL, and the ids of the two main processes."""

    url: str
    pids: tuple[int, ...]


@contextmanager
def plain_sample(*options: str) -> Iterator[Plain]:
    """Run a plain nginx before a gunicorn with these options."""
    port, upstream = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="plain-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # nginx's workers are another user's
        (folder / "plain.py").write_text(APP)
        settings = {"folder": folder, "port": port, "upstream": upstream}
        (folder / "nginx.conf").write_text(NGINX.format(**settings))
        gunicorn = [sys.executable, "-m", "gunicorn", f"--bind=127.0.0.1:{upstream}", *options]
        nginx = [BIN / "nginx", "-e", "stderr", "-c", folder / "nginx.conf", "-g", "daemon off;"]
        with (folder / "log").open("w") as log:
            running = [
                subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
                for command in ([*gunicorn, "plain:app"], nginx)
            ]
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until(lambda: requests.get(url, timeout=5).ok, 30, "the plain sample answers")
            yield Plain(url, tuple(process.pid for process in running))
        finally:
            for process in running:
                process.terminate()
                process.wait()
