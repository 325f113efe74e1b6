"""What can break in a stack: how, how it is mended, and the alert that reports it."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
from collections.abc import Callable, Iterator

from tests.gunicorns import METRICS_SERVER
from tests.stacks import ComposeStack, Process, Stack, run, wait_until

BOTH = ("local", "compose")
Scripts = dict[str, str]  # by the kind of stack


def _nothing(_: Stack) -> None:
    """Wait for the stack to mend itself."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault.

    `mend` is what somebody has to do; most faults mend themselves. `alert` is empty where nobody
    has to know.
    """

    name: str
    cause: Callable[[Stack], object]
    mend: Callable[[Stack], object] = _nothing
    alert: str = ""
    kinds: tuple[str, ...] = BOTH
    why: str = ""  # it cannot be had on the other kind
    quick: bool = False  # runs without --all-faults
    needs: str = ""  # a query; without a result, the fault cannot be had
    loses_counts: bool = False  # what nginx has not written yet, or cannot write
    path: str = "/?size=10"  # what the load asks for

    @property
    def mended(self) -> bool:
        """Whether somebody has to mend it."""
        return self.mend is not _nothing


def send(stack: Stack, service: str, number: signal.Signals) -> None:
    """Send a signal to a service's main process, from outside of its container.

    The engine restarts a container that ends so. (It does not after `docker kill`.)
    """
    os.kill(stack.main_process(service), number)


def send_all(stack: Stack, service: str, number: signal.Signals) -> None:
    """Send a signal to every process of a service, workers first."""
    for process in reversed(stack.processes(service)):
        os.kill(process.pid, number)


def workers(stack: Stack, service: str) -> list[Process]:
    """The processes of a service that do its work."""
    _, *others = stack.processes(service)
    return [each for each in others if METRICS_SERVER not in each.command]


def send_workers(
    stack: Stack, service: str, number: signal.Signals, most: int | None = None
) -> None:
    """Send a signal to a service's workers, or to the first of them."""
    for process in workers(stack, service)[:most]:
        os.kill(process.pid, number)


def kill_metrics_server(stack: Stack) -> None:
    """Kill the process that answers the scrapes of flask-app."""
    for process in stack.processes("flask-app"):
        if METRICS_SERVER in process.command:
            os.kill(process.pid, signal.SIGKILL)


def reload_often(stack: Stack) -> None:
    """Reload nginx 20 times, each when the last one is done."""
    for _ in range(20):
        old = {each.pid for each in workers(stack, "nginx-proxy")}
        send(stack, "nginx-proxy", signal.SIGHUP)
        wait_until(
            lambda old=old: {each.pid for each in workers(stack, "nginx-proxy")} - old,
            20,
            "new workers",
        )


def pass_on(stack: Stack, query: str) -> None:
    """Ask the app for something that harms it."""
    subprocess.run(["curl", "-s", "-m", "20", f"{stack.flask}/?{query}"], check=False, stdout=-3)


def traffic_network(stack: Stack, *command: str) -> None:
    """Run `docker network` on flask-app and the network between it and nginx."""
    assert isinstance(stack, ComposeStack)
    action, *options = command
    network = f"{stack.project}_traffic"
    container = stack.containers("flask-app")[0]
    subprocess.run(["docker", "network", action, *options, network, container], check=True)


def kill_one_of_three(stack: Stack) -> None:
    """Kill a replica, a while after two more were started."""
    assert isinstance(stack, ComposeStack)
    stack.scale(3)
    wait_until(lambda: len(stack.query('up{job="flask-app"} == 1')) == 3, 60, "three targets")
    stack.kill_container(stack.containers("flask-app")[-1])


def back_to_one(stack: Stack) -> None:
    """Remove the killed replica and end another one."""
    assert isinstance(stack, ComposeStack)
    stack.compose("rm", "--force", "flask-app")
    stack.scale(1)


# What breaks the cache and what repairs it, in its folder. With Docker the cache is a small file
# system of its own: see SMALL_DISKS.
FULL = {
    "local": "mount -t tmpfs -o size=512k tmpfs responses",
    "compose": "dd if=/dev/zero of=filler bs=1M 2>/dev/null; test -s filler",
}
EMPTY = {"local": "umount responses", "compose": "rm filler"}
REPLACED = dict.fromkeys(BOTH, "mv responses aside && touch responses")
PUT_BACK = dict.fromkeys(BOTH, "rm responses && mv aside responses")
READ_ONLY = dict.fromkeys(BOTH, "chmod 500 responses")
WRITABLE = dict.fromkeys(BOTH, "chmod 700 responses")


def beside_cache(stack: Stack, script: str) -> None:
    """Run a script in the folder of nginx's cache, as the user that nginx runs as."""
    if isinstance(stack, ComposeStack):
        _in_container(stack, "nginx-proxy", f"cd /var/cache/nginx && {script}")
    else:
        run(["sh", "-c", f"cd {stack.run}/nginx/cache && {script}"])


def fill(service: str, folder: str) -> Callable[[Stack], None]:
    """What fills the file system of a container's folder, to the last page of memory."""
    script = f"dd if=/dev/zero of={folder}/filler bs=4k 2>/dev/null; true"
    return lambda stack: _in_container(stack, service, script)


def empty(service: str, folder: str) -> Callable[[Stack], None]:
    """What removes that again."""
    return lambda stack: _in_container(stack, service, f"rm {folder}/filler")


def _in_container(stack: Stack, service: str, script: str) -> None:
    assert isinstance(stack, ComposeStack)
    stack.compose("exec", "-T", service, "sh", "-c", script)


def without_alertmanager(stack: Stack) -> None:
    """Stop Alertmanager and kill a worker: nobody gets the alert."""
    stack.stop("alertmanager")
    send_workers(stack, "flask-app", signal.SIGKILL, 1)


