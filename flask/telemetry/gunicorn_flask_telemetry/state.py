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

from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.workers.base import Worker
from gunicorn.workers.gthread import ThreadWorker
from gunicorn.workers.sync import SyncWorker
from prometheus_client import values

from gunicorn_flask_telemetry import slots
from gunicorn_flask_telemetry.launcher import Launcher

# Where this is unset, the directory is a temporary one in memory.
DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
MEMORY = "/dev/shm"  # noqa: S108
BIND_VARIABLE, DEFAULT_BIND = "GUNICORN_METRICS_BIND", "0.0.0.0:9200"
# A worker closes the lock just after its fork: a worker of a killed arbiter may still hold it.
LOCK_SECONDS = 2
OURS = (
    "counter_*.db",
    "gauge_*.db",
    "histogram_*.db",
    "summary_*.db",
    "*.slot",
    "arbiter.json",
    "load-failure",
)

logger = logging.getLogger("gunicorn.error")


class State:
    """The arbiter's part of the metrics."""

    launcher: Launcher

    def __init__(self, cfg: Config) -> None:
        """Make the directory for the counts, or empty it.

        Raises:
            RuntimeError: the telemetry does not support the worker class, or another gunicorn uses
                the directory. gunicorn exits with the message.
        """
        self._workers, self._threads = 0, _threads(cfg)
        self._owner = (cfg.uid, cfg.gid)
        self._pid = os.getpid()
        self._start_time = time.time()
        self._temporary = not os.environ.get(DIRECTORY_VARIABLE)
        if self._temporary:
            memory = MEMORY if os.access(MEMORY, os.W_OK) else None
            os.environ[DIRECTORY_VARIABLE] = tempfile.mkdtemp(prefix="gunicorn-", dir=memory)
            atexit.register(self._remove_temporary)  # also when the start fails later
        self.directory = Path(os.environ[DIRECTORY_VARIABLE])
        self._make_directory()
        self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        self._take_directory()
        self._children_cpu_seconds = 0.0
        # Files named by slot, not by pid: a new worker continues the counts of the last one.
        values.ValueClass = values.MultiProcessValue(process_identifier=slots.current)

    def configure(self, workers: int, cfg: Config) -> None:
        """Write down, for the metrics server, how many workers and threads are configured."""
        self._workers, self._threads = workers, _threads(cfg)
        try:
            self._write_configuration()
        except OSError as error:  # gunicorn must not end because of this
            logger.error("%s: %s", self._configuration, error)

    def listen(self) -> None:
        """Listen at GUNICORN_METRICS_BIND.

        Raises:
            RuntimeError: see Launcher.
        """
        bind = os.environ.get(BIND_VARIABLE) or DEFAULT_BIND
        self.launcher = Launcher(self.directory, bind, ended=self._take_children_cpu_seconds)

    def claim_slot(self, server: Arbiter) -> slots.Slot:
        """Return a slot for the next worker."""
        if not self._configuration.exists():  # somebody removed the directory: make it again
            self._make_directory()
            self._write_configuration()
        taken = {worker.slot.number for worker in server.WORKERS.values()}
        return slots.claim(self.directory, taken, self._threads)

    def release_slot(self, worker: Worker) -> None:
        """Free the slot of a worker that was just waited for."""
        # Its gauges would stay, and the next worker would start from them.
        for identity in (f"{worker.slot.number}", f"{worker.slot.number}-*"):
            for gauges in self.directory.glob(f"gauge_*_{identity}.db"):
                gauges.unlink(missing_ok=True)
        worker.slot.release(aborted=worker.aborted, cpu_seconds=self._take_children_cpu_seconds())

    def forget(self) -> None:
        """Close, in a worker, the files that only the arbiter should hold."""
        os.close(self._lock)
        self.launcher.forget()

    @property
    def load_failure(self) -> Path:
        """The file that a process makes when the application fails to load."""
        return self.directory / "load-failure"

    @property
    def _configuration(self) -> Path:
        return self.directory / "arbiter.json"

    def _write_configuration(self) -> None:
        written = self._configuration.with_suffix(".new")
        configured = {"workers": self._workers, "threads": self._threads}
        written.write_text(json.dumps(configured | {"start_time": self._start_time}))
        written.replace(self._configuration)

    def _make_directory(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        # gunicorn's settings `user` and `group` can give the workers another user.
        if os.geteuid() == 0 and self._owner != (os.geteuid(), os.getegid()):
            os.chown(self.directory, *self._owner)

    def _remove_temporary(self) -> None:
        if os.getpid() == self._pid:
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
                        f"{DIRECTORY_VARIABLE}={self.directory}: another gunicorn uses this "
                        "directory; give each its own"
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
    """Return how many requests a worker can work on at the same time.

    Raises:
        RuntimeError: the worker class does not work by threads.
    """
    if issubclass(cfg.worker_class, ThreadWorker):
        return cfg.threads
    if issubclass(cfg.worker_class, SyncWorker):
        return 1
    raise RuntimeError(
        f"worker class {cfg.worker_class_str}: the telemetry supports gthread and sync"
    )
