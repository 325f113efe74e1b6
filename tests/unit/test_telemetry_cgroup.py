"""The metrics of a container's limits, from files in the formats of cgroup v2 and v1."""

import inspect
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

import gunicorn_flask_telemetry.cgroup
import nginx_access_exporter.cgroup
from gunicorn_flask_telemetry.cgroup import CgroupCollector

MEBIBYTE = 2**20
V2 = {
    "proc/self/cgroup": "0::/\n",
    "sys/fs/cgroup/memory.max": f"{512 * MEBIBYTE}\n",
    "sys/fs/cgroup/memory.current": f"{200 * MEBIBYTE}\n",
    "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {50 * MEBIBYTE}\nactive_file 9\n",
    "sys/fs/cgroup/memory.events": "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\n",
    "sys/fs/cgroup/cpu.max": "20000 100000\n",
    "sys/fs/cgroup/cpu.stat": "usage_usec 9\nnr_throttled 4\nthrottled_usec 1500000\n",
}
# A container of Docker: the paths are those on the host, the mounts show the container's own group.
V1 = {
    "proc/self/cgroup": "4:memory:/docker/1\n2:cpu,cpuacct:/docker/1\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{512 * MEBIBYTE}\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{200 * MEBIBYTE}\n",
    "sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {50 * MEBIBYTE}\n",
    "sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "20000\n",
    "sys/fs/cgroup/cpu/cpu.stat": "nr_periods 9\nnr_throttled 4\nthrottled_time 1500000000\n",
}
METRICS = {
    "cgroup_memory_working_set_bytes": 150 * MEBIBYTE,
    "cgroup_memory_limit_bytes": 512 * MEBIBYTE,
    "cgroup_oom_kills_total": 2,
    "cgroup_cpu_throttled_seconds_total": 1.5,
}
OF_MEMORY = {name for name in METRICS if "cpu" not in name}
OF_CPU = METRICS.keys() - OF_MEMORY


def collect(root: Path, files: dict[str, str]) -> dict[str, float]:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    registry = CollectorRegistry()
    registry.register(CgroupCollector(root))
    samples = (sample for metric in registry.collect() for sample in metric.samples)
    return {sample.name: sample.value for sample in samples}


@pytest.mark.parametrize("files", [V2, V1], ids=["v2", "v1"])
def test_limits_and_use_are_exported(tmp_path: Path, files: dict[str, str]) -> None:
    assert collect(tmp_path, files) == METRICS


@pytest.mark.parametrize(
    ("files", "unlimited", "exported"),
    [
        (V2, {"sys/fs/cgroup/memory.max": "max\n"}, OF_CPU),
        (V2, {"sys/fs/cgroup/cpu.max": "max 100000\n"}, OF_MEMORY),
        (V1, {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, OF_CPU),
        (V1, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}, OF_MEMORY),
    ],
    ids=["v2-memory", "v2-cpu", "v1-memory", "v1-cpu"],
)
def test_metrics_are_absent_without_a_limit(
    tmp_path: Path, files: dict[str, str], unlimited: dict[str, str], exported: set[str]
) -> None:
    assert collect(tmp_path, files | unlimited).keys() == exported


def test_own_group_is_read_if_the_mount_shows_all_groups(tmp_path: Path) -> None:
    """A service of systemd with a memory limit, on a machine without containers."""
    own = {"proc/self/cgroup": "0::/system.slice/flask.service\n"}
    of_service = {
        name.replace("sys/fs/cgroup/", "sys/fs/cgroup/system.slice/flask.service/"): content
        for name, content in V2.items()
        if name.startswith("sys/")
    }
    assert collect(tmp_path, V2 | {"sys/fs/cgroup/memory.max": "max\n"} | of_service | own) == (
        METRICS
    )


def test_nothing_is_exported_without_control_groups(tmp_path: Path) -> None:
    assert collect(tmp_path, {}) == {}


def test_both_packages_have_the_same_module() -> None:
    ours = inspect.getsource(nginx_access_exporter.cgroup)
    assert ours == inspect.getsource(gunicorn_flask_telemetry.cgroup)