def kill_supervisord(stack: Stack) -> None:
    """Kill supervisord, whose services run on."""
    os.kill(int((stack.run / "supervisord.pid").read_text()), signal.SIGKILL)


def start_anew(stack: Stack) -> None:
    """End what runs, and start the stack."""
    assert stack.command("down").returncode == 0
    stack.up()


def killed(service: str) -> Callable[[Stack], None]:
    """What kills a service's main process."""
    return lambda stack: send(stack, service, signal.SIGKILL)


def cache_fault(
    name: str, breaks: Scripts, repairs: Scripts, kinds: tuple[str, ...] = BOTH, why: str = ""
) -> Fault:
    """A cache that cannot be written."""
    return Fault(
        name,
        lambda stack: beside_cache(stack, breaks[stack.kind]),
        lambda stack: beside_cache(stack, repairs[stack.kind]),
        alert="CacheNotWritable",
        kinds=kinds,
        why=why,
        path="/cache-me?size=10&n={}",  # each request makes a new entry
    )


NO_LIMIT = "local processes have no memory limit"
NO_DNS = "local processes have an address instead of a name"
ONE = "local processes have no replicas"
OWN_DISK = "a local stack writes to the machine's own disk"
NO_SUPERVISORD = "containers have no supervisord"
ROOT_WRITES = "root may write to any folder"
METRICS_LOG = "/var/log/nginx-metrics"


def every() -> Iterator[Fault]:
    """All faults. An alert goes on for a while, so faults with the same one are far apart."""
    app, proxy, exporter = "flask-app", "nginx-proxy", "nginx-access-exporter"
    kill, halt, go_on = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT
    yield Fault(
        "a gunicorn worker is killed",
        lambda stack: send_workers(stack, app, kill, 1),
        alert="WorkerKilled",
        quick=True,
    )
    yield Fault(
        "a gunicorn worker hangs (SIGSTOP)",
        lambda stack: send_workers(stack, app, halt, 1),
        alert="WorkerTimeouts",
    )
    yield Fault("gunicorn's arbiter is killed", killed(app), quick=True)
    yield Fault(
        "flask-app is stopped, and started later",
        lambda stack: stack.stop(app),
        lambda stack: stack.start(app),
        alert="UpstreamDown",
    )
    yield Fault(
        "flask-app runs out of memory",
        lambda stack: pass_on(stack, "allocate=1000000000"),
        alert="WorkerKilled",
        kinds=("compose",),
        why=NO_LIMIT,
    )
    yield Fault(
        "all gunicorn workers hang",
        lambda stack: send_workers(stack, app, halt),
        alert="WorkerTimeouts",
        quick=True,
    )
    yield Fault(
        "flask-app is paused",
        lambda stack: send_all(stack, app, halt),
        lambda stack: send_all(stack, app, go_on),
        alert="UpstreamDown",
    )
    yield Fault("gunicorn's metrics server is killed", kill_metrics_server)
    yield Fault(
        "flask-app's name leaves DNS",
        lambda stack: traffic_network(stack, "disconnect"),
        lambda stack: traffic_network(stack, "connect", "--alias=flask-app"),
        alert="UpstreamDown",
        kinds=("compose",),
        why=NO_DNS,
    )
    yield Fault(
        "one of three replicas is killed",
        kill_one_of_three,
        back_to_one,
        kinds=("compose",),
        why=ONE,
    )
    yield Fault(
        "an nginx worker is killed",
        lambda stack: send_workers(stack, proxy, kill, 1),
        loses_counts=True,
    )
    yield Fault("nginx's master is killed", killed(proxy), quick=True, loses_counts=True)
    yield Fault("nginx is reloaded 20 times", reload_often, quick=True)
    yield Fault("nginx is restarted", lambda stack: stack.restart(proxy))
    yield Fault("nginx-access-exporter is killed", killed(exporter))
    yield Fault(
        "nginx-access-exporter is paused",
        lambda stack: send_all(stack, exporter, halt),
        lambda stack: send_all(stack, exporter, go_on),
        alert="TargetDown",
        quick=True,
    )
    yield cache_fault("the cache's disk is full", FULL, EMPTY)
    yield Fault("Prometheus is killed", killed("prometheus"))
    yield Fault(
        "nginx's metrics log is full",
        fill(proxy, METRICS_LOG),
        empty(proxy, METRICS_LOG),
        alert="RequestsUnaccounted",
        kinds=("compose",),
        why=OWN_DISK,
        loses_counts=True,
    )
    yield cache_fault("the cache's folder is replaced by a file", REPLACED, PUT_BACK)
    yield Fault(
        "Alertmanager is stopped when an alert begins",
        without_alertmanager,
        lambda stack: stack.start("alertmanager"),
        alert="AlertDeliveryFailing",
    )
    yield Fault(
        "Grafana is stopped, and started later",
        lambda stack: stack.stop("grafana"),
        lambda stack: stack.start("grafana"),
        alert="GrafanaDown",
        needs='up{job="grafana"} == 1',
    )
    yield Fault(
        "supervisord is killed, and the stack started anew",
        kill_supervisord,
        start_anew,
        kinds=("local",),
        why=NO_SUPERVISORD,
    )
    yield cache_fault(
        "the cache's folder is read-only",
        READ_ONLY,
        WRITABLE,
        kinds=("compose",),
        why=ROOT_WRITES,
    )
    yield Fault(
        "Prometheus' disk is full",
        fill("prometheus", "/prometheus"),
        empty("prometheus", "/prometheus"),
        alert="PrometheusNotStoring",
        kinds=("compose",),
        why=OWN_DISK,
    )


FAULTS = list(every())
