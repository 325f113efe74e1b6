"""A plain sample to compare with: nginx and gunicorn as shipped, without telemetry."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local.settings import BIN
from tests.servers import running
from tests.stacks import free_port

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
        gunicorn = [sys.executable, "-m", "gunicorn", f"--bind=127.0.0.1:{upstream}"]
        gunicorn += [f"--chdir={folder}", *options, "plain:app"]
        nginx = [BIN / "nginx", "-e", "stderr", "-c", folder / "nginx.conf", "-g", "daemon off;"]
        url = f"http://127.0.0.1:{port}"
        with (
            (folder / "log").open("wb") as log,
            running(gunicorn, f"http://127.0.0.1:{upstream}", 30, output=log) as arbiter,
            running(nginx, url, 30, output=log) as master,
        ):
            yield Plain(url, (arbiter, master))
