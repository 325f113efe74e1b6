"""The CPU time that it costs to count a request, in nginx and in the reader of its metrics log.

One nginx worker answers from its cache on three ports: without a metrics log, with one that
nginx-access-exporter reads, and with one that mtail reads. The three alternate under wrk, so that a
busy machine slows all of them: compare the rows of one run only. CPU times are from the kernel's
clocks of the processes, which count nanoseconds. Each round scrapes both readers once, as
Prometheus would every five seconds, and checks that they have counted every request.

Needs nginx, wrk and mtail (Debian has all three) and the exporter's requirements:

    python tests/bench/access_log.py [--rounds 10] [--seconds 5]
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).parents[2]
INCLUDE = ROOT / "nginx" / "include"
METRICS_LOG = "/var/log/nginx-metrics/access.log"
CONNECTIONS = 32
ORIGIN_PORT = 22100
READER_PORTS = {"nginx-access-exporter": 22111, "mtail": 22112}
# Name of the variant: nginx's port.
VARIANTS = {"no metrics log": 22101, "nginx-access-exporter": 22102, "mtail": 22103}
LINES = {
    "nginx-access-exporter": "nginx_access_exporter_lines_total",
    "mtail": "lines_total",
}

NGINX = """
daemon off;
worker_processes 1;
worker_cpu_affinity 01;
error_log stderr;
pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
    {log_format}
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    proxy_cache_path {folder}/cache keys_zone=cache:1m;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    proxy_cache cache;
    proxy_cache_valid 1d;
    proxy_cache_key $request_uri;
    proxy_hide_header X-Route;
    server {{
        listen 127.0.0.1:{origin};
        location / {{ add_header X-Route /cache-me; return 200 "a short text"; }}
    }}
    {servers}
}}
"""


class Measured:
    """By variant, for each round: the CPU time of nginx and of the reader for a request, in us."""

    def __init__(self) -> None:
        self.nginx: dict[str, list[float]] = {name: [] for name in VARIANTS}
        self.reader: dict[str, list[float]] = {name: [] for name in VARIANTS}
        self.rate: dict[str, list[float]] = {name: [] for name in VARIANTS}


class Watch(threading.Thread):
    """Watches the log's size in memory."""

    def __init__(self, log: Path) -> None:
        super().__init__(daemon=True)
        self._log = log
        self._stopped = threading.Event()
        self.largest = 0

    def run(self) -> None:
        while not self._stopped.wait(0.02):
            self.largest = max(self.largest, self._log.stat().st_blocks * 512)

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def main() -> None:
    """Print one table, and how much memory the log and the readers took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=5, help="of load per variant and round")
    arguments = parser.parse_args()
    for program in ("nginx", "wrk", "mtail"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is not on PATH")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name, ExitStack() as stack:
        run(Path(name), stack, arguments.rounds, arguments.seconds)


def run(folder: Path, stack: ExitStack, rounds: int, seconds: int) -> None:
    """Measure, with the log in a folder in memory."""
    logs = {reader: folder / f"{reader}.log" for reader in READER_PORTS}
    nginx = stack.enter_context(start_nginx(folder, logs))
    readers = {
        "nginx-access-exporter": stack.enter_context(
            start(
                sys.executable,
                "-m",
                "nginx_access_exporter",
                f"--log.path={logs['nginx-access-exporter']}",
                f"--web.listen-address=127.0.0.1:{READER_PORTS['nginx-access-exporter']}",
            )
        ),
        "mtail": stack.enter_context(
            start(
                "mtail",
                f"--progs={Path(__file__).with_suffix('.mtail')}",
                f"--logs={logs['mtail']}",
                "--address=127.0.0.1",
                f"--port={READER_PORTS['mtail']}",
                f"--log_dir={folder}",
            )
        ),
    }
    for reader, port in READER_PORTS.items():
        wait_for(lambda port=port: scrape(port), reader)

    watch = Watch(logs["nginx-access-exporter"])
    watch.start()
    measured = Measured()
    total = dict.fromkeys(VARIANTS, 0)
    early_peak = 0
    for number in range(rounds + 1):
        for name, port in VARIANTS.items():
            nginx_before = cpu(nginx)
            reader_before = cpu(readers[name]) if name in readers else 0.0
            requests, rate = load(port, seconds)
            nginx_cpu = cpu(nginx) - nginx_before
            total[name] += requests
            if name in readers:
                wait_until_counted(name, total[name])
            reader_cpu = cpu(readers[name]) - reader_before if name in readers else 0.0
            if number:  # round 0 only warms up
                measured.nginx[name].append(nginx_cpu / requests * 1e6)
                measured.reader[name].append(reader_cpu / requests * 1e6)
                measured.rate[name].append(rate)
        if number == 1:
            early_peak = peak_memory(readers["nginx-access-exporter"])
    watch.stop()
    print_table(measured)
    log = logs["nginx-access-exporter"]
    print(
        f"\nnginx-access-exporter's log, {total['nginx-access-exporter']:,} requests and "
        f"{log.stat().st_size / 1e6:.0f} MB later: {log.stat().st_blocks * 512:,} bytes in memory, "
        f"at most {watch.largest / 1e6:.1f} MB during the run."
    )
    print(
        f"The exporter's peak memory: {early_peak / 1e6:.1f} MB after two rounds, "
        f"{peak_memory(readers['nginx-access-exporter']) / 1e6:.1f} MB at the end. "
        f"mtail's: {peak_memory(readers['mtail']) / 1e6:.1f} MB."
    )


def print_table(measured: Measured) -> None:
    """Print medians over the rounds; differences and ratios are taken within each round."""
    bare = measured.nginx["no metrics log"]
    print("| reader | requests/s | nginx, us/request | added by the log | reader, us/line |")
    print("| --- | --- | --- | --- | --- |")
    for name in VARIANTS:
        added = [v - without for v, without in zip(measured.nginx[name], bare, strict=True)]
        cells = [
            f"{statistics.median(measured.rate[name]):,.0f}",
            f"{statistics.median(measured.nginx[name]):.2f}",
            f"{statistics.median(added):+.2f}" if name in READER_PORTS else "",
            f"{statistics.median(measured.reader[name]):.3f}" if name in READER_PORTS else "",
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    ours, mtail = measured.reader["nginx-access-exporter"], measured.reader["mtail"]
    times = [theirs / own for own, theirs in zip(ours, mtail, strict=True)]
    print(f"\nmtail takes {statistics.median(times):.0f} times the exporter's CPU time per line.")


def load(port: int, seconds: int) -> tuple[int, float]:
    """Request one cached URL as fast as possible; return the requests, and those per second."""
    output = subprocess.run(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", f"http://127.0.0.1:{port}/cache-me"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = re.search(r"(\d+) requests in", output)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if not found or not rate or "Non-2xx" in output or "Socket errors" in output:
        sys.exit(output)
    return int(found[1]), float(rate[1])


def wait_until_counted(name: str, requests: int) -> None:
    """Wait, and check that the reader has every request that wrk counted (wrk omits its last)."""
    time.sleep(2)  # nginx writes its buffer after one second, and no scrape should be wasted
    lines = 0.0
    for line in scrape(READER_PORTS[name]).splitlines():
        if line.startswith(LINES[name]):
            lines = float(line.split()[-1])
    if lines < requests:
        sys.exit(f"{name} has counted {lines:.0f} of {requests} requests")


def cpu(process: subprocess.Popen[bytes] | int) -> float:
    """Seconds of CPU time of a process, all threads; computes the id as clock_getcpuclockid(3)."""
    pid = process if isinstance(process, int) else process.pid
    return time.clock_gettime(~pid << 3 | 2)


def peak_memory(process: subprocess.Popen[bytes]) -> int:
    """The most bytes the process has had in memory."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def scrape(port: int) -> str:
    """The metrics a reader serves."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        return response.read().decode()


@contextmanager
def start_nginx(folder: Path, logs: dict[str, Path]) -> Iterator[int]:
    """Run nginx; yields its worker's pid."""
    log_format = (INCLUDE / "metrics-log-format.conf").read_text()
    access_log = (INCLUDE / "metrics-log.conf").read_text()
    servers = []
    for name, port in VARIANTS.items():
        log = access_log.replace(METRICS_LOG, str(logs[name])) if name in logs else ""
        servers.append(
            f"server {{ listen 127.0.0.1:{port}; {log} "
            f"location / {{ proxy_pass http://127.0.0.1:{ORIGIN_PORT}; }} }}"
        )
    config = folder / "nginx.conf"
    config.write_text(
        NGINX.format(
            folder=folder, log_format=log_format, origin=ORIGIN_PORT, servers="\n".join(servers)
        )
    )
    with start("nginx", "-e", "stderr", "-p", str(folder), "-c", str(config)) as nginx:
        wait_for(lambda: load(VARIANTS["no metrics log"], 1), "nginx")
        children = Path(f"/proc/{nginx.pid}/task/{nginx.pid}/children")
        workers = {
            Path(f"/proc/{pid}/cmdline").read_text(): int(pid)
            for pid in children.read_text().split()
        }
        yield next(pid for title, pid in workers.items() if "worker" in title)


@contextmanager
def start(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the end of the context; print its output only if it ends early."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            yield process
        finally:
            if process.poll() is not None:
                output.seek(0)
                print(output.read().decode(errors="replace"), file=sys.stderr)
            process.terminate()
            process.wait()


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until a call succeeds."""
    deadline = time.monotonic() + 20
    while True:
        try:
            condition()
        except (OSError, SystemExit, subprocess.CalledProcessError):
            if time.monotonic() > deadline:
                sys.exit(f"{what} did not start")
            time.sleep(0.1)
        else:
            return


if __name__ == "__main__":
    main()
