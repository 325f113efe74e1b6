"""The memory and CPU limits of this container, and how far it uses them, from its control group.

Reads cgroup v2 and v1. A limit that is not set has no metrics. gunicorn_flask_telemetry and
nginx_access_exporter each have this file, so that each package can be installed alone.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# cgroup v1 writes "no limit" as the last page below 2^63.
NO_LIMIT = 2**60
NANOSECONDS, MICROSECONDS = 1e-9, 1e-6


class CgroupCollector(Collector):
    """The cgroup_* metrics."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Read the control group of this process; `root` is the folder of /proc and /sys."""
        self._root = root

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of each limit that is set."""
        # The kernel may have been built or started without a file or a field.
        with suppress(OSError, KeyError, ValueError):
            yield from self._memory()
        with suppress(OSError, KeyError, ValueError):
            yield from self._cpu()

    def _memory(self) -> Iterator[Metric]:
        folder, is_v2 = self._find("memory")
        if is_v2:
            limit = (folder / "memory.max").read_text().strip()
            used = int((folder / "memory.current").read_text())
            cache = _fields(folder / "memory.stat")["inactive_file"]
            kills = _fields(folder / "memory.events")["oom_kill"]
        else:
            limit = (folder / "memory.limit_in_bytes").read_text().strip()
            used = int((folder / "memory.usage_in_bytes").read_text())
            cache = _fields(folder / "memory.stat")["total_inactive_file"]
            kills = _fields(folder / "memory.oom_control")["oom_kill"]
        if limit == "max" or int(limit) > NO_LIMIT:
            return
        yield GaugeMetricFamily(
            "cgroup_memory_working_set_bytes",
            "Memory in use, without the file cache that the kernel can drop",
            max(0, used - cache),
        )
        yield GaugeMetricFamily(
            "cgroup_memory_limit_bytes",
            "Memory limit; the kernel kills a process that needs more",
            int(limit),
        )
        yield CounterMetricFamily(
            "cgroup_oom_kills", "Processes killed because memory ran out", kills
        )

    def _cpu(self) -> Iterator[Metric]:
        folder, is_v2 = self._find("cpu")
        if is_v2:
            limited = not (folder / "cpu.max").read_text().startswith("max")
            seconds = _fields(folder / "cpu.stat")["throttled_usec"] * MICROSECONDS
        else:
            limited = int((folder / "cpu.cfs_quota_us").read_text()) > 0
            seconds = _fields(folder / "cpu.stat")["throttled_time"] * NANOSECONDS
        if limited:
            yield CounterMetricFamily(
                "cgroup_cpu_throttled_seconds",
                "Time that processes waited because the CPU limit was used up",
                seconds,
            )

    def _find(self, controller: str) -> tuple[Path, bool]:
        """Return the control group's folder for a controller, and whether it is of cgroup v2.

        Raises:
            KeyError: the process has no control group for this controller.
        """
        lines = (self._root / "proc/self/cgroup").read_text().splitlines()
        paths = {names: path for _, names, path in (line.split(":", 2) for line in lines)}
        mounts = self._root / "sys/fs/cgroup"
        for names, path in paths.items():
            if controller in names.split(","):
                return _own(mounts / controller, path), False
        return _own(mounts, paths[""]), True


def _own(mount: Path, path: str) -> Path:
    """Return the process's own folder below `mount`.

    A container sees its own folder as the mount, while `path` may still be that on the host.
    """
    own = mount / path.lstrip("/")
    return own if own.is_dir() else mount


def _fields(path: Path) -> dict[str, int]:
    """Read a file of lines `name number`."""
    return {name: int(value) for name, value in map(str.split, path.read_text().splitlines())}
