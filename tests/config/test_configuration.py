"""The programs that read the configuration accept it, and so do the linters."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from local.render import fill, render, render_prometheus
from local.settings import ROOT, SERVICES, container_addresses, environment, settings
from tests import sample
from tests.stacks import engine_missing, run


def compose_services() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


@pytest.fixture
def rendered(tmp_path: Path) -> dict[str, str]:
    """The environment of local processes; their configuration is in a temporary folder."""
    env = environment(settings(), tmp_path)
    render(env)
    return env


def test_nginx_accepts_its_configuration(rendered: dict[str, str]) -> None:
    for folder in (rendered["NGINX_RUN_DIR"], rendered["CONSOLE_RUN_DIR"]):
        run(
            ["nginx", "-e", "stderr", "-t", "-p", folder, "-c", f"{folder}/nginx.conf"],
            env=rendered,
        )


def test_nginx_does_not_read_the_result_of_a_renamed_template(rendered: dict[str, str]) -> None:
    folder = Path(rendered["NGINX_RUN_DIR"], "conf.d")
    (folder / "old.conf").write_text((folder / "flask-app.conf").read_text())
    render(rendered)
    test_nginx_accepts_its_configuration(rendered)


def test_gixy_finds_nothing_in_nginx_configuration(rendered: dict[str, str]) -> None:
    # The network of its port decides who can reach stub_status, not a list of addresses. The gate's
    # two servers share their "listen" lines, so the first is the default one.
    skips = {"NGINX_RUN_DIR": "status_page_exposed", "CONSOLE_RUN_DIR": "default_server_flag"}
    for folder, skipped in skips.items():
        run(["gixy", "-l", "--skips", skipped, f"{rendered[folder]}/nginx.conf"])


def test_gixy_finds_nothing_in_the_configuration_for_tls(tmp_path: Path) -> None:
    env = environment(settings(), tmp_path)
    env |= {"NGINX_LISTEN": "443 ssl", "NGINX_HSTS": "max-age=31536000", "NGINX_HTTPS_PORT": ""}
    render(env)
    folder = env["NGINX_RUN_DIR"]
    fill(ROOT / "nginx/tls.conf.template", Path(folder, "conf.d/tls.conf"), env, ("NGINX_",))
    run(["gixy", "-l", "--skips", "status_page_exposed", f"{folder}/nginx.conf"])


def test_promtool_accepts_prometheus_configuration(rendered: dict[str, str]) -> None:
    run(["promtool", "check", "config", f"{rendered['STACK_RUN_DIR']}/prometheus.yml"])
    # As in the container. The rule files are elsewhere here, so check only the syntax.
    run(["promtool", "check", "config", "--syntax-only", "prometheus/prometheus.yml"])


def test_only_addresses_and_rule_paths_of_prometheus_differ_locally() -> None:
    source = (ROOT / "prometheus" / "prometheus.yml").read_text()
    values = settings()
    here = environment(values, ROOT / ".local" / "run") | {"GRAFANA": "/usr/bin/grafana"}
    local = yaml.safe_load(render_prometheus(source, container_addresses(values), here))
    original = yaml.safe_load(source)
    for config in (local, original):
        for job in config["scrape_configs"] + config["alerting"]["alertmanagers"]:
            del job["static_configs" if "static_configs" in job else "dns_sd_configs"]
        del config["rule_files"]
    assert local == original


def test_compose_accepts_its_configuration() -> None:
    if engine_missing():
        pytest.skip(engine_missing())
    for more in ([], ["compose.tls.yaml"], ["compose.tls.yaml", "compose.login.yaml"]):
        files = [f"--file={name}" for name in ("compose.yaml", *more)]
        run(["docker", "compose", *files, "config", "--quiet"])


def test_compose_names_a_setting_that_env_lacks() -> None:
    if engine_missing():
        pytest.skip(engine_missing())
    command = ["docker", "compose", "--env-file", "/dev/null", "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert re.search(r"variable \w+ is missing a value: restore its line in .env", done.stderr)


def test_compose_accepts_the_override_that_the_guide_shows(tmp_path: Path) -> None:
    if engine_missing():
        pytest.skip(engine_missing())
    (shown,) = re.findall(
        r"^```yaml\n(.*?)^```", (ROOT / "docs/own-app.md").read_text(), re.M | re.S
    )
    override = tmp_path / "compose.yaml"
    override.write_text(shown)
    files = ("--file", "compose.yaml", "--file", override)
    limit = yaml.safe_load(run(["docker", "compose", *files, "config"]))["services"]["flask-app"]
    assert limit["mem_limit"] == str(1 << 30)


def test_compose_and_local_processes_run_the_same_services() -> None:
    always = {name for name, each in compose_services().items() if "profiles" not in each}
    assert always == {service.name for service in SERVICES}


def test_only_traffic_is_published_to_other_machines() -> None:
    for name, service in compose_services().items():
        for port in service.get("ports", []):
            assert name == "nginx-proxy" or str(port).startswith("127.0.0.1:")


@pytest.mark.parametrize("name", [service.name for service in SERVICES])
def test_every_service_is_limited_and_restarted_and_checked(name: str) -> None:
    service = compose_services()[name]
    assert "mem_limit" in service
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["options"]["max-size"]
    # The image contains only the exporter, so it cannot run a health check.
    assert ("healthcheck" in service) == (name != "nginx-exporter")
    for dependency in service.get("depends_on", {}).values():
        assert dependency["condition"] == "service_healthy"


def own_dockerfiles() -> dict[str, str]:
    """The Dockerfiles of the images that the stack builds."""
    return {
        path: (ROOT / path).read_text()
        for path in sample.tracked("*/Dockerfile")
        if not path.startswith((".ci/", "tests/"))
    }


def user_of(service: dict[str, Any]) -> str:
    """The user that a service runs as, set in compose.yaml or in its Dockerfile."""
    if "build" not in service:
        return service["user"]
    build = service["build"]
    path = Path(build["context"], build.get("dockerfile", "Dockerfile"))
    return re.findall(r"^USER (\S+)", (ROOT / path).read_text(), re.M)[-1]


@pytest.mark.parametrize("name", sorted(compose_services()))
def test_every_container_is_confined(name: str) -> None:
    service = compose_services()[name]
    assert re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", user_of(service))
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    wider = {"cap_add", "devices", "ipc", "network_mode", "pid", "privileged", "userns_mode"}
    assert not wider & set(service)
    for volume in service.get("volumes", []):
        assert not volume["source"].startswith(("/var/run", "/run", "/etc", "/proc", "/sys"))
        # What is mounted from this machine cannot be changed from inside.
        assert volume["type"] == "volume" or volume["read_only"]


def test_networks_without_an_address_of_this_machine() -> None:
    networks = yaml.safe_load((ROOT / "compose.yaml").read_text())["networks"]
    unreachable = {
        name
        for name, network in networks.items()
        if network
        and network["internal"]
        and network["driver_opts"] == {"com.docker.network.bridge.inhibit_ipv4": "true"}
    }
    # These have no other, so nobody reaches them without the gate, and they reach nothing outside.
    for name in ("prometheus", "grafana", "nginx-exporter", "nginx-access-exporter"):
        assert set(compose_services()[name]["networks"]) <= unreachable


@pytest.mark.parametrize("path", sorted(own_dockerfiles()))
def test_dockerfiles_keep_the_rules_of_image_scanners(path: str) -> None:
    text = re.sub(r"\\\n", " ", own_dockerfiles()[path])
    instructions = re.findall(r"^([A-Z]+) (.+)", text, re.M)
    assert not [value for name, value in instructions if name == "ADD"]
    for name, value in instructions:
        if name in ("ARG", "ENV"):
            assert not re.search(r"(?i)secret|password|token|api_?key", value)
        if name == "RUN":
            assert not re.search(r"\b(sudo|chmod 777)\b|(curl|wget).*\|", value)
            installs = re.findall(r"pip install.*?(?=&&|$)", value)
            # With --constraint, it is the app's requirements.txt, whose author decides.
            pinned = ("--require-hashes", "--no-deps", "--constraint")
            assert all(any(each in install for each in pinned) for install in installs)


def test_only_env_names_images() -> None:
    for service in compose_services().values():
        assert str(service.get("image", "${built}")).startswith("${")
    for dockerfile in sample.tracked("*/Dockerfile"):
        if not dockerfile.startswith(".ci/"):
            image = (ROOT / dockerfile).read_text().split("FROM ")[1].split()[0]
            assert image.startswith("${"), dockerfile


def test_flask_folder_hides_no_library() -> None:
    assert not (ROOT / "flask" / "__init__.py").exists()


def test_ruff() -> None:
    excluded = [f"--extend-exclude={path}" for path in sample.foreign_files()]
    run(["ruff", "check", ".", *excluded])
    run(["ruff", "format", "--check", ".", *(each.replace("extend-", "") for each in excluded)])


def test_yamllint() -> None:
    run(["yamllint", "--strict", *sample.tracked("*.yml", "*.yaml")])


def test_shellcheck() -> None:
    scripts = [
        path
        for path in sample.tracked()
        if path.endswith((".sh", ".envsh"))
        or ((ROOT / path).read_bytes()[:64].startswith((b"#!/bin/sh", b"#!/usr/bin/env bash")))
    ]
    assert scripts
    run(["shellcheck", *scripts])


def test_hadolint() -> None:
    run(["hadolint", *sample.tracked("Dockerfile", "*/Dockerfile")])


def test_actionlint() -> None:
    run(["actionlint", "-no-color", *sample.tracked(".github/workflows/*")])


@pytest.mark.parametrize("addition", ["", "compose.tls.yaml", "compose.login.yaml"])
def test_compose_lint(tmp_path: Path, addition: str) -> None:
    # In a copy, because compose-lint takes bind mounts below /root for the system's files.
    for name in ("compose.yaml", ".env", ".compose-lint.yml"):
        shutil.copy(ROOT / name, tmp_path)
    if addition:  # it merges a file of this name
        shutil.copy(ROOT / addition, tmp_path / "compose.override.yml")
    env = os.environ | {"NO_COLOR": "1"}
    options = ("--fail-on", "low", "--strict-config", f"--config={tmp_path}/.compose-lint.yml")
    run(["compose-lint", "check", *options, str(tmp_path / "compose.yaml")], env=env)


def test_no_file_below_tmp_has_a_fixed_name() -> None:
    paths = sample.tracked("tests/", "local/", ".ci/", "stack")
    named = [
        f"{path}:{number}"
        for path in paths
        for number, line in enumerate((ROOT / path).read_text().splitlines(), start=1)
        if re.search(r"""["'\s=(]/tmp/\w""", line)
    ]
    assert len(paths) > 50
    assert named == []


