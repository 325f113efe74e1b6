"""What the arbiter keeps for the metrics: the directory of the workers' counts, and the slots."""

import atexit
import fcntl
import json
import logging
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

from gunicorn.config import Config
from gunicorn.workers.base import Worker
from gunicorn.workers.gthread import ThreadWorker
from gunicorn.workers.sync import SyncWorker
from prometheus_client import values

from gunicorn_flask_telemetry import slots
from gunicorn_flask_telemetry.launcher import Launcher

# Unset, it is a temporary directory in memory.
DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
MEMORY = "/dev/shm"  # noqa: S108
LOCK_VARIABLE = "GUNICORN_METRICS_LOCK_FD"
BIND_VARIABLE, DEFAULT_BIND = "GUNICORN_METRICS_BIND", "0.0.0.0:9200"
# A dead arbiter's workers, which look for it every second, may hold the directory a while longer.
LOCK_SECONDS = 5
OURS = ("counter_*.db", "gauge_*.db", "histogram_*.db", "summary_*.db", "*.slot", "arbiter.json")

logger = logging.getLogger("gunicorn.error")


class State:
    """The arbiter's part of the metrics."""

    launcher: Launcher

    def __init__(self, cfg: Config) -> None:
        """Make the directory and empty it, unless this arbiter is an upgrade (USR2) of another.

        Raises:
            RuntimeError: the worker class is not supported, or another gunicorn has the directory.
        """
        self._workers, self._threads = 0, _threads(cfg)
        self._owner = (cfg.uid, cfg.gid)
        self._pid = os.getpid()
        self._temporary = not os.environ.get(DIRECTORY_VARIABLE)
        if self._temporary:
            memory = MEMORY if os.access(MEMORY, os.W_OK) else None
            os.environ[DIRECTORY_VARIABLE] = tempfile.mkdtemp(prefix="gunicorn-", dir=memory)
            atexit.register(self._remove_temporary)  # also where the start fails later on
        self.directory = Path(os.environ[DIRECTORY_VARIABLE])
        self._make_directory()
        if inherited := os.environ.pop(LOCK_VARIABLE, None):
            self._lock = int(inherited)
            os.set_inheritable(self._lock, False)
        else:
            self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            self._take_directory()
        self._children_cpu_seconds = 0.0
        # Files named by slot, not by pid: a new worker goes on counting where the last one ended.
        values.ValueClass = values.MultiProcessValue(process_identifier=slots.current)

    def configure(self, workers: int, cfg: Config) -> None:
        """Tell the metrics server how many workers and threads there should be."""
        self._workers, self._threads = workers, _threads(cfg)
        try:
            self._write_configuration()
        except OSError as error:  # gunicorn is not to end because it can't tell
            logger.error("%s: %s", self._configuration, error)

    def listen(self) -> None:
        """Listen at GUNICORN_METRICS_BIND; see Launcher for what it raises."""
        bind = os.environ.get(BIND_VARIABLE) or DEFAULT_BIND
        self.launcher = Launcher(self.directory, bind, ended=self._take_children_cpu_seconds)

    def claim_slot(self) -> slots.Slot:
        """Return a slot for the next worker."""
        if not self._configuration.exists():  # somebody cleaned up: gunicorn is to outlive that
            self._make_directory()
            self._write_configuration()
        return slots.claim(self.directory, self._threads)

    def release_slot(self, worker: Worker) -> None:
        """Free the slot of a worker that was waited for just now."""
        # Its gauges would stand for ever, and the next worker would go on from them.
        for identity in (f"{worker.slot.number}", f"{worker.slot.number}-*"):
            for gauges in self.directory.glob(f"gauge_*_{identity}.db"):
                gauges.unlink(missing_ok=True)
        worker.slot.release(aborted=worker.aborted, cpu_seconds=self._take_children_cpu_seconds())

    def forget(self) -> None:
        """Close, in a worker, what only the arbiter should hold."""
        os.close(self._lock)
        self.launcher.forget()

    def hand_over(self, environ: dict[str, str]) -> None:
        """Leave everything to the arbiter about to be started in `environ`."""
        environ[DIRECTORY_VARIABLE] = str(self.directory)
        environ[LOCK_VARIABLE] = str(self._lock)
        os.set_inheritable(self._lock, True)
        self.launcher.hand_over(environ)

    def end(self, *, upgraded: bool) -> None:
        """End the metrics server, and a temporary directory unless an upgrade goes on with it."""
        self.launcher.stop()
        self._temporary = self._temporary and not upgraded

    @property
    def _configuration(self) -> Path:
        return self.directory / "arbiter.json"

    def _write_configuration(self) -> None:
        written = self._configuration.with_suffix(".new")
        written.write_text(json.dumps({"workers": self._workers, "threads": self._threads}))
        written.replace(self._configuration)

    def _make_directory(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        # The workers may be another user, by gunicorn's setting.
        if os.geteuid() == 0 and self._owner != (os.geteuid(), os.getegid()):
            os.chown(self.directory, *self._owner)

    def _remove_temporary(self) -> None:
        if self._temporary and os.getpid() == self._pid:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _take_directory(self) -> None:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"{DIRECTORY_VARIABLE}={self.directory}: another gunicorn counts there"
                    ) from None
                time.sleep(0.1)
        for pattern in OURS:
            for file in self.directory.glob(pattern):
                file.unlink()

    def _take_children_cpu_seconds(self) -> float:
        """Return the CPU time of the children that were waited for since the last call."""
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        before, self._children_cpu_seconds = (
            self._children_cpu_seconds,
            usage.ru_utime + usage.ru_stime,
        )
        return self._children_cpu_seconds - before


def _threads(cfg: Config) -> int:
    """Return how many requests a worker can be at, at once.

    Raises:
        RuntimeError: the worker class counts them in another way than by threads.
    """
    if issubclass(cfg.worker_class, ThreadWorker):
        return cfg.threads
    if issubclass(cfg.worker_class, SyncWorker):
        return 1
    raise RuntimeError(
        f"worker class {cfg.worker_class_str}: the telemetry supports gthread and sync"
    )
