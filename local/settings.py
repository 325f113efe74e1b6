"""Settings, and the addresses and paths of services that run as local processes.

The configuration files are the ones that the containers use. They read these variables.
prometheus.yml reads none: local/render.py replaces the containers' addresses in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCAL = ROOT / ".local"
BIN = LOCAL / "bin"
VENV = LOCAL / "venv"
PACKAGES = LOCAL / "packages"


class StackError(Exception):
    """A problem that the user can solve; the message names it and says what to do."""


@dataclasses.dataclass(frozen=True)
class Service:
    """A service: its name in compose.yaml, its ports, and the path of its health check."""

    name: str
    port_variable: str
    default_port: int
    health_path: str
    container_port: int


SERVICES = (
    Service("flask-app", "FLASK_PORT", 8000, "/flask-health-check", 8000),
    Service("nginx-proxy", "HTTP_PORT", 8080, "/health-check", 80),
    Service("nginx-exporter", "NGINX_EXPORTER_PORT", 9113, "/metrics", 9113),
    Service("nginx-access-exporter", "ACCESS_EXPORTER_PORT", 9114, "/-/healthy", 9114),
    Service("console-gate", "PROMETHEUS_PORT", 9090, "/health-check", 9090),
    Service("prometheus", "PROMETHEUS_PORT", 9090, "/-/ready", 9090),
    Service("alertmanager", "ALERTMANAGER_PORT", 9093, "/-/ready", 9093),
    Service("grafana", "GRAFANA_PORT", 3000, "/api/health", 3000),
)

# A comment may follow. After a value without quotes, it needs a space before it.
ENV_LINE = re.compile(
    r"""(?:export\s+)?(?P<name>[A-Za-z_]\w*)\s*=\s*
    (?:(?P<quote>['"])(?P<quoted>.*?)(?P=quote) | (?P<plain>[^\s'"#]\S*(?:\s+[^\s#]\S*)*)?)
    (?:\s*|\s+\#.*)""",
    re.VERBOSE,
)

LAST_PORT = 65535
# Further ports of services. In containers these are fixed and never published.
INNER_PORTS = {"FLASK_METRICS_PORT": 9200, "NGINX_STATUS_PORT": 8081}
# Without Docker, Prometheus and Alertmanager listen here, with a password that console-gate alone
# has. (Grafana has a Unix socket.) In containers their network keeps others away.
GATED_PORTS = {"PROMETHEUS_GATED_PORT": 19090, "ALERTMANAGER_GATED_PORT": 19093}
NEVER_PUBLISHED = (*INNER_PORTS, *GATED_PORTS, "NGINX_EXPORTER_PORT", "ACCESS_EXPORTER_PORT")
DEFAULT_PORTS = (
    {service.port_variable: service.default_port for service in SERVICES}
    | INNER_PORTS
    | GATED_PORTS
)


def settings() -> dict[str, str]:
    """The variables of `.env`, overridden by those of the shell.

    Read as Compose reads them, except that `${NAME}` in a value is not replaced.

    Raises:
        StackError: `.env` is missing, not UTF-8, or a line of it is not NAME=VALUE.
    """
    if not (ROOT / ".env").is_file():
        raise StackError(".env is missing: restore it (git checkout .env)")
    return read_env_file(".env") | dict(os.environ)


def read_env_file(name: str) -> dict[str, str]:
    """The variables that a file sets; see `settings`.

    Args:
        name: its path, from the repository's root or absolute.

    Raises:
        StackError: it can't be read, is not UTF-8, or a line of it is not NAME=VALUE.
    """
    values: dict[str, str] = {}
    for number, raw in enumerate(_text(name).splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        found = ENV_LINE.fullmatch(line)
        if not found:
            # Not the line itself: it can hold a secret.
            raise StackError(f"{name}, line {number}: expected NAME=VALUE")
        values[found["name"]] = found["quoted"] or found["plain"] or ""
    return values


def _text(name: str) -> str:
    try:
        content = (ROOT / name).read_bytes()
    except OSError as error:
        raise StackError(f"{name} can't be read: {error.strerror}") from error
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise StackError(
            f"{name}, line {number}: a character is not UTF-8; save the file as UTF-8"
        ) from error


def ports(values: dict[str, str], *, replicas: bool = False) -> dict[str, int]:
    """The port of every service and inner listener by its variable's name.

    Args:
        values: settings.
        replicas: FLASK_PORT may be 0, since Compose finds a free port for each replica.

    Raises:
        StackError: a variable holds no port number, or two of them hold the same.
    """
    if problems := port_problems(values, replicas=replicas):
        raise StackError("; ".join(problems))
    return {
        name: int((values.get(name) or str(default)).partition("-")[0])
        for name, default in DEFAULT_PORTS.items()
    }


def port_problems(values: dict[str, str], *, replicas: bool = False) -> list[str]:
    """A message for each variable that holds no port number, or the number of another."""
    problems = []
    names_by_port: dict[str, str] = {}
    for name, default in DEFAULT_PORTS.items():
        text = values.get(name) or str(default)
        # Compose takes a range, or 0 for any port, for a service that can have replicas.
        ranged = name == "FLASK_PORT" and re.fullmatch(r"(\d+)-(\d+)", text, re.ASCII)
        numbers = ranged.groups() if ranged else (text,)
        least = 0 if replicas and name == "FLASK_PORT" else 1
        if not all(re.fullmatch(r"\d{1,5}", each, re.ASCII) for each in numbers) or not all(
            least <= int(each) <= LAST_PORT for each in numbers
        ):
            problems.append(f"{name}={text}: must be a port number from 1 to {LAST_PORT}")
        elif other := names_by_port.get(numbers[0]):
            problems.append(f"{name} and {other} are both {numbers[0]}: give one another port")
        elif not replicas or name not in NEVER_PUBLISHED:
            names_by_port[numbers[0]] = name
    return problems


def run_directory(values: dict[str, str]) -> Path:
    """The folder of this stack's state, logs and data: STACK_RUN_DIR, or `.local/run`."""
    return Path(values.get("STACK_RUN_DIR") or LOCAL / "run").resolve()


def environment(values: dict[str, str], run: Path) -> dict[str, str]:
    """The processes' environment: the user's settings, with this machine's addresses and paths.

    As in Compose, the variables of APP_ENV_FILE are added, and replace none of the stack's own.
    """
    port = ports(values)
    app = app_directory(values)
    python_path = [str(app_packages(values)), values.get("PYTHONPATH")]
    here = {name: f"127.0.0.1:{number}" for name, number in port.items()}
    rules = values.get("PROMETHEUS_RULES_DIR") or ROOT / "prometheus" / "rules"
    prometheus = values.get("PROMETHEUS_CONFIG") or "prometheus/prometheus.yml"
    paths = {
        "STACK_ROOT": str(ROOT),
        "STACK_RUN_DIR": str(run),
        "STACK_BIN": str(BIN),
        "STACK_PYTHON": str(VENV / "bin" / "python"),
        "NGINX_RUN_DIR": str(run / "nginx"),
        "NGINX_CACHE_DIR": str(run / "nginx" / "cache"),
        "NGINX_METRICS_DIR": str(run / "nginx"),
        "CONSOLE_RUN_DIR": str(run / "console-gate"),
        # If root starts nginx, its workers would run as nobody and could not read below /root.
        "NGINX_USER_DIRECTIVE": "" if os.geteuid() else "user root;",
        "NGINX_METRICS_LOG": str(run / "nginx" / "access-metrics.log"),
        "NGINX_APP_LOCATIONS": str(app / "nginx"),
        "NGINX_APP_FILES": str(run / "nginx" / "app"),
        "APP_DIR": str(app),
        "APP_DATA_DIR": str(run / "app-data"),
        "APP_PYTHONPATH": os.pathsep.join(filter(None, python_path)),
        "APP_VERSION": app_version(values),
        "PROMETHEUS_MULTIPROC_DIR": str(run / "flask-app"),
        "PROMETHEUS_CONFIG": str((ROOT / prometheus).resolve()),
        "PROMETHEUS_RULES_DIR": str((ROOT / rules).resolve()),
        "ALERTMANAGER_RUNTIME_CONFIG": str(run / "alertmanager.yml"),
        "PATH": f"{BIN}{os.pathsep}{VENV / 'bin'}{os.pathsep}{values.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
    }
    addresses = {
        "NGINX_LISTEN": here["HTTP_PORT"],
        "NGINX_HSTS": "",  # there is no TLS
        "NGINX_STATUS_LISTEN": here["NGINX_STATUS_PORT"],
        "NGINX_LOCAL_RESOLVERS": "127.0.0.1",  # not used: the upstream is an address
        "NGINX_TRUST": _trust(values),
        "FLASK_APP_SERVER": here["FLASK_PORT"],
        "FLASK_APP_SERVER_PARAMETERS": "",
        "GUNICORN_BIND": here["FLASK_PORT"],
        "GUNICORN_METRICS_BIND": here["FLASK_METRICS_PORT"],
        "PROMETHEUS_URL": f"http://{here['PROMETHEUS_PORT']}",
        "ALERTMANAGER_URL": f"http://{here['ALERTMANAGER_PORT']}",
        "CONSOLE_PROMETHEUS": here["PROMETHEUS_GATED_PORT"],
        "CONSOLE_ALERTMANAGER": here["ALERTMANAGER_GATED_PORT"],
        "CONSOLE_LOGIN": "",
        "CONSOLE_GRAFANA_AUTHORIZATION": "$http_authorization",
        "CONSOLE_GRAFANA": f"unix:{run}/grafana.sock:",
        "GF_SERVER_PROTOCOL": "socket",
        "GF_SERVER_SOCKET": f"{run}/grafana.sock",
        "GF_SERVER_ROOT_URL": f"http://localhost:{port['GRAFANA_PORT']}/",
    }
    numbers = {name: str(number) for name, number in port.items()}
    defaults = {  # for variables that are unset or, as in Compose, empty
        "NGINX_WORKER_PROCESSES": "auto",
        "NGINX_LOG_ADDRESSES": "true",
        "NGINX_CLIENT_REQUESTS_PER_SECOND": "999999",
        "NGINX_CLIENT_CONNECTIONS": "65535",
        "NGINX_CACHE_TTL": "30s",
        "NGINX_CACHE_MAX_SIZE": "256m",
        "NGINX_CLIENT_MAX_BODY_SIZE": "1m",
        "CONSOLE_HOSTS": "",
        "FLASK_APP_TIMEOUT": "65",
        "ALERTMANAGER_CONFIG": str(ROOT / "prometheus" / "alertmanager.yml"),
        "ALERT_SECRETS_DIR": str(ROOT / "prometheus" / "secrets"),
        "GRAFANA_URL": f"http://localhost:{port['GRAFANA_PORT']}",
        "RUNBOOKS_URL": f"http://localhost:{port['PROMETHEUS_PORT']}/user/runbooks.html",
    }
    chosen = {name: values.get(name) or default for name, default in defaults.items()}
    grafana = grafana_program(values)
    consoles = ("PROMETHEUS_PORT", "ALERTMANAGER_PORT", *(["GRAFANA_PORT"] if grafana else []))
    addresses["CONSOLE_LISTEN"] = " ".join(f"listen {here[name]};" for name in consoles)
    home = values.get("GRAFANA_HOME") or _fetched_grafana(values) or "/usr/share/grafana"
    paths |= {
        "GRAFANA": grafana,
        "GRAFANA_AUTOSTART": "true" if grafana else "false",
        "GRAFANA_HOME": home,
        "GRAFANA_DASHBOARDS": str(ROOT / "grafana" / "dashboards"),
        "GF_PATHS_PROVISIONING": str(ROOT / "grafana" / "provisioning"),
        "GF_PATHS_DATA": str(run / "grafana"),
        "GF_PATHS_LOGS": str(run / "grafana" / "log"),
        "GF_PATHS_BUNDLED_PLUGINS": f"{home}/data/plugins-bundled",
        "GF_PATHS_PLUGINS": str(run / "grafana" / "plugins"),
        "GF_SECURITY_ADMIN_PASSWORD": values.get("GRAFANA_ADMIN_PASSWORD", ""),
    }
    # Programs that local/packages.py unpacked look for their files in these folders.
    for name, folder in (
        ("PROMETHEUS_DIRECTORY", "web"),
        ("ALERTMANAGER_DIRECTORY", "alertmanager"),
    ):
        share = PACKAGES / "usr/share/prometheus" / folder
        paths[name] = str(share if share.is_dir() else run)
    libraries = PACKAGES / "usr" / "lib" / f"{os.uname().machine}-linux-gnu"
    if libraries.is_dir():
        paths["LD_LIBRARY_PATH"] = str(libraries)
    own = read_env_file(values["APP_ENV_FILE"]) if values.get("APP_ENV_FILE") else {}
    return own | values | chosen | paths | addresses | numbers


def app_directory(values: dict[str, str]) -> Path:
    """The folder of the application: APP_DIR, or the sample's."""
    return (ROOT / (values.get("APP_DIR") or "flask")).resolve()


def app_packages(values: dict[str, str]) -> Path:
    """Where local/packages.py installs the packages of the application's requirements.txt."""
    path = str(app_directory(values))
    return LOCAL / "app-packages" / hashlib.sha256(path.encode()).hexdigest()[:16]


def app_version(values: dict[str, str]) -> str:
    """The application's version: APP_VERSION, else the last commit that changed its folder.

    Empty if there is neither.
    """
    if version := values.get("APP_VERSION"):
        return version
    command = ["git", "log", "-1", "--format=%h", "--abbrev=12", "--", "."]
    try:
        done = subprocess.run(
            command, cwd=app_directory(values), capture_output=True, text=True, check=False
        )
    except OSError:  # no git, or no such folder
        return ""
    return done.stdout.strip()


def _trust(values: dict[str, str]) -> str:
    """nginx's directives for NGINX_TRUSTED_PROXIES; in containers, 15-trusted-proxies.envsh's."""
    addresses = values.get("NGINX_TRUSTED_PROXIES", "").split()
    return " ".join(f"set_real_ip_from {address};" for address in addresses)


def grafana_home(values: dict[str, str]) -> Path:
    """Where `./stack grafana` puts the Grafana of `.env`'s version; it is complete if it exists."""
    return LOCAL / "grafana" / values.get("GRAFANA_IMAGE", "").rpartition(":")[2]


def grafana_program(values: dict[str, str]) -> str:
    """Grafana's program: in GRAFANA_HOME, else as fetched, else on PATH; empty if there is none."""
    home = values.get("GRAFANA_HOME") or _fetched_grafana(values)
    if not home:
        return shutil.which("grafana", path=values.get("PATH")) or ""
    program = Path(home, "bin", "grafana")
    if not program.is_file():
        raise StackError(f"GRAFANA_HOME={home}: there is no bin/grafana in it")
    return str(program)


def _fetched_grafana(values: dict[str, str]) -> str:
    home = grafana_home(values)
    return str(home) if (home / "bin").is_dir() else ""


def container_addresses(values: dict[str, str]) -> dict[str, str]:
    """The local address for each address inside the containers (`service:port`)."""
    port = ports(values)
    table = {
        f"{service.name}:{service.container_port}": f"127.0.0.1:{port[service.port_variable]}"
        for service in SERVICES
    }
    table["nginx-proxy:8081"] = f"127.0.0.1:{port['NGINX_STATUS_PORT']}"
    table["localhost:9090"] = table["prometheus:9090"]
    table["flask-app:9200"] = f"127.0.0.1:{port['FLASK_METRICS_PORT']}"
    return table


def require_python() -> None:
    """Raise StackError if this Python is too old to run the services."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this is the check
        raise StackError(
            f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: "
            "install a newer python3, or use Docker (docker compose up)"
        )