def test_example_of_remote_write_scrapes_what_the_stack_does() -> None:
    """A copy, because Prometheus cannot include a file in its configuration."""
    ours = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())
    example = yaml.safe_load((ROOT / "examples" / "remote-write" / "prometheus.yml").read_text())
    (store,) = example.pop("remote_write")
    added = {name: example["global"]["external_labels"].pop(name) for name in ("stack", "region")}
    assert example == ours
    assert added == {"stack": "${STACK_NAME}", "region": "${STACK_REGION}"}
    dropped = store["write_relabel_configs"][0]
    assert dropped["action"] == "labeldrop"
    links = ours["global"]["external_labels"]
    assert {name for name in links if re.fullmatch(dropped["regex"], name)} == set(links)


def test_compose_accepts_the_example_of_remote_write() -> None:
    if engine_missing():
        pytest.skip(engine_missing())
    files = ROOT / "compose.yaml", ROOT / "examples" / "remote-write" / "compose.yaml"
    env = os.environ | {"STACK_NAME": "shop", "COMPOSE_FILE": os.pathsep.join(map(str, files))}
    rendered = yaml.safe_load(run(["docker", "compose", "config"], env=env))
    own = {name: each for name, each in compose_services().items() if name == "prometheus"}
    flags = rendered["services"]["prometheus"]["command"]
    names = {each.partition("=")[0] for each in own["prometheus"]["command"]}
    assert {flag.partition("=")[0] for flag in flags} == names | {"--web.listen-address"}
