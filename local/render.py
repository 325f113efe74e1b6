"""Writes the containers' configuration for local processes: same files, other addresses.

python -m local.render      in the environment that local/settings.py defines
"""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import subprocess
from pathlib import Path

import bcrypt
import yaml

from local.packages import mime_types
from local.settings import BIN, ROOT, container_addresses

METRICS_LOG = "/var/log/nginx-metrics/access.log"


def render(environment: dict[str, str]) -> None:
    """Write the configuration of nginx, console-gate and Prometheus below STACK_RUN_DIR."""
    run = Path(environment["STACK_RUN_DIR"])
    _render_nginx(environment, Path(environment["NGINX_RUN_DIR"]))
    _render_gate(environment, Path(environment["CONSOLE_RUN_DIR"]))
    source = Path(environment["PROMETHEUS_CONFIG"]).read_text()
    text = render_prometheus(source, container_addresses(environment), environment)
    (run / "prometheus.yml").write_text(text)


def render_prometheus(text: str, addresses: dict[str, str], environment: dict[str, str]) -> str:
    """Return prometheus.yml with other target addresses; DNS names become static targets.

    Args:
        text: prometheus.yml as it is in the container.
        addresses: for `service:port`, the `host:port` to use instead.
        environment: has PROMETHEUS_RULES_DIR, and GRAFANA (empty if Grafana does not run).
    """
    config = yaml.safe_load(text)
    rules = Path(environment["PROMETHEUS_RULES_DIR"])
    config["rule_files"] = [str(rules / Path(pattern).name) for pattern in config["rule_files"]]
    for job in config["scrape_configs"] + config["alerting"]["alertmanagers"]:
        for found in job.pop("dns_sd_configs", []):
            targets = [f"{name}:{found['port']}" for name in found["names"]]
            job.setdefault("static_configs", []).append({"targets": targets})
        for group in job["static_configs"]:
            group["targets"] = [addresses[target] for target in group["targets"]]
    if not environment.get("GRAFANA"):
        config["scrape_configs"] = [
            job for job in config["scrape_configs"] if job["job_name"] != "grafana"
        ]
    return yaml.safe_dump(config, sort_keys=False)


def _render_nginx(environment: dict[str, str], folder: Path) -> None:
    """Do what the nginx image does at start: fill in templates/ and write them to conf.d/."""
    templates = ROOT / "nginx" / "templates"
    # Otherwise nginx would also read the result of a template that has been renamed or deleted.
    shutil.rmtree(folder / "conf.d", ignore_errors=True)
    for template in templates.rglob("*.template"):
        target = folder / "conf.d" / template.relative_to(templates).with_suffix("")
        target.parent.mkdir(parents=True, exist_ok=True)
        fill(template, target, environment, ("NGINX_", "FLASK_APP_"))
    (folder / "include").mkdir(exist_ok=True)
    for snippet in (ROOT / "nginx" / "include").iterdir():
        text = snippet.read_text().replace(METRICS_LOG, environment["NGINX_METRICS_LOG"])
        (folder / "include" / snippet.name).write_text(text)
    (folder / "cache").mkdir(exist_ok=True)
    (folder / "app").mkdir(exist_ok=True)
    _link(folder / "app" / "static", ROOT / (environment.get("APP_STATIC_DIR") or os.devnull))
    _link(folder / "nginx.conf", ROOT / "nginx" / "nginx.conf")
    _link(folder / "mime.types", mime_types())


def _render_gate(environment: dict[str, str], folder: Path) -> None:
    """Write the gate's nginx.conf with a new password, and web.yml, which demands it from all."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o700)
    password = secrets.token_hex(16).encode()  # random, so the fewest rounds of hashing will do
    users = {"console-gate": bcrypt.hashpw(password, bcrypt.gensalt(4)).decode()}
    (folder / "web.yml").write_text(yaml.safe_dump({"basic_auth_users": users}))
    login = base64.b64encode(b"console-gate:" + password).decode()
    template = ROOT / "nginx" / "console-gate" / "nginx.conf.template"
    prefixes = ("CONSOLE_", "NGINX_", "PROMETHEUS_", "ALERTMANAGER_", "GRAFANA_")
    values = environment | {"CONSOLE_AUTHORIZATION": f"Basic {login}"}
    fill(template, folder / "nginx.conf", values, prefixes)


def fill(
    template: Path, target: Path, environment: dict[str, str], prefixes: tuple[str, ...]
) -> None:
    """Fill in a template: the variables whose names begin with these prefixes, and no others.

    nginx's own ($host, $status, …) look the same to envsubst.
    """
    names = [name for name in environment if name.startswith(prefixes)]
    filled = subprocess.run(
        [BIN / "envsubst", " ".join(f"${{{name}}}" for name in names)],
        input=template.read_text(),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    target.write_text(filled.stdout)


def _link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


if __name__ == "__main__":
    render(dict(os.environ))
